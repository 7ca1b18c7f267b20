"""`export` and `import`: models as one file, for machines without a network; nothing of a wrong one is published.

A bundle is a tar archive of `manifest-<its SHA-256>.json` and, in the order of their digests, `blobs/sha256-<digest>`.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from vllm_mxext.errors import ChecksumError, HubCause, StoreError, UnsafeFileError
from vllm_mxext.hub.content_safety import check_content
from vllm_mxext.hub.progress import Listener, ignore
from vllm_mxext.hub.store import layout, linking
from vllm_mxext.hub.store.bundle_manifest import MAX_BYTES, BundleManifest, from_bytes, manifest_of, to_bytes
from vllm_mxext.hub.store.failures import store_error, storing
from vllm_mxext.hub.store.model_store import ModelStore
from vllm_mxext.hub.store.reading_meter import ReadingMeter, label
from vllm_mxext.hub.store.snapshot import Snapshot
from vllm_mxext.hub.store.tar_stream import TarEntry, TarReader, TarWriter, damaged

_READ_BYTES = 2**20


def export_bundle(
    snapshots: Sequence[Snapshot],
    file: Path,
    *,
    listener: Listener = ignore,
    monotonic: Callable[[], float] = time.monotonic,
) -> None:
    """Writes models into one file; it is there when it is whole, and equal models make equal bytes.

    Raises:
        ChecksumError: a stored file is damaged.
        StoreError: one is missing, or the bundle cannot be written.
    """
    manifest = manifest_of(snapshots)
    _check_whole(snapshots)
    places = {one.sha256: snapshot.folder / one.path for snapshot in snapshots for one in snapshot.files}
    meter = ReadingMeter(label(snapshots), [*manifest.sizes.values()], listener, monotonic, "export")
    hidden = file.parent / f".{file.name}-{secrets.token_hex(8)}"
    try:
        _check_space(file.parent, sum(manifest.sizes.values()))
        with hidden.open("xb") as stream:
            writer = TarWriter(stream)
            content = to_bytes(manifest)
            writer.add(TarEntry(_manifest_name(content), len(content)), iter([content]), lambda _: None)
            for sha256, size in manifest.sizes.items():
                writer.add(_entry(sha256, size), _verified(places[sha256], sha256, size), meter.add)
                meter.finish()
            writer.finish()
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(hidden, file)
    except OSError as error:
        raise StoreError(
            f"The bundle '{file}' cannot be written ({error.strerror}); name a file in a folder that has space for "
            f"{sum(manifest.sizes.values()) / 1e9:.2f} GB and may be written to.",
            cause=store_error(file.parent, error).cause,
        ) from error
    finally:
        with suppress(OSError):
            hidden.unlink(missing_ok=True)


def import_bundle(
    store: ModelStore,
    file: Path,
    *,
    allows_pickle: bool = False,
    allows_code: bool = False,
    listener: Listener = ignore,
    monotonic: Callable[[], float] = time.monotonic,
) -> tuple[Snapshot, ...]:
    """Publishes the models of a bundle, if every byte of it is as it says.

    Args:
        store: where to.
        file: the bundle; also a pipe.
        allows_pickle: files that run programs when they are loaded are taken.
        allows_code: programs are taken.
        listener: told about progress.
        monotonic: seconds.

    Raises:
        ChecksumError: a file is not the one that the bundle declares.
        UnsafeFileError: the bundle has anything that is refused.
        StoreError: it is cut off or damaged, or the store cannot be written.
    """
    layout.prepare(store.folder)
    work = store.folder / "partial" / f"import.{os.getpid()}-{secrets.token_hex(8)}"
    with store.adding("import"), storing(store.folder):
        work.mkdir(parents=True)
        try:
            with _opened(file) as stream:
                reader = TarReader(stream)
                content = _manifest_bytes(reader)
                manifest = from_bytes(content, allows_pickle=allows_pickle, allows_code=allows_code)
                missing = {sha256: size for sha256, size in manifest.sizes.items() if store.blobs.find(sha256) is None}
                _check_space(store.folder, sum(missing.values()))
                sizes = [*manifest.sizes.values()]
                meter = ReadingMeter(label(manifest.models), sizes, listener, monotonic, "import")
                arrived = [_receive(reader, store, work, one, meter) for one in manifest.sizes.items()]
                if reader.next_entry() is not None:
                    raise UnsafeFileError("The bundle is refused: it holds files that it does not declare.")
            _check_contents(manifest, arrived, allows_pickle=allows_pickle, allows_code=allows_code)
            for one in arrived:
                if one.is_new:
                    store.blobs.adopt(one.file, one.sha256, one.chunk_hashes)
            return tuple(
                store.publish(one.name, one.revision, one.uri, one.files, asked_revision=one.asked_revision)
                for one in manifest.models
            )
        finally:
            shutil.rmtree(work, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class _Arrived:
    """A file of a bundle, verified; not in the store yet if it is new."""

    sha256: str
    file: Path
    is_new: bool
    chunk_hashes: tuple[str, ...]


def _receive(
    reader: TarReader, store: ModelStore, work: Path, declared: tuple[str, int], meter: ReadingMeter
) -> _Arrived:
    sha256, size = declared
    entry = reader.next_entry()
    if entry is None:
        raise damaged("a file that it declares is missing")
    if entry != _entry(sha256, size):
        raise UnsafeFileError(
            f"The bundle is refused: it has '{entry.name}' with {entry.size} bytes where it declares {size} bytes of "
            f"{sha256[:16]}...; export it again."
        )
    there = store.blobs.find(sha256)
    digest, chunk, chunk_hashes = hashlib.sha256(), hashlib.sha256(), []
    chunk_bytes, num_in_chunk = store.blobs.chunk_bytes, 0
    with Path(os.devnull if there else work / sha256).open("wb") as target:
        for piece in reader.data(entry):
            digest.update(piece)
            target.write(piece)
            for start, end in _cuts(len(piece), num_in_chunk, chunk_bytes):
                chunk.update(memoryview(piece)[start:end])
                num_in_chunk += end - start
                if num_in_chunk == chunk_bytes:
                    chunk_hashes.append(chunk.hexdigest())
                    chunk, num_in_chunk = hashlib.sha256(), 0
            meter.add(len(piece))
    if digest.hexdigest() != sha256:
        raise ChecksumError(
            f"The bundle is damaged: the file {sha256[:16]}... has other content than it declares; copy it here again."
        )
    if num_in_chunk:
        chunk_hashes.append(chunk.hexdigest())
    meter.finish()
    return _Arrived(sha256, there or work / sha256, there is None, tuple(chunk_hashes))


def _cuts(num_bytes: int, num_in_chunk: int, chunk_bytes: int) -> Iterator[tuple[int, int]]:
    """Yields the parts of a piece that belong to one chunk each."""
    start = 0
    while start < num_bytes:
        end = min(num_bytes, start + chunk_bytes - num_in_chunk)
        yield start, end
        start, num_in_chunk = end, 0


def _check_contents(
    manifest: BundleManifest, arrived: Sequence[_Arrived], *, allows_pickle: bool, allows_code: bool
) -> None:
    places = {one.sha256: one.file for one in arrived}
    for model in manifest.models:
        for file in model.files:
            check_content(places[file.sha256], file.path, allows_pickle=allows_pickle, allows_code=allows_code)


def _check_whole(snapshots: Sequence[Snapshot]) -> None:
    for one in snapshots:
        with storing(one.folder):
            if not linking.is_whole(one):
                raise StoreError(
                    f"{one.name} at revision {one.revision} lacks files; repair it with `mxext hub repair`, and export "
                    "again.",
                    cause=HubCause.DAMAGED,
                )


def _manifest_bytes(reader: TarReader) -> bytes:
    entry = reader.next_entry()
    if entry is None or not entry.name.startswith("manifest-") or entry.size > MAX_BYTES:
        raise StoreError(
            "The file is no bundle of models: it does not begin with their list; make one with `mxext hub export`."
        )
    content = b"".join(reader.data(entry))
    if entry.name != _manifest_name(content):
        raise damaged("its list of models is not what was exported")
    return content


def _manifest_name(content: bytes) -> str:
    return f"manifest-{hashlib.sha256(content).hexdigest()}.json"


def _verified(place: Path, sha256: str, size: int) -> Iterator[bytes]:
    """Yields a stored file, which has to be what it was."""
    digest, left = hashlib.sha256(), size
    with place.open("rb", buffering=0) as stream:
        while left and (piece := stream.read(min(left, _READ_BYTES))):
            digest.update(piece)
            left -= len(piece)
            yield piece
    if digest.hexdigest() != sha256:
        raise ChecksumError(f"'{place}' is damaged; repair it with `mxext hub repair`, and export again.")


def _entry(sha256: str, size: int) -> TarEntry:
    return TarEntry(f"blobs/sha256-{sha256}", size)


def _opened(file: Path) -> IO[bytes]:
    try:
        return file.open("rb")
    except OSError as error:
        raise StoreError(
            f"The bundle '{file}' cannot be read ({error.strerror}); check its name.", cause=HubCause.NOT_FOUND
        ) from error


def _check_space(folder: Path, num_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if num_bytes > free:
        raise StoreError(
            f"There is no space for {num_bytes / 1e9:.2f} GB in '{folder}', only {free / 1e9:.2f} GB are free; free "
            "some, for example with `mxext hub gc`, or name another folder.",
            cause=HubCause.NO_SPACE,
        )
