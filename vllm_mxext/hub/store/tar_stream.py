"""Reads and writes the few kinds of tar entries that bundles have: regular files with short names, in one pass.

Format: POSIX ustar with GNU's large sizes (https://www.gnu.org/software/tar/manual/html_node/Standard.html). Everything
else that tar can express (links, devices, folders, long names, extended headers) is refused, not skipped.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO

from vllm_mxext.errors import HubCause, StoreError, UnsafeFileError

BLOCK_BYTES = 512
_RECORD_BYTES = 20 * BLOCK_BYTES
_READ_BYTES = 2**20
_NAME = re.compile(rb"[\x21-\x7e]{1,100}")
_OCTAL = re.compile(rb" *([0-7]{1,11})[ \0]*")
_KINDS = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a device",
    b"4": "a device",
    b"5": "a folder",
    b"6": "a pipe",
    b"L": "a long name",
    b"K": "a long link",
    b"x": "an extended header",
    b"g": "an extended header",
    b"S": "a file with holes",
}


@dataclass(frozen=True, slots=True)
class TarEntry:
    """One file of an archive.

    Attributes:
        name: as it is written there.
        size: bytes.
    """

    name: str
    size: int


class TarReader:
    """Reads an archive from its beginning to its end.

    Args:
        stream: it.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream

    def next_entry(self) -> TarEntry | None:
        """Reads the next header; the bytes of the one before have to be read already. None at the end.

        Raises:
            StoreError: the archive is cut off or damaged.
            UnsafeFileError: the entry is no plain file.
        """
        header = self._exactly(BLOCK_BYTES)
        if header == bytes(BLOCK_BYTES):
            self._check_end()
            return None
        return _parse(header)

    def data(self, entry: TarEntry) -> Iterator[bytes]:
        """Yields the bytes of an entry, in pieces of at most a MiB.

        Raises:
            StoreError: the archive is cut off.
        """
        left = entry.size
        while left:
            piece = self._exactly(min(left, _READ_BYTES))
            left -= len(piece)
            yield piece
        if any(self._exactly(-entry.size % BLOCK_BYTES)):
            raise damaged("there are bytes between two files")

    def _exactly(self, num_bytes: int) -> bytes:
        content = self._stream.read(num_bytes)
        if len(content) != num_bytes:
            raise damaged("it is cut off")
        return content

    def _check_end(self) -> None:
        """A second empty block, and nothing but zeros behind it."""
        if any(self._exactly(BLOCK_BYTES)):
            raise damaged("its end is missing")
        while rest := self._stream.read(_READ_BYTES):
            if any(rest):
                raise UnsafeFileError("The bundle is refused: something follows behind its end; export it again.")


class TarWriter:
    """Writes an archive; equal entries make equal bytes.

    Args:
        stream: where to.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._num_bytes = 0

    def add(self, entry: TarEntry, pieces: Iterator[bytes], report: Callable[[int], None]) -> None:
        """Writes one file.

        Args:
            entry: its name and size.
            pieces: of so many bytes in all.
            report: told how many bytes have been written.
        """
        info = tarfile.TarInfo(entry.name)
        info.size, info.mode = entry.size, 0o644
        self._write(info.tobuf(tarfile.GNU_FORMAT))
        for piece in pieces:
            self._write(piece)
            report(len(piece))
        self._write(bytes(-entry.size % BLOCK_BYTES))

    def finish(self) -> None:
        """Writes the end."""
        self._write(bytes(2 * BLOCK_BYTES))
        self._write(bytes(-self._num_bytes % _RECORD_BYTES))

    def _write(self, content: bytes) -> None:
        self._stream.write(content)
        self._num_bytes += len(content)


def damaged(reason: str) -> StoreError:
    """Returns the error that says that a bundle is not what was exported."""
    return StoreError(
        f"The bundle is damaged: {reason}; copy it here again, or export it again.", cause=HubCause.DAMAGED
    )


def _parse(header: bytes) -> TarEntry:
    name, rest = header[:100].rstrip(b"\0"), header[345:500]
    checksum = _OCTAL.fullmatch(header[148:156])
    if checksum is None or int(checksum[1], 8) != sum(header[:148]) + 8 * 0x20 + sum(header[156:]):
        raise damaged("a header has a wrong checksum, or it is no tar archive")
    kind = header[156:157]
    if kind not in (b"0", b"\0"):
        what = _KINDS.get(kind, f"an entry of the kind {kind!r}")
        raise UnsafeFileError(f"The bundle is refused: it has {what}, and bundles have plain files; export it again.")
    if header[257:262] != b"ustar" or any(header[157:257]) or any(rest) or _NAME.fullmatch(name) is None:
        raise UnsafeFileError("The bundle is refused: a header is none that an export writes; export it again.")
    return TarEntry(name.decode("ascii"), _size(header[124:136]))


def _size(field: bytes) -> int:
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    octal = _OCTAL.fullmatch(field)
    if octal is None:
        raise damaged("a size cannot be read")
    return int(octal[1], 8)
