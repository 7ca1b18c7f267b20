"""`Claims`: which process works on which partial file, with file locks where they work and without harm where not.

Whoever works on a file does so in a folder whose name has the machine, the process and a random part. Work that was
left behind is taken over by renaming its folder, which only one can do. Locks decide who waits, never what is right.
"""

from __future__ import annotations

import fcntl
import os
import platform
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from vllm_mxext.hub.store.failures import storing

PARTIAL_FOLDER = "partial"
_LOCK_FOLDER = "locks"
_IDLE_S = 60.0
"""Another machine that has not written for so long, and whose locks we should see, is not at work."""

_IDLE_WITHOUT_LOCKS_S = 3600.0


@dataclass(frozen=True, slots=True)
class Identity:
    """Who works.

    Attributes:
        machine: differs after a restart of the machine.
        process: number and time of start, so that a number that is used again is another process.
        namespace: processes of others have numbers that mean nothing here.
    """

    machine: str
    process: str
    namespace: str

    @classmethod
    def own(cls) -> Identity:
        """This process."""
        try:
            machine = Path("/proc/sys/kernel/random/boot_id").read_text().replace("-", "")[:12]
            namespace = str(os.stat("/proc/self/ns/pid").st_ino)
        except OSError:
            machine, namespace = "".join(filter(str.isalnum, platform.node()))[:40] or "machine", "0"
        return cls(machine, _process_name(os.getpid()) or str(os.getpid()), namespace)

    @property
    def text(self) -> str:
        """As part of a file name."""
        return f"{self.machine}-{self.namespace}-{self.process}"


class _Lock:
    """A lock file that is held, or whose file system has no locks.

    Attributes:
        works: others are kept out.
    """

    def __init__(self, path: Path, file: int, *, works: bool) -> None:
        self._path = path
        self._file = file
        self.works = works

    @property
    def now_s(self) -> float:
        """What time it is for the file system, whose clock may be another machine's."""
        try:
            os.utime(self._file)
            return os.fstat(self._file).st_mtime
        except OSError:
            return time.time()

    def release(self) -> None:
        """Lets others go on; the file goes too, which `_try_lock()` of those who have it open finds out."""
        try:
            with suppress(OSError):
                self._path.unlink()
        finally:
            file, self._file = self._file, -1
            if file >= 0:
                os.close(file)


class Claim:
    """The right to work on a partial file.

    Attributes:
        folder: ours alone.
    """

    def __init__(self, folder: Path, lock: _Lock, leftovers: Callable[[], list[Path]]) -> None:
        self.folder = folder
        self._leftovers = leftovers
        self._lock = lock

    def release(self, *, is_done: bool) -> None:
        """Gives the right back.

        Args:
            is_done: nobody needs what is in the folder, nor what others have left; otherwise the next one goes on.
        """
        try:
            if is_done:
                for folder in (self.folder, *self._leftovers()):
                    shutil.rmtree(folder, ignore_errors=True)
            else:
                with suppress(OSError):  # somebody else has left his there: ours is taken over when we have ended
                    os.rename(self.folder, self.folder.with_name(_key_of(self.folder)))
        finally:
            self._lock.release()


class Claims:
    """The partial files of a store.

    Args:
        store: its folder.
        identity: who we are.
    """

    def __init__(self, store: Path, identity: Identity | None = None) -> None:
        self._store = store
        self._identity = identity or Identity.own()

    def take(self, key: str) -> Claim | None:
        """Returns the right to work on a file, with what others have left of it; None while somebody else works on it.

        Args:
            key: of the file: a plain file name without a dot.

        Raises:
            StoreError: the store cannot be written.
        """
        with storing(self._store):
            (self._store / PARTIAL_FOLDER).mkdir(parents=True, exist_ok=True)
            lock = self._try_lock(key)
            if lock is None:
                return None
            try:
                folder = self._take_folder(key, lock)
            except BaseException:
                lock.release()
                raise
        if folder is None:
            lock.release()
            return None
        return Claim(folder, lock, lambda: [other for other in self._folders(key) if self._is_idle(other, lock)])

    def held_bytes(self, key: str) -> int:
        """Disk space that partial files of a key take already; the largest counts, as only that one is gone on with."""
        sizes = [0]
        for folder in self._folders(key):
            with suppress(OSError):
                sizes.append((folder / "data").stat().st_blocks * 512)
        return max(sizes)

    def _take_folder(self, key: str, lock: _Lock) -> Path | None:
        own = self._store / PARTIAL_FOLDER / f"{key}.{self._identity.text}.{secrets.token_hex(4)}"
        folders = sorted(self._folders(key), key=_num_finished, reverse=True)
        idle = [folder for folder in folders if self._is_idle(folder, lock)]
        if lock.works and len(idle) < len(folders):
            return None
        is_taken = False
        for folder in idle:
            if is_taken:
                shutil.rmtree(folder, ignore_errors=True)
            else:
                with suppress(FileNotFoundError):  # another one was faster
                    os.rename(folder, own)
                    is_taken = True
        if not is_taken:
            own.mkdir()
        return own

    def _is_idle(self, folder: Path, lock: _Lock) -> bool:
        """Whether nobody works in a folder.

        On this machine the lock says so. Locks of another machine on a shared file system may not reach us, so that it
        is also asked whether anything was written lately.
        """
        owner = folder.name.removeprefix(_key_of(folder)).lstrip(".").rpartition(".")[0]
        if not owner:
            return True
        machine, _, rest = owner.partition("-")
        namespace, _, process = rest.partition("-")
        if machine == self._identity.machine and lock.works:
            return True
        if (machine, namespace) == (self._identity.machine, self._identity.namespace):
            number = process.partition("_")[0]
            return not number.isdigit() or _process_name(int(number)) != process
        idle_s = lock.now_s - max(map(_changed_s, (folder, folder / "data", folder / "chunks")))
        return idle_s > (_IDLE_S if lock.works else _IDLE_WITHOUT_LOCKS_S)

    def _folders(self, key: str) -> Iterator[Path]:
        parent = self._store / PARTIAL_FOLDER
        with suppress(FileNotFoundError):
            yield from (parent / name for name in os.listdir(parent) if name.partition(".")[0] == key)

    def _try_lock(self, key: str) -> _Lock | None:
        path = self._store / _LOCK_FOLDER / f"partial-{key}.lock"
        path.parent.mkdir(exist_ok=True)
        while True:
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(file)
                return None
            except OSError:  # ENOLCK, EOPNOTSUPP, ENOSYS: this file system has no locks
                return _Lock(path, file, works=False)
            try:
                if os.path.samestat(os.fstat(file), os.stat(path)):
                    return _Lock(path, file, works=_keeps_out(path))
            except FileNotFoundError:
                pass
            os.close(file)  # its last holder has removed it


def _keeps_out(path: Path) -> bool:
    """Tries to lock a second time: some network file systems let everybody have a lock."""
    file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(file)
    return False


def _process_name(number: int) -> str | None:
    """Number and time of start of a process; None if there is none, or it has ended and nobody has asked how."""
    try:
        fields = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return None if Path("/proc/self/stat").exists() or not psutil.pid_exists(number) else f"{number}_0"
    return None if fields[0] == "Z" else f"{number}_{fields[19]}"


def _key_of(folder: Path) -> str:
    return folder.name.partition(".")[0]


def _num_finished(folder: Path) -> int:
    try:
        return (folder / "chunks").stat().st_size
    except OSError:
        return -1


def _changed_s(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
