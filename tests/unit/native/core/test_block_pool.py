"""Who holds a block, what can be found, and what is evicted first."""

from __future__ import annotations

import pytest

from vllm_mxext.native.core.block_pool import BlockPool


def registered(pool: BlockPool, num_blocks: int) -> list[int]:
    block_ids = pool.allocate(num_blocks)
    for block_id in block_ids:
        pool.register(block_id, bytes([block_id]))
    return block_ids


def test_the_null_block_is_never_handed_out():
    pool = BlockPool(4)
    assert sorted(pool.allocate(3)) == [1, 2, 3]
    assert pool.num_free_blocks == 0


def test_a_pool_without_a_usable_block_is_refused():
    with pytest.raises(ValueError, match="at least one more"):
        BlockPool(1)


def test_allocating_more_than_is_free_changes_nothing():
    pool = BlockPool(4)
    with pytest.raises(ValueError, match="4 blocks wanted, 3 are free"):
        pool.allocate(4)
    assert pool.num_free_blocks == 3
    pool.check_integrity()


def test_a_released_block_is_found_again_until_it_is_handed_out():
    pool = BlockPool(3)
    first, second = registered(pool, 2)
    pool.release([first, second])
    assert pool.num_free_blocks == 2
    pool.acquire([first])
    assert (pool.find(bytes([first])), pool.num_free_blocks) == (first, 1)
    assert pool.allocate(1) == [second]
    assert pool.find(bytes([second])) is None


def test_a_block_stays_held_until_its_last_holder_releases_it():
    pool = BlockPool(2)
    (block_id,) = registered(pool, 1)
    pool.acquire([block_id])
    pool.release([block_id])
    assert (pool.ref_count(block_id), pool.num_free_blocks) == (1, 0)
    pool.release([block_id])
    assert pool.num_free_blocks == 1


def test_the_tail_of_a_request_is_evicted_before_its_head():
    pool = BlockPool(4)
    table = registered(pool, 3)
    pool.release(table)
    assert pool.allocate(2) == [table[2], table[1]]
    assert pool.find(bytes([table[0]])) == table[0]


def test_the_least_recently_released_request_is_evicted_first():
    pool = BlockPool(5)
    older, newer = registered(pool, 2), registered(pool, 2)
    pool.release(older)
    pool.release(newer)
    assert set(pool.allocate(2)) == set(older)


def test_blocks_without_content_go_before_cached_ones():
    pool = BlockPool(3)
    (cached,) = registered(pool, 1)
    (empty,) = pool.allocate(1)
    pool.release([cached])
    pool.release([empty])
    assert pool.allocate(1) == [empty]


def test_a_second_block_of_the_same_hash_is_not_registered():
    pool = BlockPool(3)
    first, second = pool.allocate(2)
    pool.register(first, b"x")
    pool.register(second, b"x")
    assert (pool.find(b"x"), pool.num_cached_blocks) == (first, 1)
    pool.release([second])
    assert pool.allocate(1) == [second]
    assert pool.find(b"x") == first


def test_forgetting_makes_no_block_findable_and_frees_none():
    pool = BlockPool(3)
    held, free = registered(pool, 2)
    pool.release([free])
    pool.forget_all()
    assert (pool.find(bytes([held])), pool.find(bytes([free]))) == (None, None)
    assert (pool.num_cached_blocks, pool.num_free_blocks) == (0, 1)
    pool.check_integrity([[held]])


@pytest.mark.parametrize("table", [[], [1, 1], [0, 1], [1, 2]])
def test_the_integrity_check_finds_holders_that_do_not_match(table):
    pool = BlockPool(4)
    pool.allocate(1)
    pool.check_integrity([[1]])
    with pytest.raises(AssertionError):
        pool.check_integrity([table])
