"""Kills downloads at random bytes and resumes them; starts pullers of one file at once, with and without locks.

    python -m tests.e2e.hub_kills --times 200

Every kill is a `kill -9` of a process that has received a random number of bytes, over HTTP from a server in this
process. What it had written and the next one did not use is waste. The last line is one JSON object; the exit code is 1
if a digest was wrong, anything was half-published, or more than one chunk per connection was wasted.
"""

from __future__ import annotations

import argparse
import errno
import fcntl
import hashlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.hub_servers.stand_in import Answer, Asked, StandIn, file_answer
from vllm_mxext.config.hub import NetworkConfig
from vllm_mxext.hub.network import Network
from vllm_mxext.hub.sources.interface import Listing, Range, RemoteFile, Source
from vllm_mxext.hub.sources.opening import open_source
from vllm_mxext.hub.store.blobs import BlobStore
from vllm_mxext.hub.transfer.fetch import Wanted, fetch
from vllm_mxext.hub.transfer.order import Tuning

CHUNK = 128 * 1024
SIZE = 40 * CHUNK + 12_345
TUNING = Tuning(range_chunks=4, busy_s=0.05)
NAME = "model.safetensors"


class FileServer(StandIn):
    """Serves one file.

    Attributes:
        file: it.
        num_bytes: of all bodies that clients have asked for, whether they took them or not.
    """

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.file = file
        self.num_bytes = 0
        self._count_lock = threading.Lock()

    def answer(self, asked: Asked) -> Answer:
        answer = file_answer(asked, self.file, '"v1"')
        if asked.method == "GET":
            with self._count_lock:
                self.num_bytes += answer.length
        return answer


@dataclass(frozen=True)
class Errand:
    """What a process is to fetch; picklable.

    Attributes:
        dies_at: number of bytes after which it kills itself; None = it does not.
        tells: file that gets the number of bytes that were asked for; None = nobody wants to know. A server cannot tell
            whom it serves, and answers what a process had asked for before it was killed even later.
        locks: `work`, `raise` (as where there are none) or `lie` (everybody gets every lock).
    """

    url: str
    folder: Path
    sha256: str | None
    connections: int = 1
    dies_at: int | None = None
    tells: Path | None = None
    locks: str = "work"


class MortalSource:
    """A source whose process is killed when it has received so many bytes; the rest is the real one's."""

    def __init__(self, source: Source, dies_at: int | None) -> None:
        self.uri = source.uri
        self._source = source
        self._left = dies_at
        self.num_asked = 0
        self._lock = threading.Lock()

    def list_files(self) -> Listing:
        return self._source.list_files()

    def open_range(self, file: RemoteFile, start: int, end: int | None, validator: str | None) -> Range:
        with self._lock:
            self.num_asked += (SIZE if end is None else end) - start
        return MortalRange(self._source.open_range(file, start, end, validator), self)

    def close(self) -> None:
        self._source.close()

    def receive(self, block: bytes) -> bytes:
        """Returns the bytes, or those that are received before the end of all."""
        if self._left is None:
            return block
        with self._lock:
            block, self._left = block[: self._left], self._left - len(block)
        return block

    @property
    def is_dead(self) -> bool:
        return self._left is not None and self._left <= 0


class MortalRange:
    """One answer."""

    def __init__(self, inner: Range, source: MortalSource) -> None:
        self.start, self.total_size, self.validator = inner.start, inner.total_size, inner.validator
        self._inner = inner
        self._source = source

    def chunks(self) -> Iterator[bytes]:
        for block in self._inner.chunks():
            yield self._source.receive(block)
            if self._source.is_dead:
                os.kill(os.getpid(), signal.SIGKILL)

    def __enter__(self) -> MortalRange:
        self._inner.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._inner.__exit__(kind, error, trace)


def run(errand: Errand) -> None:
    """Fetches the file."""
    if errand.locks != "work":
        fcntl.flock = _no_lock if errand.locks == "raise" else _any_lock
    config = NetworkConfig(num_connections=errand.connections)
    with Network(config) as network:
        source = open_source(f"{errand.url}/{NAME}", None, network)
        (file,) = source.list_files().files
        mortal = MortalSource(source, errand.dies_at)
        wanted = Wanted(replace(file, sha256=errand.sha256), mortal)
        fetch([wanted], BlobStore(errand.folder, CHUNK), config, model="m", tuning=TUNING)
    if errand.tells is not None:
        errand.tells.write_text(str(mortal.num_asked))


def _no_lock(file: int, operation: int) -> None:
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))


def _any_lock(file: int, operation: int) -> None:
    pass


def processes() -> Any:
    """Makes processes that have imported what downloads need, and share nothing with this one."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "httpx", "vllm_mxext.hub.sources.web"])
    return context


def start(context: Any, errand: Errand) -> Any:
    """Starts a process with an errand."""
    process = context.Process(target=run, args=(errand,))
    process.start()
    return process


def make_file(path: Path, seed: int) -> str:
    """Writes a file without a zero byte, so that what has been written of a copy can be told; returns its digest."""
    table = bytes([byte or 1 for byte in range(256)])
    path.write_bytes(random.Random(seed).randbytes(SIZE).translate(table))
    return hashlib.sha256(path.read_bytes()).hexdigest()


@dataclass(frozen=True)
class Outcome:
    """What came of one kill.

    Attributes:
        was_killed: it was, before it was done.
        written: bytes that had been written.
        kept: of these, bytes that the next process did not ask for again.
    """

    was_killed: bool
    written: int
    kept: int

    @property
    def wasted(self) -> int:
        """Bytes that were written and asked for again."""
        return self.written - self.kept


class WrongError(Exception):
    """What must never happen."""


def kill_once(context: Any, server: FileServer, sha256: str, folder: Path, chance: random.Random) -> Outcome:
    """Downloads, is killed, downloads again, and checks everything; with or without a digest that is known before."""
    known = chance.choice([sha256, None])
    connections = chance.choice([1, 2, 4])
    errand = Errand(server.url, folder, known, connections, chance.randrange(SIZE + 1))
    blobs = BlobStore(folder, CHUNK)
    process = start(context, errand)
    process.join()
    was_killed = process.exitcode == -signal.SIGKILL
    if not was_killed and process.exitcode != 0:
        raise WrongError(f"the process ended with {process.exitcode}")
    written = _written(folder, server.file)
    if was_killed and list(blobs.digests()):
        raise WrongError("a file was published although its process was killed before")
    told = folder / "asked"
    process = start(context, replace(errand, dies_at=None, connections=chance.choice([1, 2, 4]), tells=told))
    process.join()
    if process.exitcode != 0:
        raise WrongError(f"the second process ended with {process.exitcode}")
    asked = int(told.read_text())
    if list(blobs.digests()) != [sha256] or hashlib.sha256(blobs.path(sha256).read_bytes()).hexdigest() != sha256:
        raise WrongError("the digest is another one")
    if any((folder / "partial").iterdir()):
        raise WrongError("something is left over")
    outcome = Outcome(was_killed, written, SIZE - asked) if was_killed else Outcome(False, 0, 0)
    if outcome.wasted > connections * CHUNK:
        raise WrongError(f"{outcome.wasted} bytes were wasted with {connections} connections")
    return outcome


def _written(folder: Path, original: Path) -> int:
    files = list((folder / "partial").glob("*/data"))
    if not files:
        return 0
    return len(files[0].read_bytes().replace(b"\0", b""))


def kill_often(times: int, seed: int = 0) -> dict[str, Any]:
    """Kills so many downloads; returns figures.

    Raises:
        WrongError: something went wrong.
    """
    chance, context = random.Random(seed), processes()
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / NAME
        sha256 = make_file(file, seed)
        outcomes = []
        with FileServer(file) as server:
            for number in range(times):
                folder = Path(name) / str(number)
                outcomes.append(kill_once(context, server, sha256, folder, chance))
                shutil.rmtree(folder)
    killed = [outcome for outcome in outcomes if outcome.was_killed]
    return {
        "times": times,
        "killed": len(killed),
        "chunk_bytes": CHUNK,
        "size": SIZE,
        "most_wasted_bytes": max(outcome.wasted for outcome in killed),
        "mean_wasted_bytes": round(sum(outcome.wasted for outcome in killed) / len(killed)),
        "mean_kept_share": round(sum(outcome.kept / max(1, outcome.written) for outcome in killed) / len(killed), 3),
    }


def pull_together(num_processes: int, locks: str, folder: Path, seed: int = 1) -> dict[str, Any]:
    """Several processes fetch one file at once, some of which are killed; returns figures.

    Raises:
        WrongError: something went wrong.
    """
    context = processes()
    folder.mkdir(parents=True)
    file = folder / NAME
    sha256 = make_file(file, seed)
    store = folder / "store"
    with FileServer(file) as server:
        errand = Errand(server.url, store, sha256, 2, locks=locks)
        errands = [replace(errand, dies_at=SIZE // 2 if number < 2 else None) for number in range(num_processes)]
        running = [start(context, one) for one in errands]
        for process in running:
            process.join()
        codes = sorted(process.exitcode for process in running)
        blobs = BlobStore(store, CHUNK)
        if list(blobs.digests()) != [sha256]:
            raise WrongError(f"the store has {list(blobs.digests())} after exit codes {codes}")
        if hashlib.sha256(blobs.path(sha256).read_bytes()).hexdigest() != sha256:
            raise WrongError("the digest is another one")
        if any(code not in (0, -signal.SIGKILL) for code in codes):
            raise WrongError(f"exit codes {codes}")
        left = len(list((store / "partial").iterdir()))
    return {
        "locks": locks,
        "processes": num_processes,
        "killed": sum(code != 0 for code in codes),
        "downloads": round(server.num_bytes / SIZE, 2),
        "left_partials": left,
    }


def main() -> int:
    """Runs everything; returns 1 if something went wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    try:
        figures: dict[str, Any] = {"kills": kill_often(arguments.times, arguments.seed)}
        with tempfile.TemporaryDirectory() as name:
            figures["pullers"] = [pull_together(8, locks, Path(name) / locks) for locks in ("work", "raise", "lie")]
    except WrongError as error:
        sys.stderr.write(f"wrong: {error}\n")
        return 1
    sys.stdout.write(json.dumps(figures) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
