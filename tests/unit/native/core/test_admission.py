"""How much room a waiting request needs to start."""

from __future__ import annotations

import pytest

from tests.unit.native.core.builders import make_request
from vllm_mxext.config.engine import SchedulerConfig
from vllm_mxext.errors import ConfigError
from vllm_mxext.native.core.admission import AdmissionControl, check_limits
from vllm_mxext.native.core.kv_cache_manager import KVCacheManager
from vllm_mxext.native.core.request import Request


def make_control(num_free_blocks: int, *, block_size: int = 4, **limits: int) -> AdmissionControl:
    kv = KVCacheManager(num_blocks=num_free_blocks + 1, block_size=block_size, enable_prefix_caching=True)
    return AdmissionControl(SchedulerConfig(**{"max_num_batched_tokens": 64, "max_num_seqs": 8, **limits}), kv)


def decoding(sequence: int = 0, *, num_tokens: int = 8, max_tokens: int = 50, block_size: int = 4) -> Request:
    """A running request that has computed all but its newest token, with blocks from nowhere."""
    request = make_request(f"d{sequence}", num_tokens, sequence=sequence, max_tokens=max_tokens)
    request.num_computed_tokens = num_tokens - 1
    request.block_ids = list(range(-(-(num_tokens - 1) // block_size)))
    return request


def test_a_pool_smaller_than_the_longest_request_is_refused_with_numbers():
    limits = SchedulerConfig()
    check_limits(limits, num_blocks=5, block_size=4, max_model_len=16)
    with pytest.raises(ConfigError, match=r"16 tokens needs 4 KV blocks of 4 tokens, but only 3 fit.*to 12 or"):
        check_limits(limits, num_blocks=4, block_size=4, max_model_len=16)


def test_a_budget_below_the_longest_prompt_is_refused_without_chunked_prefill():
    limits = SchedulerConfig(max_num_batched_tokens=15, enable_chunked_prefill=False)
    with pytest.raises(ConfigError, match=r"max_num_batched_tokens \(15\) must be at least max_model_len \(16\)"):
        check_limits(limits, num_blocks=9, block_size=4, max_model_len=16)


@pytest.mark.parametrize("limits", [{"max_num_batched_tokens": 0}, {"max_num_seqs": 0}])
def test_limits_below_one_are_refused(limits):
    with pytest.raises(ConfigError, match="must be at least 1"):
        check_limits(SchedulerConfig(**limits), num_blocks=9, block_size=4, max_model_len=16)


def test_no_more_requests_run_than_each_can_have_a_token():
    assert make_control(9, max_num_seqs=8, max_num_batched_tokens=3).max_running == 3
    assert make_control(9, max_num_seqs=2, max_num_batched_tokens=3).max_running == 2


def test_the_threshold_limits_prefills_only_when_they_may_be_cut():
    assert make_control(9, long_prefill_token_threshold=5).prefill_limit == 5
    assert make_control(9, long_prefill_token_threshold=500).prefill_limit == 64
    assert make_control(9, long_prefill_token_threshold=5, enable_chunked_prefill=False).prefill_limit == 64


def test_a_request_alone_always_starts():
    assert make_control(1).has_blocks_for(make_request(prompt=60), [], [])


def test_all_known_tokens_must_fit_beside_running_requests():
    request = make_request(prompt=8, sequence=1)  # 8 tokens and the next one: 3 blocks
    done = decoding(max_tokens=1, num_tokens=8)  # will not grow
    done.max_total_tokens = 8
    assert not make_control(2).has_blocks_for(request, [], [done])
    assert make_control(3).has_blocks_for(request, [], [done])


def test_room_is_left_for_those_ahead_to_grow():
    # 2 steps (9 tokens in budget of 64, and a spare) and a block of 4 more: from 8 to 14 tokens, 2 blocks more.
    request, ahead = make_request(prompt=8, sequence=1), [decoding(0)]
    assert not make_control(4).has_blocks_for(request, [], ahead)
    assert make_control(5).has_blocks_for(request, [], ahead)


def test_no_room_is_left_beyond_what_those_ahead_may_still_write():
    ahead = [decoding(0, max_tokens=2)]  # 10 tokens at most: 1 block more
    assert make_control(4).has_blocks_for(make_request(prompt=8, sequence=1), [], ahead)


def test_no_room_is_left_for_requests_that_are_preempted_first():
    assert make_control(3).has_blocks_for(make_request(prompt=8, sequence=1), [], [decoding(2)])


def test_every_preemption_asks_for_more_room():
    def num_blocks_wanted(num_preemptions: int) -> int:
        request = make_request(prompt=8, sequence=1)
        request.num_preemptions = num_preemptions
        return next(n for n in range(1, 100) if make_control(n).has_blocks_for(request, [], [decoding(0)]))

    wanted = [num_blocks_wanted(count) for count in range(6)]
    assert wanted == sorted(wanted)
    assert wanted[0] < wanted[1] < wanted[2] < wanted[3]
    assert wanted[-1] == 3 + 13, "never more than those ahead can use: 50 more tokens"


def test_a_returning_request_reckons_with_the_largest_load():
    # 21 tokens beside one other: 1 step of 31 tokens now, but 21 steps of one token when 31 others decode.
    def num_blocks_wanted(num_preemptions: int) -> int:
        request = make_request(prompt=21, sequence=1)
        request.num_preemptions = num_preemptions
        limits = {"max_num_batched_tokens": 32, "max_num_seqs": 32}
        return next(n for n in range(1, 100) if make_control(n, **limits).has_blocks_for(request, [], [decoding(0)]))

    steps_now, steps_then = 1 + 1 + 4, 21 + 1 + 1 + 8
    assert num_blocks_wanted(0) == 6 + -(-(8 + steps_now) // 4) - 2
    assert num_blocks_wanted(1) == 6 + -(-(8 + steps_then) // 4) - 2
