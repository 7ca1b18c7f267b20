"""Who is preempted when blocks run out, and how it comes back."""

from __future__ import annotations

import pytest

from tests.unit.native.core.builders import NEXT_TOKEN, Engine, growing_engine, overload
from vllm_mxext.native.protocol import FinishReason


@pytest.mark.promise("CORE-5")
def test_the_last_running_request_is_preempted_and_comes_back_whole():
    engine = growing_engine(2)
    scheduled = overload(engine)
    assert scheduled.finished_request_ids == ["r1"]
    assert "r1" not in scheduled.num_scheduled_tokens
    assert scheduled.new_requests == []
    for _ in range(50):
        scheduled, outputs = engine.step()
        if scheduled.new_requests:
            break
    (new,) = scheduled.new_requests
    assert (new.request_id, new.num_prompt_tokens) == ("r1", 1)
    assert new.token_ids[1:] == [NEXT_TOKEN] * (len(new.token_ids) - 1)
    assert len(new.token_ids) > 2
    (output,) = [output for output in outputs.outputs if output.request_id == "r1"]
    assert output.num_preemptions == 1


def test_the_lowest_priority_is_preempted_under_the_priority_policy():
    assert overload(growing_engine(policy="priority")).finished_request_ids == ["r0"]


@pytest.mark.promise("CORE-5")
@pytest.mark.parametrize("policy", ["fcfs", "priority"])
@pytest.mark.parametrize("enable_prefix_caching", [True, False])
def test_preempted_requests_end_as_if_nothing_had_happened(policy, enable_prefix_caching):
    engine = growing_engine(6, policy=policy, enable_prefix_caching=enable_prefix_caching)
    ended = engine.run()
    assert ended == {f"r{index}": (FinishReason.LENGTH, [NEXT_TOKEN] * 10) for index in range(6)}


def test_a_preempted_request_starts_from_what_the_prefix_cache_kept():
    engine = growing_engine(2)
    overloaded = overload(engine)
    assert overloaded.finished_request_ids == ["r1"]
    for _ in range(50):
        scheduled, _ = engine.step()
        if scheduled.new_requests:
            break
    assert scheduled.new_requests[0].num_computed_tokens > 0


@pytest.mark.promise("CORE-9")
def test_a_request_without_a_block_sits_out_rather_than_preempting_itself():
    engine = Engine(num_blocks=20, block_size=4, max_model_len=32)
    engine.add("a", 12, max_tokens=6)
    engine.add("b", 12, max_tokens=6)
    engine.step()
    assert engine.scheduler.num_running == 2
    blocker = engine.scheduler._kv.pool.allocate(engine.scheduler.num_free_blocks - 1)
    scheduled, outputs = engine.step()
    assert scheduled.num_scheduled_tokens == {"a": 1}
    assert outputs.stats is not None
    assert (outputs.stats.num_preempted, outputs.stats.num_running) == (0, 2)
    engine.scheduler._kv.pool.release(blocker)
    assert engine.step()[0].num_scheduled_tokens == {"a": 1, "b": 1}


def test_a_request_preempted_after_it_was_scheduled_leaves_no_trace_in_the_step():
    engine = Engine(num_blocks=11, block_size=2, max_model_len=20, max_num_batched_tokens=6, policy="priority")
    engine.add("low", 1, priority=1, max_tokens=19)
    engine.step()
    engine.add("high", 14, priority=0, max_tokens=2)
    engine.step()
    pool = engine.scheduler._kv.pool
    pool.allocate(pool.num_free_blocks - 1)  # one block for low's decode, none for high's prompt
    scheduled = engine.scheduler.schedule()
    assert scheduled.finished_request_ids == ["low"]
    assert scheduled.num_scheduled_tokens.keys() == {"high"}
    assert [cached.request_id for cached in scheduled.cached_requests] == ["high"]
    assert scheduled.total_num_scheduled_tokens == sum(scheduled.num_scheduled_tokens.values())


def test_a_step_that_preempts_lets_nobody_in():
    engine = growing_engine()
    engine.step()
    engine.add("late", 1)
    scheduled = overload(engine)
    assert scheduled.new_requests == []


def test_preemption_is_warned_about_ever_more_rarely(caplog):
    with caplog.at_level("WARNING", logger="vllm_mxext"):
        engine = growing_engine(6)
        engine.run()
    numbers = [record.args[2] for record in caplog.records]
    assert numbers
    assert numbers == [2**index for index in range(len(numbers))]
