"""`PartialFile`: a file that is arriving in pieces: its bytes, a journal of finished chunks, and what it is of.

The journal's line is written after the chunk's bytes. The kernel has both when a process is killed; after a loss of
power either may be missing, and what the journal says is believed only where the bytes still have that digest.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
import re
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vllm_mxext.hub.sources.interface import RemoteFile
from vllm_mxext.hub.store.failures import storing

_LINE = re.compile(rb"(\d{1,12}) ([0-9a-f]{64})")
_MAX_LINE_BYTES = 80
_READ_BYTES = 2**20
_KEEP_SIZE = 1
"""`FALLOC_FL_KEEP_SIZE` of Linux."""


@dataclass(frozen=True, slots=True)
class Origin:
    """What a partial file is of.

    Attributes:
        uri: of the source.
        path: inside the model.
        size: bytes of the whole; None if it is not known.
        validator: strong validator of the first answer; None if there was none.
        chunk_bytes: of the journal's chunks.
    """

    uri: str
    path: str
    size: int | None
    validator: str | None
    chunk_bytes: int


class LostError(Exception):
    """The partial file has been taken over by somebody who thought that this process was dead."""


class OpenFile:
    """A descriptor that closes when nobody uses it any more, so that a late thread never writes into another file."""

    def __init__(self, path: Path, flags: int) -> None:
        self.number = -1
        self.number = os.open(path, flags | os.O_CREAT | os.O_CLOEXEC, 0o644)

    def close(self) -> None:
        """Closes it now; only when no thread is left that might use it."""
        number, self.number = self.number, -1
        if number >= 0:
            os.close(number)

    def __del__(self) -> None:
        self.close()


class PartialFile:
    """One folder with `data`, `chunks` and `meta`.

    Args:
        folder: its own; there already.
        chunk_bytes: bytes per chunk.
    """

    def __init__(self, folder: Path, chunk_bytes: int) -> None:
        self.folder = folder
        self.chunk_bytes = chunk_bytes
        self.hashes: dict[int, str] = {}
        """Finished chunks and their SHA-256."""
        with storing(folder):
            self._open()

    @property
    def data_path(self) -> Path:
        """The file with the bytes."""
        return self.folder / "data"

    @property
    def data(self) -> OpenFile:
        """The file with the bytes, as long as `begin()` is not called."""
        return self._data

    def close(self) -> None:
        """Closes the files; only when no thread is left that might use them."""
        self._data.close()
        self._chunks.close()

    def origin(self) -> Origin | None:
        """What an earlier process wrote down; None if there is nothing to go on with."""
        try:
            content = json.loads((self.folder / "meta").read_bytes())
            origin = Origin(**{name: content[name] for name in Origin.__slots__})
        except (OSError, ValueError, TypeError, KeyError):
            return None
        is_usable = isinstance(origin.size, int | None) and isinstance(origin.validator, str | None)
        return origin if is_usable and origin.chunk_bytes == self.chunk_bytes else None

    def begin(self, origin: Origin) -> None:
        """Forgets everything, in a new file, so that threads that still write to the old one do no harm.

        Raises:
            StoreError: the folder cannot be written.
        """
        with storing(self.folder):
            (self.folder / "chunks").unlink(missing_ok=True)
            os.ftruncate(self._data.number, 0)  # its space is free at once, although others may have it open
            self.data_path.unlink(missing_ok=True)
            self.hashes.clear()
            self._open()
        self.write_origin(origin)

    def write_origin(self, origin: Origin) -> None:
        """Writes down what the file is of.

        Raises:
            StoreError: the folder cannot be written.
        """
        with storing(self.folder):
            draft = self.folder / "meta.new"
            draft.write_text(json.dumps(asdict(origin)))
            os.replace(draft, self.folder / "meta")

    def recall(self, size: int, watch: Callable[[], None]) -> None:
        """Hashes what the journal says is there; what differs, or ends behind `size`, is forgotten.

        Args:
            size: bytes of the whole file.
            watch: called between chunks; may raise.

        Raises:
            StoreError: the folder cannot be read.
        """
        with storing(self.folder):
            for index, digest in self._journal().items():
                watch()
                start = index * self.chunk_bytes
                length = min(self.chunk_bytes, size - start)
                if length > 0 and self.hash_chunk(self._data, start, length, hashlib.sha256()).hexdigest() == digest:
                    self.hashes[index] = digest

    def reserve(self, size: int) -> None:
        """Takes the space for the whole file, where the file system can; its length stays as it is.

        Raises:
            StoreError: there is not enough.
        """
        if size <= 0 or not sys.platform.startswith("linux"):
            return
        # Not os.posix_fallocate(): where the file system cannot, glibc writes into every block instead.
        allocate: Any = getattr(ctypes.CDLL(None, use_errno=True), "fallocate64", None)
        if allocate is None:
            return
        journal_bytes = -(-size // self.chunk_bytes) * _MAX_LINE_BYTES
        for file, length in ((self._data, size), (self._chunks, journal_bytes)):
            arguments = (ctypes.c_int(file.number), ctypes.c_int(_KEEP_SIZE), ctypes.c_int64(0), ctypes.c_int64(length))
            number = ctypes.get_errno() if allocate(*arguments) != 0 else 0
            if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                with storing(self.folder):
                    raise OSError(number, os.strerror(number))

    def write(self, data: OpenFile, offset: int, piece: memoryview) -> None:
        """Writes bytes at their place.

        Raises:
            StoreError: they cannot be written.
        """
        with storing(self.folder):
            while piece:
                written = os.pwrite(data.number, piece, offset)
                piece, offset = piece[written:], offset + written

    def finish_chunk(self, index: int, digest: str) -> None:
        """Notes that all bytes of a chunk are written; not for two threads at once.

        Raises:
            LostError: the folder is not ours any more.
            StoreError: it cannot be written.
        """
        try:
            is_ours = os.path.samestat(os.stat(self.data_path), os.fstat(self._data.number))
        except FileNotFoundError:
            is_ours = False
        if not is_ours:
            raise LostError
        with storing(self.folder):
            # The line break in front ends a line that a full disk cut short.
            os.write(self._chunks.number, f"\n{index} {digest}\n".encode())
        self.hashes[index] = digest

    def hash_chunk(self, data: OpenFile, start: int, length: int, digest: Any) -> Any:
        """Feeds bytes of the file to a hash object and returns it.

        Raises:
            StoreError: they cannot be read.
        """
        with storing(self.folder):
            for offset in range(start, start + length, _READ_BYTES):
                digest.update(os.pread(data.number, min(_READ_BYTES, start + length - offset), offset))
        return digest

    def seed(self, source: Path, hashes: Mapping[int, str], uri: str, file: RemoteFile) -> None:
        """Copies the chunks of a damaged file that are believed to be good, as if they had arrived.

        Args:
            source: the damaged file.
            hashes: of the chunks.
            uri: of the source of the others.
            file: what it should be.

        Raises:
            StoreError: it cannot be copied.
        """
        lines = []
        with storing(self.folder), source.open("rb", buffering=0) as damaged:
            for index, digest in hashes.items():
                start = index * self.chunk_bytes
                with suppress(OSError):  # the disk cannot read it any more
                    self.write(self._data, start, memoryview(os.pread(damaged.fileno(), self.chunk_bytes, start)))
                    lines.append(f"\n{index} {digest}\n")
            os.write(self._chunks.number, "".join(lines).encode())
        self.write_origin(Origin(uri, file.path, file.size, None, self.chunk_bytes))

    def _open(self) -> None:
        self._data = OpenFile(self.data_path, os.O_RDWR)
        self._chunks = OpenFile(self.folder / "chunks", os.O_WRONLY | os.O_APPEND)

    def _journal(self) -> dict[int, str]:
        lines = (self.folder / "chunks").read_bytes().splitlines()
        matches = (_LINE.fullmatch(line) for line in lines)
        return {int(match[1]): match[2].decode() for match in matches if match}
