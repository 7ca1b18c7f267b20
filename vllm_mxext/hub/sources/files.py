"""`FileSource`: a folder or a file of this machine, or of one that is mounted here."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from urllib.parse import unquote, urlsplit

from vllm_mxext.errors import ConfigError, DownloadError, HubCause, TransferError
from vllm_mxext.hub.network import Network
from vllm_mxext.hub.sources.interface import Listing, RemoteFile
from vllm_mxext.hub.sources.listing import make_listing

_CHUNK_BYTES = 1 << 20
_SKIPPED = frozenset({".git", ".cache", "__pycache__"})


class FileSource:
    """Files below a folder; see `Source`.

    A folder has no revisions to choose from: its revision is a digest of names, sizes and times of change.

    Args:
        uri: `file:///PATH` or a path.
        revision: one that `list_files()` has given before: the files must not have changed; others mean nothing here.
        network: not needed.

    Raises:
        ConfigError: the URI is of another machine.
    """

    def __init__(self, uri: str, revision: str | None, network: Network | None = None) -> None:
        del network
        self.uri = uri
        self._revision = revision
        self.folder = path_of(uri)

    def list_files(self) -> Listing:
        """Lists the files, links to files included; `.git` and caches are left out."""
        what = f"The folder '{self.folder}'"
        try:
            if self.folder.is_file():
                found = [self.folder]
                base = self.folder.parent
            else:
                found, base = list(_files(self.folder)), self.folder
            marked = [_marked(file, base) for file in found]
        except OSError as error:
            raise _error(self.folder, error) from error
        return make_listing(what, marked, name="files", asked_revision=self._revision)

    def open_range(self, file: RemoteFile, start: int, end: int | None, validator: str | None) -> FileRange:
        """Opens a file at `start`."""
        try:
            return FileRange(Path(file.locator), start, end, validator)
        except OSError as error:
            raise _error(Path(file.locator), error) from error

    def close(self) -> None:
        """Has nothing open."""


class FileRange:
    """Bytes of a file; see `Range`.

    Raises:
        OSError: it cannot be opened.
    """

    def __init__(self, path: Path, start: int, end: int | None, validator: str | None) -> None:
        self._path = path
        self._file = open(path, "rb")  # noqa: SIM115 - closed by the context
        stat = os.fstat(self._file.fileno())
        self.total_size: int | None = stat.st_size
        self.validator: str | None = f'"{stat.st_ino:x}-{stat.st_size:x}-{stat.st_mtime_ns:x}"'
        is_other = (validator is not None and validator != self.validator) or start > stat.st_size
        self.start = 0 if is_other else start
        self._end = stat.st_size if end is None or is_other else min(end, stat.st_size)
        self._file.seek(self.start)

    def chunks(self) -> Iterator[bytes]:
        """Yields the bytes."""
        left = self._end - self.start
        while left > 0:
            try:
                chunk = self._file.read(min(_CHUNK_BYTES, left))
            except OSError as error:  # a mounted disk that is gone for a moment
                raise TransferError(f"'{self._path}' cannot be read ({error.strerror}); try again.") from error
            if not chunk:
                raise TransferError(f"'{self._path}' became shorter while it was read; try again.")
            left -= len(chunk)
            yield chunk

    def __enter__(self) -> FileRange:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def path_of(uri: str) -> Path:
    """Returns the absolute path that a URI or path names.

    Raises:
        ConfigError: it is of another machine.
    """
    if not uri.startswith("file:"):
        return Path(os.path.expanduser(uri)).absolute()
    split = urlsplit(uri)
    if split.netloc not in ("", "localhost") or not split.path.startswith("/"):
        raise ConfigError(f"'{uri}' must have the form file:///PATH, with three slashes and an absolute path.")
    return Path(unquote(split.path))


def _files(folder: Path) -> Iterator[Path]:
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.is_dir(follow_symlinks=False):
            if entry.name not in _SKIPPED:
                yield from _files(Path(entry.path))
        elif entry.is_file():
            yield Path(entry.path)


def _marked(file: Path, base: Path) -> tuple[RemoteFile, str]:
    stat = file.stat()
    return RemoteFile(file.relative_to(base).as_posix(), stat.st_size, None, str(file)), str(stat.st_mtime_ns)


def _error(path: Path, error: OSError) -> DownloadError:
    if isinstance(error, PermissionError):
        return DownloadError(f"'{path}' may not be read; allow it with chmod or chown.", cause=HubCause.NO_PERMISSION)
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return DownloadError(
            f"'{path}' does not exist; check the path, and whether its disk is mounted.", cause=HubCause.NOT_FOUND
        )
    return DownloadError(f"'{path}' cannot be read: {error.strerror}; check the disk.", cause=HubCause.FAILED)
