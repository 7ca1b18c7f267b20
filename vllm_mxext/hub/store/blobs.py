"""`BlobStore`: files named by the SHA-256 of what is in them, whole and read-only, and digests of their chunks."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from vllm_mxext.hub.store.failures import storing

CHUNK_BYTES = 8 * 2**20
"""Bytes whose digest is kept, so that a damaged or half-arrived file need not be fetched again as a whole."""

BlobFinder = Callable[[str], Path | None]
"""Tells where a file with this SHA-256 lies that somebody else keeps, and None if there is none."""

_FOLDER = "blobs"
_PREFIX = "sha256-"
_CHUNKS_SUFFIX = ".chunks"
_DIGEST = re.compile(r"[0-9a-f]{64}")


class BlobStore:
    """Content-addressed files; what `find()` returns is whole, whoever else writes to the store meanwhile.

    Args:
        folder: of the store; the files are in its sub-folder `blobs`.
        chunk_bytes: bytes per chunk digest.
        read_only_roots: other places where files are found by digest and only read, asked in this order.
    """

    def __init__(
        self, folder: Path, chunk_bytes: int = CHUNK_BYTES, read_only_roots: Iterable[BlobFinder] = ()
    ) -> None:
        self.folder = folder
        self.chunk_bytes = chunk_bytes
        self.read_only_roots = tuple(read_only_roots)

    def path(self, sha256: str) -> Path:
        """Where the file with this digest is, or would be, in this store."""
        if not is_sha256(sha256):
            raise ValueError(f"{sha256!r} is no SHA-256")
        return self.folder / _FOLDER / f"{_PREFIX}{sha256}"

    def find(self, sha256: str) -> Path | None:
        """Where the file with this digest is, here or in one of the other places; None if it is nowhere."""
        path = self.path(sha256)
        if path.is_file():
            return path
        return next((found for root in self.read_only_roots if (found := root(sha256)) is not None), None)

    def size(self, sha256: str) -> int | None:
        """Bytes of the file with this digest; None if it is nowhere."""
        path = self.find(sha256)
        return None if path is None else path.stat().st_size

    def chunk_hashes(self, sha256: str) -> tuple[str, ...] | None:
        """SHA-256 of each `chunk_bytes` of the file as it was when it was stored; None if they are not known."""
        path = self.path(sha256)
        try:
            lines = _chunks_path(path).read_text("ascii").split()
        except FileNotFoundError:
            is_one_chunk = path.is_file() and 0 < path.stat().st_size <= self.chunk_bytes
            return (sha256,) if is_one_chunk else None
        except (OSError, ValueError):
            return None
        if not lines or lines[0] != str(self.chunk_bytes) or not all(is_sha256(line) for line in lines[1:]):
            return None
        return tuple(lines[1:])

    def adopt(self, file: Path, sha256: str, chunk_hashes: tuple[str, ...], *, replaces: bool = False) -> Path:
        """Makes a whole, verified file of the same file system the one with this digest; returns where it is.

        It is on the disk before it gets its name, and read-only. If there is one already, this one is removed.

        Args:
            file: what is taken; not there any more afterwards.
            sha256: its digest, which the caller has checked.
            chunk_hashes: of its chunks.
            replaces: take the place of the one that is there; those who have it open go on reading it.

        Raises:
            StoreError: the store cannot be written.
        """
        path = self.path(sha256)
        with storing(self.folder):
            if path.is_file() and not replaces:
                file.unlink()
                return path
            path.parent.mkdir(parents=True, exist_ok=True)
            if len(chunk_hashes) > 1:
                self._write_chunk_hashes(path, chunk_hashes)
            _flush(file)
            file.chmod(0o444)
            os.replace(file, path)
            _flush(path.parent)
        return path

    def remove(self, sha256: str) -> None:
        """Removes the file with this digest from this store, if it is there.

        Raises:
            StoreError: the store cannot be written.
        """
        path = self.path(sha256)
        with storing(self.folder):
            path.unlink(missing_ok=True)
            _chunks_path(path).unlink(missing_ok=True)

    def digests(self) -> Iterator[str]:
        """Yields the digests of the files in this store, in no order; not those of other places.

        Raises:
            StoreError: the store cannot be read.
        """
        with storing(self.folder):
            try:
                names = os.listdir(self.folder / _FOLDER)
            except FileNotFoundError:
                return
        yield from (
            name[len(_PREFIX) :] for name in names if name.startswith(_PREFIX) and is_sha256(name[len(_PREFIX) :])
        )

    def _write_chunk_hashes(self, path: Path, chunk_hashes: tuple[str, ...]) -> None:
        target = _chunks_path(path)
        draft = target.with_name(f"{target.name}.{secrets.token_hex(4)}")
        draft.write_text("\n".join([str(self.chunk_bytes), *chunk_hashes, ""]), "ascii")
        os.replace(draft, target)


def is_sha256(text: str) -> bool:
    """Whether a text is a SHA-256 in small hexadecimal digits."""
    return _DIGEST.fullmatch(text) is not None


def _chunks_path(path: Path) -> Path:
    return path.with_name(path.name + _CHUNKS_SUFFIX)


def _flush(path: Path) -> None:
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)
