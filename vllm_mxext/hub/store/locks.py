"""Locks of the store between processes; where the file system has none, holders are told so and nothing is locked.

What is safe without locks: publishing and downloading, because everything becomes visible by one rename. What is not:
removing blobs while somebody publishes; `gc` keeps what is younger than a day then.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from vllm_mxext.errors import StoreError
from vllm_mxext.hub.store.failures import store_error, storing

FOLDER = "locks"
DEFAULT_TIMEOUT_S = 600.0
_POLL_S = 0.1
_UNSUPPORTED = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)


@dataclass(frozen=True, slots=True)
class Lock:
    """A lock that is held.

    Attributes:
        works: it keeps others out; False where the file system's locks do nothing.
    """

    works: bool


@dataclass(frozen=True, slots=True)
class Clock:
    """Time for those who wait; tests have one of their own."""

    monotonic: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


@contextmanager
def holding(
    store: Path,
    name: str,
    *,
    purpose: str,
    is_shared: bool = False,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    clock: Clock = Clock(),
) -> Iterator[Lock]:
    """Holds a lock of a store; not reentrant: two exclusive ones in one process wait for each other.

    Args:
        store: folder of the store.
        name: of the lock.
        purpose: what for, told to those who wait in vain: `publish`.
        is_shared: others may hold it shared at the same time.
        timeout_s: how long to wait.
        clock: time.

    Raises:
        StoreError: somebody else has it, who is named, or the folder cannot be written.
    """
    path = store / FOLDER / f"{name}.lock"
    with storing(store):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        works = _acquire(file, path, is_shared, timeout_s, clock) and (is_shared or _keeps_out(path))
        _sign(file, purpose)
        yield Lock(works)
    finally:
        os.close(file)  # drops the lock


def _acquire(file: int, path: Path, is_shared: bool, timeout_s: float, clock: Clock) -> bool:
    """Waits for a lock; false if the file system has none."""
    deadline = clock.monotonic() + timeout_s
    while True:
        answer = _try(file, fcntl.LOCK_SH if is_shared else fcntl.LOCK_EX)
        if answer == 0:
            return True
        if answer in _UNSUPPORTED:
            return False
        if answer not in (errno.EWOULDBLOCK, errno.EINTR):
            raise store_error(path.parent.parent, OSError(answer, os.strerror(answer), str(path)))
        if clock.monotonic() >= deadline:
            raise StoreError(
                f"The store '{path.parent.parent}' is in use{_holder(path)}; try again when that has ended."
            )
        clock.sleep(_POLL_S)


def _try(file: int, operation: int) -> int:
    """Asks for a lock once; returns 0 or the number of the error."""
    try:
        fcntl.flock(file, operation | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno or errno.EIO
    return 0


def _keeps_out(path: Path) -> bool:
    """Tries to take an exclusive lock a second time: some network file systems let everybody have it."""
    second = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        return _try(second, fcntl.LOCK_SH) == errno.EWOULDBLOCK
    finally:
        os.close(second)


def _sign(file: int, purpose: str) -> None:
    """Writes who has the lock; only a help for people, so that a full disk does not matter."""
    text = json.dumps({"purpose": purpose, "process": os.getpid(), "host": socket.gethostname(), "since": time.time()})
    with suppress(OSError):
        os.ftruncate(file, 0)
        os.pwrite(file, text.encode(), 0)


def _holder(path: Path) -> str:
    try:
        holder = json.loads(path.read_bytes()[:4096])
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(holder["since"]))
        return f" by process {holder['process']:d} on {holder['host']!s:.100} since {since} ({holder['purpose']!s:.40})"
    except (OSError, ValueError, TypeError, KeyError, OverflowError):
        return ""
