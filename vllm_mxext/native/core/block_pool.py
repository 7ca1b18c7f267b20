"""`BlockPool`: reference counts, free list and hashes of the KV blocks."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence

NULL_BLOCK_ID = 0
"""Block that no request owns; padding entries of block tables point to it."""


class BlockPool:
    """Hands out KV blocks; blocks nobody holds keep their content until they are handed out again.

    A block is in one of three states:

        held         ref count >= 1, not in the free list
        free, empty  ref count 0, no hash: at the front of the free list
        free, cached ref count 0, has a hash: `find()` can bring it back; behind, least recently used first

    Args:
        num_blocks: blocks of the KV tensor, the null block included.
    """

    def __init__(self, num_blocks: int) -> None:
        if num_blocks < 2:
            raise ValueError(f"A block pool needs the null block and at least one more, got {num_blocks} blocks.")
        self.num_blocks = num_blocks
        self._ref_counts = [0] * num_blocks
        self._hash_of: list[bytes | None] = [None] * num_blocks
        self._block_of: dict[bytes, int] = {}
        # A doubly linked list with O(1) removal of any block, written in C.
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(1, num_blocks))

    @property
    def num_usable_blocks(self) -> int:
        """Blocks that requests can hold."""
        return self.num_blocks - 1

    @property
    def num_free_blocks(self) -> int:
        """Blocks nobody holds, cached ones included."""
        return len(self._free)

    @property
    def num_cached_blocks(self) -> int:
        """Blocks that can be found by hash, held or free."""
        return len(self._block_of)

    def ref_count(self, block_id: int) -> int:
        """Returns how many requests hold a block."""
        return self._ref_counts[block_id]

    def find(self, block_hash: bytes) -> int | None:
        """Returns the block of this hash, or None."""
        return self._block_of.get(block_hash)

    def num_free_among(self, block_ids: Iterable[int]) -> int:
        """Returns how many of these blocks nobody holds."""
        return sum(self._ref_counts[block_id] == 0 for block_id in block_ids)

    def acquire(self, block_ids: Sequence[int]) -> None:
        """Adds a holder to blocks returned by `find()`."""
        for block_id in block_ids:
            if self._ref_counts[block_id] == 0:
                del self._free[block_id]
            self._ref_counts[block_id] += 1

    def allocate(self, num_blocks: int) -> list[int]:
        """Hands out blocks with one holder each: empty ones first, then the least recently used cached ones.

        Raises:
            ValueError: fewer blocks are free.
        """
        if num_blocks > len(self._free):
            raise ValueError(f"{num_blocks} blocks wanted, {len(self._free)} are free.")
        block_ids = [self._free.popitem(last=False)[0] for _ in range(num_blocks)]
        for block_id in block_ids:
            self._forget(block_id)
            self._ref_counts[block_id] = 1
        return block_ids

    def release(self, block_ids: Sequence[int]) -> None:
        """Removes one holder of each block of a block table, so that its tail is evicted before its head."""
        for block_id in reversed(block_ids):
            self._ref_counts[block_id] -= 1
            if self._ref_counts[block_id] == 0:
                self._free[block_id] = None
                if self._hash_of[block_id] is None:
                    self._free.move_to_end(block_id, last=False)

    def register(self, block_id: int, block_hash: bytes) -> None:
        """Makes a held, full block findable; does nothing if another block has this hash already."""
        if self._block_of.setdefault(block_hash, block_id) == block_id:
            self._hash_of[block_id] = block_hash

    def forget_all(self) -> None:
        """Makes no block findable any more; holders keep their blocks."""
        for block_id in self._block_of.values():
            self._hash_of[block_id] = None
        self._block_of.clear()

    def check_integrity(self, block_tables: Iterable[Sequence[int]] = ()) -> None:
        """Checks the pool against itself and against the block tables of all holders; O(blocks).

        Raises:
            AssertionError: they contradict each other.
        """
        holders = [0] * self.num_blocks
        for table in block_tables:
            assert len(set(table)) == len(table), f"A block table holds a block twice: {table}."
            for block_id in table:
                holders[block_id] += 1
        assert holders[NULL_BLOCK_ID] == 0, "The null block is held by a request."
        assert holders == self._ref_counts, f"Ref counts are {self._ref_counts}, holders are {holders}."
        free = {block_id for block_id in range(1, self.num_blocks) if self._ref_counts[block_id] == 0}
        assert free == set(self._free), f"Free blocks are {sorted(free)}, the free list has {sorted(self._free)}."
        hashes = {block_hash: block_id for block_id, block_hash in enumerate(self._hash_of) if block_hash is not None}
        assert hashes == self._block_of, "The hash map and the hashes of the blocks differ."

    def _forget(self, block_id: int) -> None:
        block_hash = self._hash_of[block_id]
        if block_hash is not None:
            self._hash_of[block_id] = None
            del self._block_of[block_hash]
