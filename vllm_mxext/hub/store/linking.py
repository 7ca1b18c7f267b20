"""Folders of snapshots: links into the blobs, or copies where there are no links; whether all is there."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from pathlib import Path

from vllm_mxext.errors import HubCause, StoreError
from vllm_mxext.hub.store import layout
from vllm_mxext.hub.store.blobs import BlobStore, is_sha256
from vllm_mxext.hub.store.snapshot import Snapshot, StoredFile

_MISSING = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)


def build(snapshot: Snapshot, folder: Path, blobs: BlobStore, store: Path) -> None:
    """Makes a new folder with all files of a snapshot and its `snapshot.json`.

    Args:
        snapshot: what goes into it.
        folder: does not exist yet; as deep in the store as it will be under its final name.
        blobs: where the files are.
        store: folder of the store; links do not name it, so that it can be moved.

    Raises:
        StoreError: a blob is not there or has another size.
        OSError: the folder cannot be written.
    """
    os.mkdir(folder)
    folders = {folder}
    for file in snapshot.files:
        blob = _blob(file, snapshot, blobs)
        path = folder / file.path
        if path.parent not in folders:
            path.parent.mkdir(parents=True, exist_ok=True)
            folders |= {path.parent, *(one for one in path.parent.parents if folder in one.parents)}
        _place(blob, path, store)
    layout.write_file(folder / layout.SNAPSHOT, layout.snapshot_bytes(snapshot))
    for one in folders:
        layout.sync(one)


def is_whole(snapshot: Snapshot) -> bool:
    """Whether all files are there in their sizes.

    Raises:
        OSError: somebody else keeps us from looking.
    """
    return all(size_of(snapshot.folder / file.path) == file.size for file in snapshot.files)


def size_of(path: Path) -> int | None:
    """Returns the bytes of a file, through links; None if it is not there.

    Raises:
        OSError: it may not be looked at.
    """
    try:
        return os.stat(path).st_size
    except OSError as error:
        if error.errno in _MISSING:
            return None
        raise


def _blob(file: StoredFile, snapshot: Snapshot, blobs: BlobStore) -> Path:
    blob = blobs.find(file.sha256) if is_sha256(file.sha256) else None
    if blob is None or size_of(blob) != file.size:
        raise StoreError(
            f"The file '{file.path}' of {snapshot.name} is not in the store as it should be; pull the model again.",
            cause=HubCause.DAMAGED,
        )
    return blob


def _place(blob: Path, path: Path, store: Path) -> None:
    is_own = blob.is_relative_to(store)
    if is_own:
        with contextlib.suppress(OSError):
            os.utime(blob)  # young again, for a gc that cannot lock
    try:
        os.symlink(os.path.relpath(blob, path.parent) if is_own else blob.resolve(), path)
    except OSError as error:
        if error.errno not in layout.NO_LINKS:
            raise
        _place_without_links(blob, path)


def _place_without_links(blob: Path, path: Path) -> None:
    try:
        os.link(blob, path)
    except OSError as error:
        if error.errno not in layout.NO_LINKS:
            raise
        shutil.copyfile(blob, path)
        with path.open("rb+") as file:
            os.fsync(file.fileno())
        path.chmod(0o444)
