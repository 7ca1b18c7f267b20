"""`Source`: where a model's files come from, whatever the protocol; used from threads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file that a source lists.

    Attributes:
        path: inside the model, with `/`; checked by `check_path()` before it is used for anything.
        size: bytes; None if the source does not say.
        sha256: 64 hexadecimal digits that the source vouches for; None if it does not.
        locator: how the source finds it again: a URL, an object's key.
    """

    path: str
    size: int | None = None
    sha256: str | None = None
    locator: str = ""


@dataclass(frozen=True, slots=True)
class Listing:
    """What a source has.

    Attributes:
        revision: that the files are of: a commit, a version, a digest of the listing where the source has none.
        files: in the order of their paths.
    """

    revision: str
    files: tuple[RemoteFile, ...]


class Range(Protocol):
    """The answer to one request for bytes of a file; a context manager that closes the connection.

    Attributes:
        start: offset of its first byte: 0 although more was asked for means that the server ignores ranges, or that
            the file is not the one of `validator` any more.
        total_size: bytes of the whole file; None if the server does not say.
        validator: strong validator of the file (an `ETag`, a version); None if there is none.
    """

    start: int
    total_size: int | None
    validator: str | None

    def chunks(self) -> Iterator[bytes]:
        """Yields the bytes as they arrive.

        Raises:
            TransferError: the connection broke, stalled, or ended before the announced length.
        """

    def __enter__(self) -> Range: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Source(Protocol):
    """A model's files in one place, at one revision; safe to use from several threads.

    Attributes:
        uri: as given, without secrets.
    """

    uri: str

    def list_files(self) -> Listing:
        """Lists the files; retries what may pass by itself.

        Raises:
            DownloadError: unreachable, not there, or not allowed; the text says what to do.
        """

    def open_range(self, file: RemoteFile, start: int, end: int | None, validator: str | None) -> Range:
        """Asks once for bytes `start` to `end` (exclusive; None = the rest); does not retry.

        Args:
            file: of this source's listing.
            start: offset of the first byte.
            end: offset behind the last one.
            validator: of the first answer; if the file has changed since, the answer starts at 0.

        Raises:
            TransferError: may work if asked again.
            DownloadError: will not.
        """

    def close(self) -> None:
        """Closes connections."""
