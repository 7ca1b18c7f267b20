"""Random histories of the block pool against a model made of plain dictionaries."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from vllm_mxext.native.core.block_pool import NULL_BLOCK_ID, BlockPool


class BlockPoolMachine(RuleBasedStateMachine):
    """Holders take, share, register and release blocks; the model knows who holds what and what can be found."""

    @initialize(num_blocks=st.integers(2, 12))
    def start(self, num_blocks: int) -> None:
        self.pool = BlockPool(num_blocks)
        self.tables: list[list[int]] = []
        self.block_of: dict[bytes, int] = {}
        self.last_held: dict[int, int] = {}
        self.now = 0

    def holders(self) -> Counter[int]:
        return Counter(block_id for table in self.tables for block_id in table)

    @rule(num_blocks=st.integers(0, 13))
    def allocate(self, num_blocks: int) -> None:
        num_free = self.pool.num_free_blocks
        if num_blocks > num_free:
            with pytest.raises(ValueError, match="are free"):
                self.pool.allocate(num_blocks)
            assert self.pool.num_free_blocks == num_free
            return
        held, cached = self.holders(), {block_id: key for key, block_id in self.block_of.items()}
        free_cached = [block_id for block_id in cached if not held[block_id]]
        block_ids = self.pool.allocate(num_blocks)
        assert not any(held[block_id] for block_id in block_ids), "A held block was handed out."
        num_empty = num_free - len(free_cached)
        evicted = [block_id for block_id in block_ids if block_id in cached]
        assert len(evicted) == max(0, num_blocks - num_empty), "A cached block went before an empty one."
        kept = set(free_cached) - set(evicted)
        assert not evicted or not kept or max(self.last_held[b] for b in evicted) < min(self.last_held[b] for b in kept)
        for block_id in evicted:
            del self.block_of[cached[block_id]]
        self.tables.append(block_ids)

    @rule(data=st.data(), key=st.integers(0, 8))
    @precondition(lambda self: any(self.tables))
    def register(self, data: st.DataObject, key: int) -> None:
        table = data.draw(st.sampled_from([table for table in self.tables if table]))
        block_id, block_hash = data.draw(st.sampled_from(table)), bytes([key])
        if block_id in self.block_of.values():
            return  # a full block is registered once
        self.pool.register(block_id, block_hash)
        self.block_of.setdefault(block_hash, block_id)

    @rule(keys=st.lists(st.integers(0, 8), min_size=1, max_size=4, unique=True))
    def share(self, keys: list[int]) -> None:
        found = [self.pool.find(bytes([key])) for key in keys]
        assert found == [self.block_of.get(bytes([key])) for key in keys]
        block_ids = [block_id for block_id in found if block_id is not None]
        held = self.holders()
        assert self.pool.num_free_among(block_ids) == sum(not held[block_id] for block_id in block_ids)
        self.pool.acquire(block_ids)
        self.tables.append(block_ids)

    @rule(data=st.data())
    @precondition(lambda self: self.tables)
    def release(self, data: st.DataObject) -> None:
        table = self.tables.pop(data.draw(st.integers(0, len(self.tables) - 1)))
        self.pool.release(table)
        for block_id in reversed(table):
            self.now += 1
            self.last_held[block_id] = self.now

    @rule()
    def forget_all(self) -> None:
        self.pool.forget_all()
        self.block_of.clear()

    @invariant()
    def pool_agrees_with_the_model(self) -> None:
        self.pool.check_integrity(self.tables)
        held = self.holders()
        assert held[NULL_BLOCK_ID] == 0
        assert self.pool.num_free_blocks == self.pool.num_usable_blocks - len(held)
        assert self.pool.num_cached_blocks == len(self.block_of)
        assert all(self.pool.ref_count(block_id) == held[block_id] for block_id in range(self.pool.num_blocks))


class TestBlockPool(BlockPoolMachine.TestCase):
    settings = settings(deadline=None, max_examples=80, stateful_step_count=30)
