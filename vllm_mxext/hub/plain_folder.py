"""`write_plain_folder()`: a model as a folder of ordinary files, which belongs to nobody's store."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from vllm_mxext.errors import ChecksumError, HubCause, StoreError
from vllm_mxext.hub.store.snapshot import Snapshot

_BLOCK = 1 << 20
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_PERMISSION = (errno.EACCES, errno.EPERM, errno.EROFS)
_LAST = "config.json"
"""What engines look for first: it becomes visible last where a folder cannot be renamed as a whole."""


def write_plain_folder(source: Path, snapshot: Snapshot | None, target: Path) -> int:
    """Copies a model; the folder appears whole or not at all.

    Args:
        source: folder with the model's files.
        snapshot: its files with their digests, which are checked; None = all files of the folder, as they are.
        target: folder to make; may be there if it is empty.

    Returns:
        Bytes that were written.

    Raises:
        StoreError: the target is not empty, cannot be written, or there is no space.
        ChecksumError: a stored file is damaged.
    """
    target = target.absolute()
    digests = _digests(source, snapshot)
    try:
        _check_target(target)
        _check_space(target, sum((source / path).stat().st_size for path in digests))
        hidden = _hidden(target)
        try:
            size = sum(_copy(source / path, hidden / path, digest) for path, digest in digests.items())
            _show(hidden, target)
        finally:
            shutil.rmtree(hidden, ignore_errors=True)
    except OSError as error:
        raise _failed(target, error) from error
    return size


def _digests(source: Path, snapshot: Snapshot | None) -> Mapping[str, str | None]:
    if snapshot is not None:
        return {file.path: file.sha256 for file in snapshot.files}
    return {file.relative_to(source).as_posix(): None for file in _files(source)}


def _files(folder: Path) -> Iterator[Path]:
    return (file for file in sorted(folder.rglob("*")) if file.is_file())


def _check_target(target: Path) -> None:
    if target.is_dir():
        if any(target.iterdir()):
            raise StoreError(f"The folder '{target}' is not empty and is left alone; name another one.")
    elif os.path.lexists(target):
        raise StoreError(f"'{target}' is there and is no folder; name another one.")
    else:
        target.parent.mkdir(parents=True, exist_ok=True)


def _check_space(target: Path, size: int) -> None:
    free = shutil.disk_usage(target if target.is_dir() else target.parent).free
    if free < size:
        raise OSError(errno.ENOSPC, f"{size:,} bytes are needed and {free:,} are free")


def _hidden(target: Path) -> Path:
    """Makes the folder that is filled: beside the target, or inside it where that is not allowed or another disk."""
    name = f".{target.name}-{secrets.token_hex(6)}"
    is_beside = not target.is_dir() or (
        os.access(target.parent, os.W_OK) and target.stat().st_dev == target.parent.stat().st_dev
    )
    hidden = (target.parent if is_beside else target) / name
    hidden.mkdir()
    return hidden


def _copy(source: Path, copy: Path, digest: str | None) -> int:
    copy.parent.mkdir(parents=True, exist_ok=True)
    seen, size = hashlib.sha256(), 0
    with source.open("rb") as given, copy.open("xb") as file:
        while block := given.read(_BLOCK):
            seen.update(block)
            file.write(block)
            size += len(block)
        file.flush()
        os.fsync(file.fileno())
    if digest is not None and seen.hexdigest() != digest:
        raise ChecksumError(f"'{source}' is damaged; run `mxext hub repair` and try again.")
    return size


def _show(hidden: Path, target: Path) -> None:
    if hidden.parent == target:
        for entry in sorted(hidden.iterdir(), key=lambda path: path.name == _LAST):
            entry.rename(target / entry.name)
    else:
        hidden.rename(target)


def _failed(target: Path, error: OSError) -> StoreError:
    reason = error.strerror or str(error)
    if error.errno in _NO_SPACE:
        return StoreError(
            f"There is not enough space for '{target}' ({reason}); free some or name another folder.",
            cause=HubCause.NO_SPACE,
        )
    if error.errno in _NO_PERMISSION:
        return StoreError(
            f"The folder '{target}' cannot be written ({reason}); give this user the right to it or name another one.",
            cause=HubCause.NO_PERMISSION,
        )
    return StoreError(f"The folder '{target}' cannot be written: {reason}.")
