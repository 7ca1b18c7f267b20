"""`verify` and `repair`: are stored files still what was published, and only what is not is downloaded again."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

from vllm_mxext.hub.progress import Listener, ignore
from vllm_mxext.hub.store import linking
from vllm_mxext.hub.store.failures import storing
from vllm_mxext.hub.store.model_store import ModelStore
from vllm_mxext.hub.store.reading_meter import ReadingMeter, label
from vllm_mxext.hub.store.snapshot import Snapshot, StoredFile

if TYPE_CHECKING:
    from vllm_mxext.config.hub import NetworkConfig
    from vllm_mxext.hub.transfer.fetch import Wanted

_BLOCK_BYTES = 2**20


class FileState(str, Enum):
    """How a stored file is."""

    OK = "ok"
    MISSING = "missing"
    WRONG_SIZE = "wrong size"
    DAMAGED = "damaged"


@dataclass(frozen=True, slots=True)
class FileReport:
    """One file of one snapshot.

    Attributes:
        snapshot: where it belongs.
        file: as it should be.
        state: how it is.
        bad_chunks: numbers of those that differ; None if that is not known, or all of it is needed.
    """

    snapshot: Snapshot
    file: StoredFile
    state: FileState
    bad_chunks: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """All files that were looked at.

    Attributes:
        files: by snapshot and path.
    """

    files: tuple[FileReport, ...]

    @property
    def faults(self) -> tuple[FileReport, ...]:
        """Those that are not as they should be."""
        return tuple(one for one in self.files if one.state is not FileState.OK)


def verify(
    store: ModelStore,
    snapshots: Sequence[Snapshot],
    *,
    is_quick: bool = False,
    num_threads: int = 4,
    listener: Listener = ignore,
    monotonic: Callable[[], float] = time.monotonic,
) -> VerifyReport:
    """Reads files again and compares them with what was published; what several snapshots share is read once.

    Args:
        store: where they are.
        snapshots: whose files.
        is_quick: look only whether they are there in their sizes.
        num_threads: that read.
        listener: told about progress.
        monotonic: seconds.

    Raises:
        StoreError: files may not be read.
    """
    wanted = [(one, file) for one in snapshots for file in sorted(one.files, key=lambda file: file.path)]
    with storing(store.folder):
        places = {(os.path.realpath(one.folder / file.path), file) for one, file in wanted}
        contents = {(place, file.size, file.sha256) for place, file in places}
        meter = ReadingMeter(label(snapshots), [size for _, size, _ in contents], listener, monotonic)

        def look(content: tuple[str, int, str]) -> tuple[FileState, tuple[int, ...] | None]:
            state = _state(store, content, None if is_quick else meter.add)
            meter.finish()
            return state

        with ThreadPoolExecutor(max(1, num_threads), "verify") as pool:
            ordered = sorted(contents)
            states = dict(zip(ordered, pool.map(look, ordered), strict=True))
    reports = []
    for snapshot, file in wanted:
        state, bad_chunks = states[os.path.realpath(snapshot.folder / file.path), file.size, file.sha256]
        reports.append(FileReport(snapshot, file, state, bad_chunks))
    return VerifyReport(tuple(reports))


def repair(
    store: ModelStore,
    faults: Iterable[FileReport],
    find: Callable[[FileReport], Wanted],
    config: NetworkConfig,
    *,
    listener: Listener = ignore,
) -> tuple[FileReport, ...]:
    """Downloads what is missing of stored files: only the chunks that differ, if it is known which.

    Args:
        store: where they are.
        faults: what `verify()` found.
        find: tells where a file can be had again.
        config: how connections are made.
        listener: told about progress.

    Returns:
        The files that are as they should be again.

    Raises:
        DownloadError: a source does not give it.
        ChecksumError: a source gives something else.
        StoreError: the store cannot be written.
    """
    from vllm_mxext.hub.transfer.fetch import fetch  # noqa: PLC0415 - only downloads pay for it
    from vllm_mxext.hub.transfer.repair import repair_blob  # noqa: PLC0415

    done = tuple(one for one in faults if one.state is not FileState.OK)
    with store.adding("repair"):
        for fault in {one.file.sha256: one for one in done}.values():
            sha256, name = fault.file.sha256, fault.snapshot.name
            content = (os.fspath(store.blobs.path(sha256)), fault.file.size, sha256)
            with storing(store.folder):  # a damaged copy of a good file needs no download
                state, bad_chunks = _state(store, content, lambda _: None)
            if state is FileState.MISSING:
                fetch([find(fault)], store.blobs, config, model=name, listener=listener)
            elif state is not FileState.OK:
                repair_blob(sha256, bad_chunks or (), find(fault), store.blobs, config, model=name, listener=listener)
        for snapshot in {one.snapshot.folder: one.snapshot for one in done}.values():
            with storing(store.folder):
                _relink(store, snapshot)
    return done


def _relink(store: ModelStore, snapshot: Snapshot) -> None:
    """Makes a snapshot's folder anew if it does not show the repaired files: it has copies, or links to others."""
    if all(_shows(snapshot.folder / file.path, store.blobs.find(file.sha256)) for file in snapshot.files):
        return
    current = store.snapshot(snapshot.name)
    was_current = store.is_current(snapshot)
    store.discard(snapshot.folder)
    store.publish(
        snapshot.name, snapshot.revision, snapshot.uri, snapshot.files, asked_revision=snapshot.asked_revision
    )
    if current is not None and not was_current:
        store.switch(current)


def _shows(path: Path, blob: Path | None) -> bool:
    try:
        return blob is not None and os.path.samefile(path, blob)
    except FileNotFoundError:
        return False


def _state(
    store: ModelStore, content: tuple[str, int, str], report: Callable[[int], None] | None
) -> tuple[FileState, tuple[int, ...] | None]:
    """Looks at one file; without `report`, only at its size."""
    place, size, sha256 = content
    found = linking.size_of(Path(place))
    if found is None:
        return FileState.MISSING, None
    if found != size:
        return FileState.WRONG_SIZE, None
    if report is None:
        return FileState.OK, None
    try:
        if _hash(Path(place), report) == sha256:
            return FileState.OK, None
        return FileState.DAMAGED, _bad_chunks(store, Path(place), sha256)
    except PermissionError:
        raise
    except OSError:  # the disk cannot read it any more
        return FileState.DAMAGED, None


def _hash(path: Path, report: Callable[[int], None]) -> str:
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
            report(len(block))
    return digest.hexdigest()


def _bad_chunks(store: ModelStore, path: Path, sha256: str) -> tuple[int, ...] | None:
    expected = store.blobs.chunk_hashes(sha256)
    if not expected:
        return None
    bad = []
    with path.open("rb") as file:
        for number, digest in enumerate(expected):
            if hashlib.sha256(file.read(store.blobs.chunk_bytes)).hexdigest() != digest:
                bad.append(number)
    return tuple(bad) or None
