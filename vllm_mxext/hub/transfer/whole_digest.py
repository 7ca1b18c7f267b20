"""`WholeDigest`: the SHA-256 of a file whose chunks arrive in any order, computed closely behind them."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable

from vllm_mxext.hub.transfer.chunk_map import ChunkMap
from vllm_mxext.hub.transfer.partial_file import PartialFile


class WholeDigest:
    """Reads finished chunks again, from the page cache as a rule; a file of one chunk is hashed already.

    Args:
        partial: where the file arrives; what it holds now, not after `begin()`.
        chunks: which are there.
        chunk_bytes: of each.
        lock: held while `chunks` is asked.
    """

    def __init__(self, partial: PartialFile, chunks: ChunkMap, chunk_bytes: int, lock: threading.RLock) -> None:
        self._partial = partial
        self._data = partial.data
        self._chunks = chunks
        self._chunk_bytes = chunk_bytes
        self._lock = lock
        self._is_busy = False
        self.restart()

    def restart(self) -> None:
        """Begins at the first chunk again."""
        self._digest = hashlib.sha256()
        self._num_hashed = 0

    def follow(self, watch: Callable[[], None]) -> str | None:
        """Hashes what is there and in order; returns the digest when that is the whole file, once.

        Only one thread does it at a time; others return at once.

        Args:
            watch: called between chunks; may raise.

        Raises:
            StoreError: the file cannot be read.
        """
        with self._lock:
            if self._is_busy:
                return None
            self._is_busy = True
        try:
            while True:
                watch()
                with self._lock:
                    index, digest = self._num_hashed, self._digest
                    if self._chunks.size is not None and index == len(self._chunks):
                        return self._partial.hashes[0] if index == 1 else digest.hexdigest()
                    if not self._chunks.is_done(index):
                        self._is_busy = False
                        return None
                    length = self._chunks.length(index)
                if len(self._chunks) > 1:
                    self._partial.hash_chunk(self._data, index * self._chunk_bytes, length, digest)
                with self._lock:
                    if digest is self._digest:
                        self._num_hashed += 1
        except BaseException:
            self._is_busy = False
            raise
