"""`ChunkMap`: which chunks of a file are missing, being fetched, or there."""

from __future__ import annotations

_MISSING, _TAKEN, _DONE = 0, 1, 2


class ChunkMap:
    """States of the chunks of one file; not for two threads at once.

    Args:
        size: bytes of the file; None = not known, so that the map grows.
        chunk_bytes: of every chunk but the last.
    """

    def __init__(self, size: int | None, chunk_bytes: int) -> None:
        self._chunk_bytes = chunk_bytes
        self._states = bytearray()
        self.size = size
        if size is not None:
            self.set_size(size)

    def __len__(self) -> int:
        return len(self._states)

    def set_size(self, size: int) -> None:
        """Takes the size of the file, once it is known; what is behind it is forgotten."""
        self.size = size
        count = -(-size // self._chunk_bytes)
        self._states = self._states[:count].ljust(count, bytes([_MISSING]))

    def grow(self, index: int) -> None:
        """Makes room for a chunk of a file whose size is not known."""
        self._states = self._states.ljust(index + 1, bytes([_MISSING]))

    def length(self, index: int) -> int:
        """Bytes of a chunk."""
        return self._chunk_bytes if self.size is None else min(self._chunk_bytes, self.size - index * self._chunk_bytes)

    def missing_run(self, max_chunks: int) -> tuple[int, int] | None:
        """First missing chunk and the one behind the last that is missing in a row; None if none is."""
        first = self._states.find(_MISSING)
        if first < 0:
            return None
        last = min(len(self._states), first + max_chunks)
        return first, next((index for index in range(first, last) if self._states[index] != _MISSING), last)

    @property
    def has_missing(self) -> bool:
        """Whether a chunk is neither there nor being fetched."""
        return self._states.find(_MISSING) >= 0

    def is_done(self, index: int) -> bool:
        """Whether a chunk is there."""
        return index < len(self._states) and self._states[index] == _DONE

    def take(self, first: int, end: int) -> set[int]:
        """Marks those that are missing as being fetched and returns them."""
        taken = {index for index in range(first, end) if self._states[index] == _MISSING}
        for index in taken:
            self._states[index] = _TAKEN
        return taken

    def give_back(self, chunks: set[int]) -> None:
        """Marks chunks that were being fetched as missing."""
        for index in chunks:
            self._states[index] = _MISSING

    def finish(self, index: int) -> None:
        """Marks a chunk as being there."""
        self._states[index] = _DONE
