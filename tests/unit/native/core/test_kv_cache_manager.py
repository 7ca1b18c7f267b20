"""Which blocks requests get and which they share."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.native.core.builders import make_request
from vllm_mxext.native.core.kv_cache_manager import KVCacheManager
from vllm_mxext.native.core.request import Request

PROMPT = list(range(10))


def make_manager(num_blocks: int = 20, block_size: int = 4, *, enable_prefix_caching: bool = True) -> KVCacheManager:
    return KVCacheManager(num_blocks=num_blocks, block_size=block_size, enable_prefix_caching=enable_prefix_caching)


def compute(kv: KVCacheManager, request: Request) -> Request:
    """Computes all tokens of a request that starts from whatever prefix there is."""
    prefix = kv.find_prefix(request)
    assert kv.allocate(request, request.num_tokens - len(prefix) * kv.block_size, prefix) is not None
    request.num_computed_tokens = request.num_tokens
    kv.register_full_blocks(request, request.num_tokens)
    return request


def num_hit_blocks(kv: KVCacheManager, **fields: Any) -> int:
    return len(kv.find_prefix(make_request("other", PROMPT, **fields)))


def test_blocks_cover_the_scheduled_tokens_and_no_more():
    kv, request = make_manager(), make_request(prompt=10)
    assert len(kv.allocate(request, 3) or []) == 1
    request.num_computed_tokens = 3
    assert kv.allocate(request, 1) == []
    request.num_computed_tokens = 4
    assert len(kv.allocate(request, 5) or []) == 2
    assert len(request.block_ids) == 3


def test_too_few_free_blocks_change_nothing():
    kv, request = make_manager(num_blocks=3), make_request(prompt=10)
    assert kv.allocate(request, 9) is None
    assert (request.block_ids, kv.num_free_blocks) == ([], 2)


@pytest.mark.promise("CORE-4")
def test_full_blocks_of_an_equal_prefix_are_shared():
    kv = make_manager()
    first = compute(kv, make_request("a", PROMPT))
    second = compute(kv, make_request("b", PROMPT))
    assert second.block_ids[:2] == first.block_ids[:2]
    assert second.block_ids[2] != first.block_ids[2]
    assert kv.num_free_blocks == 19 - 4
    kv.check_integrity([first, second])


def test_one_token_is_always_left_to_compute():
    kv = make_manager()
    compute(kv, make_request("a", list(range(8))))
    assert len(kv.find_prefix(make_request("b", list(range(8))))) == 1
    assert len(kv.find_prefix(make_request("c", list(range(9))))) == 2


def test_the_prefix_ends_where_the_tokens_differ():
    kv = make_manager()
    compute(kv, make_request("a", PROMPT))
    assert len(kv.find_prefix(make_request("b", [0, 1, 2, 3, 4, 5, 6, -7, 8, 9]))) == 1


def test_output_tokens_can_be_a_prefix_of_the_next_turn():
    kv, request = make_manager(), make_request("a", PROMPT)
    request.token_ids += [50, 51]
    compute(kv, request)
    kv.free(request)
    assert len(kv.find_prefix(make_request("b", [*PROMPT, 50, 51, 52]))) == 3


@pytest.mark.promise("CORE-4")
@pytest.mark.parametrize(
    "fields", [{"adapter_id": 1}, {"adapter_id": 2, "adapter_generation": 2}, {"cache_salt": "pepper"}, {}]
)
def test_requests_of_other_adapters_generations_and_salts_share_nothing(fields):
    kv = make_manager()
    own = {"adapter_id": 2, "adapter_generation": 1, "cache_salt": "salt"}
    compute(kv, make_request("a", PROMPT, **own))
    assert num_hit_blocks(kv, **fields) == 0
    assert num_hit_blocks(kv, **own) == 2


@pytest.mark.promise("CORE-7")
def test_without_prefix_caching_only_samples_of_one_group_share():
    kv = make_manager(enable_prefix_caching=False)
    compute(kv, make_request("a", PROMPT, group_id="g"))
    compute(kv, make_request("b", PROMPT))
    assert num_hit_blocks(kv, group_id="g") == 2
    assert num_hit_blocks(kv, group_id="h") == 0
    assert num_hit_blocks(kv) == 0


def test_with_prefix_caching_groups_share_with_everybody():
    kv = make_manager()
    compute(kv, make_request("a", PROMPT, group_id="g"))
    assert num_hit_blocks(kv) == 2


def test_a_freed_request_leaves_its_blocks_findable_until_they_are_needed():
    kv = make_manager(num_blocks=4)
    request = compute(kv, make_request("a", PROMPT))
    table = request.block_ids
    kv.free(request)
    assert kv.num_free_blocks == 3
    prefix = kv.find_prefix(request)
    assert prefix == table[:2]
    assert kv.num_blocks_taken(10, prefix) == 3
    compute(kv, make_request("b", 9))
    assert kv.find_prefix(request) == []


def test_a_prefix_counts_against_the_free_blocks_when_nobody_holds_it():
    kv = make_manager(num_blocks=4)
    request = compute(kv, make_request("a", PROMPT))
    kv.free(request)
    long = make_request("b", [*PROMPT, *range(100, 104)])
    prefix = kv.find_prefix(long)
    assert kv.allocate(long, 6, prefix) is None
    assert (long.block_ids, long.num_computed_tokens, kv.num_free_blocks) == ([], 0, 3)


def test_a_block_filled_twice_keeps_its_first_copy():
    kv = make_manager()
    first, second = make_request("a", PROMPT), make_request("b", PROMPT)
    for request in (first, second):
        kv.find_prefix(request)
        assert kv.allocate(request, 10)
    for request in (first, second):
        kv.register_full_blocks(request, 10)
    assert not set(first.block_ids) & set(second.block_ids)
    assert kv.find_prefix(make_request("c", PROMPT)) == first.block_ids[:2]
    kv.check_integrity([first, second])


def test_a_reset_is_final_for_what_was_computed_before():
    kv = make_manager()
    running = compute(kv, make_request("a", PROMPT[:6]))
    kv.reset_prefix_cache()
    assert num_hit_blocks(kv) == 0
    running.token_ids += PROMPT[6:]
    assert kv.allocate(running, 4) == running.block_ids[2:]
    kv.register_full_blocks(running, 10)
    assert kv.pool.num_cached_blocks == 0


def test_a_block_half_written_before_a_reset_is_never_found():
    kv = make_manager()
    running = make_request("a", PROMPT)
    kv.find_prefix(running)
    assert kv.allocate(running, 2)
    running.num_computed_tokens = 2
    kv.reset_prefix_cache()
    assert kv.allocate(running, 8)
    kv.register_full_blocks(running, 10)
    assert num_hit_blocks(kv) == 0


def test_a_request_that_waited_through_a_reset_is_cached_again():
    kv, request = make_manager(), make_request("a", PROMPT)
    kv.find_prefix(request)
    kv.reset_prefix_cache()
    compute(kv, request)
    assert num_hit_blocks(kv) == 2


def test_prefix_counts_are_handed_out_once():
    kv = make_manager()
    kv.count_prefix_query(10, 8)
    kv.count_prefix_query(5, 0)
    assert kv.take_prefix_counts() == (15, 8)
    assert kv.take_prefix_counts() == (0, 0)


def test_nothing_is_counted_without_prefix_caching():
    kv = make_manager(enable_prefix_caching=False)
    kv.count_prefix_query(10, 8)
    assert kv.take_prefix_counts() == (0, 0)
