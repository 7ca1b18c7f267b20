"""A source in memory that misbehaves as told, for tests of downloads."""

from __future__ import annotations

import hashlib
import itertools
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from vllm_mxext.config.hub import NetworkConfig
from vllm_mxext.errors import TransferError
from vllm_mxext.hub.sources.interface import Listing, RemoteFile
from vllm_mxext.hub.store.blobs import BlobStore
from vllm_mxext.hub.transfer.fetch import Fetched, Wanted, fetch
from vllm_mxext.hub.transfer.order import Tuning

CHUNK = 1000
RANGE_CHUNKS = 3
TUNING = Tuning(range_chunks=RANGE_CHUNKS, num_attempts=4, spare_bytes=0, busy_s=0.01)


def noise(size: int, seed: int = 0) -> bytes:
    """Returns random bytes, the same each time."""
    return random.Random(seed).randbytes(size)


def sha256(data: bytes) -> str:
    """Returns a digest."""
    return hashlib.sha256(data).hexdigest()


class NoWaiting:
    """A clock whose sleepers return at once; it goes on by what they wanted to sleep."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.slept_s: list[float] = []

    def monotonic(self) -> float:
        return self.now_s

    def sleep(self, seconds: float, halt: threading.Event) -> None:
        self.slept_s.append(seconds)
        self.now_s += seconds


@dataclass
class Ask:
    """One request, and what a test makes of its answer.

    Attributes:
        number: of the request, from 0.
        data: what the file holds now.
        cuts_at: the connection breaks after so many bytes of the answer.
        ends_at: the answer ends after so many bytes, as if that were all.
        total_size: what the answer says.
    """

    number: int
    path: str
    start: int
    end: int | None
    validator: str | None
    data: bytes
    answer_validator: str | None
    total_size: int | None
    ignores_range: bool = False
    ignores_if_range: bool = False
    cuts_at: int | None = None
    ends_at: int | None = None
    error: Exception | None = None


Meddling = Callable[[Ask], None]


@dataclass
class FakeSource:
    """Files in memory.

    Attributes:
        contents: path -> bytes.
        validators: path -> strong validator; without one there is none.
        meddle: looks at each request and says how it is answered.
        piece: bytes per piece of an answer.
        on_piece: called before each piece with the number of all bytes served so far.
    """

    contents: dict[str, bytes]
    validators: dict[str, str] = field(default_factory=dict)
    meddle: Meddling = lambda ask: None
    piece: int = 128
    on_piece: Callable[[int], None] = lambda served: None
    uri: str = "fake://model"
    has_digests: bool = True
    has_sizes: bool = True

    def __post_init__(self) -> None:
        self.asks: list[Ask] = []
        self.num_served = 0
        self._numbers = itertools.count()
        self._lock = threading.Lock()

    def list_files(self) -> Listing:
        files = (
            RemoteFile(
                path,
                len(data) if self.has_sizes else None,
                sha256(data) if self.has_digests else None,
                f"locator/{path}",
            )
            for path, data in sorted(self.contents.items())
        )
        return Listing("r1", tuple(files))

    def wanted(self) -> list[Wanted]:
        return [Wanted(file, self) for file in self.list_files().files]

    def open_range(self, file: RemoteFile, start: int, end: int | None, validator: str | None) -> FakeRange:
        data = self.contents[file.path]
        ask = Ask(
            next(self._numbers), file.path, start, end, validator, data, self.validators.get(file.path), len(data)
        )
        with self._lock:
            self.asks.append(ask)
        self.meddle(ask)
        if ask.error is not None:
            raise ask.error
        return FakeRange(self, ask)

    def count(self, num_bytes: int) -> None:
        with self._lock:
            self.on_piece(self.num_served)
            self.num_served += num_bytes

    def close(self) -> None:
        pass


class FakeRange:
    """One answer."""

    def __init__(self, source: FakeSource, ask: Ask) -> None:
        is_changed = ask.validator is not None and ask.validator != ask.answer_validator and not ask.ignores_if_range
        is_whole = is_changed or ask.ignores_range
        self.start = 0 if is_whole else ask.start
        self.total_size = ask.total_size
        self.validator = ask.answer_validator
        self._data = ask.data[self.start : None if is_whole else ask.end]
        self._source = source
        self._ask = ask

    def chunks(self) -> Iterator[bytes]:
        ask = self._ask
        limit = min([len(self._data), *(at for at in (ask.cuts_at, ask.ends_at) if at is not None)])
        for offset in range(0, limit, self._source.piece):
            piece = self._data[offset : min(limit, offset + self._source.piece)]
            self._source.count(len(piece))
            yield piece
        if ask.cuts_at is not None and ask.cuts_at <= len(self._data):
            raise TransferError("The connection broke; try again.")

    def __enter__(self) -> FakeRange:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


def pull(
    source: FakeSource, folder: Path, *, connections: int = 1, tuning: Tuning = TUNING, **options: object
) -> tuple[Fetched, ...]:
    """Fetches everything that a source has."""
    options.setdefault("clock", NoWaiting())
    return fetch(
        source.wanted(),
        BlobStore(folder, CHUNK),
        NetworkConfig(num_connections=connections),
        model="org/model",
        tuning=tuning,
        **options,  # type: ignore[arg-type]
    )


def content(folder: Path, data: bytes) -> bytes:
    """Returns what the store has under the digest of these bytes."""
    path = BlobStore(folder, CHUNK).find(sha256(data))
    assert path is not None
    return path.read_bytes()


def litter(folder: Path) -> list[str]:
    """Returns what is left beside blobs."""
    return sorted(
        str(path.relative_to(folder))
        for name in ("partial", "locks")
        for path in (folder / name).rglob("*")
        if path.is_file()
    )
