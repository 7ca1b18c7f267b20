"""Files that the store keeps besides models' own: its version, `snapshot.json`, and pointers such as `current`."""

from __future__ import annotations

import errno
import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vllm_mxext.errors import StoreError, UnsafeFileError
from vllm_mxext.hub.safety import check_path
from vllm_mxext.hub.store import names
from vllm_mxext.hub.store.failures import storing
from vllm_mxext.hub.store.snapshot import Snapshot, StoredFile

VERSION = 1
MODELS = "models"
SNAPSHOT = "snapshot.json"
NO_LINKS = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EXDEV, errno.EMLINK, errno.EINVAL)
"""What file systems without links, and those with limits on them, answer."""

_VERSION_FILE = "layout"
_WRONG = (UnsafeFileError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)
"""What reading a description raises that somebody else has written."""


def check(folder: Path) -> None:
    """Refuses a folder that this version cannot read as a store.

    Raises:
        StoreError: it is a file, may not be read, or a newer version has made it.
    """
    with storing(folder):
        try:
            text = (folder / _VERSION_FILE).read_bytes()[:100].decode(errors="replace").strip()
        except FileNotFoundError:
            return
    if not text.isdecimal():
        raise StoreError(f"'{folder}' is no folder of models: its file '{_VERSION_FILE}' is none of a store's.")
    if int(text) > VERSION:
        raise StoreError(
            f"The store '{folder}' was made by a newer version (layout {text}, known here: {VERSION}); update this "
            "one, or name another folder with --download-dir."
        )


def prepare(folder: Path) -> None:
    """Makes a folder a store if it is none yet.

    Raises:
        StoreError: it cannot be written.
    """
    check(folder)
    with storing(folder):
        (folder / MODELS).mkdir(parents=True, exist_ok=True)
        if not (folder / _VERSION_FILE).exists():
            replace_file(folder / _VERSION_FILE, f"{VERSION}\n".encode())


def subfolders(folder: Path) -> Iterator[Path]:
    """Yields the folders of a model, or of `models/`, that are not being built or removed, by name."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return
    for entry in entries:
        if entry.name[0] != "." and entry.name != names.REFS and entry.is_dir(follow_symlinks=False):
            yield Path(entry.path)


def read_snapshot(folder: Path) -> Snapshot | None:
    """Reads what a folder's `snapshot.json` says; None if there is none or it is damaged."""
    try:
        return _parse(json.loads((folder / SNAPSHOT).read_bytes()), folder)
    except (FileNotFoundError, NotADirectoryError, *_WRONG):
        return None


def snapshot_bytes(snapshot: Snapshot) -> bytes:
    """Returns the content of `snapshot.json`."""
    content = {
        "name": snapshot.name,
        "revision": snapshot.revision,
        "uri": snapshot.uri,
        "created": snapshot.created_s,
        "files": [{"path": file.path, "size": file.size, "sha256": file.sha256} for file in snapshot.files],
    }
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()


def read_pointer(path: Path) -> str | None:
    """Returns the name that `current` or a ref points to; None if it is missing or broken."""
    lines = read_lines(path)
    return lines[0] if lines and "/" not in lines[0] else None


def read_lines(path: Path) -> list[str]:
    """Returns the lines of a pointer: where a link leads, or the text of a file; none if there is none."""
    try:
        return [os.readlink(path)]
    except FileNotFoundError:
        return []
    except OSError:  # not a link
        try:
            return path.read_bytes()[:4096].decode().splitlines()
        except (OSError, UnicodeDecodeError):
            return []


def write_pointer(path: Path, target: str, *, is_link: bool) -> None:
    """Makes a name point elsewhere in one step, by a link or, where there are none, by a small file.

    Raises:
        OSError: it cannot be written.
    """
    if read_lines(path) == target.splitlines():
        return
    if not is_link:
        replace_file(path, f"{target}\n".encode())
        return
    hidden = _beside(path)
    try:
        os.symlink(target, hidden)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        replace_file(path, f"{target}\n".encode())
        return
    _swap(hidden, path)


def replace_file(path: Path, content: bytes) -> None:
    """Writes a small file that is there whole or not at all, also after a power cut.

    Raises:
        OSError: it cannot be written.
    """
    hidden = _beside(path)
    try:
        write_file(hidden, content)
    except OSError:
        hidden.unlink(missing_ok=True)
        raise
    _swap(hidden, path)


def write_file(path: Path, content: bytes) -> None:
    """Writes a new file to the disk itself.

    Raises:
        OSError: it cannot be written.
    """
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync(folder: Path) -> None:
    """Makes sure that names in a folder outlive a power cut, where the file system can."""
    try:
        file = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(file)
    except OSError:
        pass
    finally:
        os.close(file)


def _beside(path: Path) -> Path:
    return path.parent / f".{path.name}-{secrets.token_hex(8)}"


def _swap(hidden: Path, path: Path) -> None:
    try:
        os.replace(hidden, path)
    except OSError:
        hidden.unlink(missing_ok=True)
        raise
    sync(path.parent)


def _parse(content: Any, folder: Path) -> Snapshot:
    files = tuple(
        StoredFile(str(check_path(one["path"])), int(one["size"]), str(one["sha256"])) for one in content["files"]
    )
    return Snapshot(
        str(content["name"]),
        str(content["revision"]),
        str(content["uri"]),
        files,
        folder,
        created_s=float(content["created"]),
    )
