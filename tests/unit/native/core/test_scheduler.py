"""What the scheduler puts into a step and how requests end."""

from __future__ import annotations

import pytest

from tests.unit.native.core.builders import EOS, NEXT_TOKEN, Engine, growing_engine, make_source, only, overload
from vllm_mxext.errors import ConfigError, InvalidRequestError
from vllm_mxext.native.protocol import FinishReason, ModelRunnerOutput, SchedulerOutput, SchedulerStats, TokenLogprobs
from vllm_mxext.sampling_params import SamplingParams

STOP, LENGTH, ABORT, ERROR = FinishReason.STOP, FinishReason.LENGTH, FinishReason.ABORT, FinishReason.ERROR


def scheduled_tokens(engine: Engine) -> dict[str, int]:
    return engine.step()[0].num_scheduled_tokens


# --- budget and order ---


@pytest.mark.promise("CORE-3")
def test_prompts_and_decodes_share_one_step():
    engine = Engine()
    engine.add("a", 5)
    assert scheduled_tokens(engine) == {"a": 5}
    engine.add("b", 3)
    assert scheduled_tokens(engine) == {"a": 1, "b": 3}


@pytest.mark.promise("CORE-2", "CORE-3")
def test_a_long_prompt_is_cut_to_the_token_budget():
    engine = Engine(max_num_batched_tokens=10)
    engine.add("a", 25)
    engine.add("b", 4)
    assert [scheduled_tokens(engine) for _ in range(4)] == [{"a": 10}, {"a": 10}, {"a": 5, "b": 4}, {"a": 1, "b": 1}]


def test_a_cut_prompt_samples_only_when_it_is_complete():
    engine = Engine(max_num_batched_tokens=10)
    engine.add("a", 15)
    assert engine.step()[1].outputs == []
    assert only(engine.step()[1]).new_token_ids == [NEXT_TOKEN]


def test_one_prompt_takes_no_more_than_the_threshold():
    engine = Engine(long_prefill_token_threshold=6)
    engine.add("a", 15)
    engine.add("b", 4)
    assert scheduled_tokens(engine) == {"a": 6, "b": 4}
    assert scheduled_tokens(engine) == {"b": 1, "a": 6}


def test_without_chunked_prefill_a_prompt_waits_for_room():
    engine = Engine(max_num_batched_tokens=30, max_model_len=30, enable_chunked_prefill=False)
    engine.add("a", 20)
    engine.add("b", 12)
    engine.add("c", 2)
    assert scheduled_tokens(engine) == {"a": 20}, "c does not overtake b"
    assert scheduled_tokens(engine) == {"a": 1, "b": 12, "c": 2}


def test_decodes_come_before_an_older_prefill_when_the_budget_is_tight():
    engine = Engine(max_num_batched_tokens=4, long_prefill_token_threshold=3)
    engine.add("long", 30)
    engine.add("short", 1)
    assert scheduled_tokens(engine) == {"long": 3, "short": 1}
    assert list(scheduled_tokens(engine).items()) == [("short", 1), ("long", 3)]


def test_a_prompt_of_many_steps_leaves_every_stream_its_token_in_each_of_them():
    engine = Engine(num_blocks=600, max_model_len=1100, max_num_batched_tokens=64)
    streams = ["a", "b", "c", "d"]
    for stream in streams:
        engine.add(stream, 4, max_tokens=100)
    engine.step()
    engine.add("z", 1000)
    num_prompt_tokens, num_steps = 0, 0
    while num_prompt_tokens < 1000:
        scheduled = scheduled_tokens(engine)
        num_prompt_tokens += scheduled.pop("z")
        num_steps += 1
        assert scheduled == dict.fromkeys(streams, 1)
    assert num_steps == -(-1000 // (64 - len(streams)))


def test_prefills_are_served_in_order():
    engine = Engine(max_num_batched_tokens=8, long_prefill_token_threshold=6)
    engine.add("a", 20)
    engine.add("b", 20)
    assert scheduled_tokens(engine) == {"a": 6, "b": 2}
    assert scheduled_tokens(engine) == {"a": 6, "b": 2}


@pytest.mark.promise("CORE-2")
def test_no_more_than_max_num_seqs_run():
    engine = Engine(max_num_seqs=2)
    for request_id in "abc":
        engine.add(request_id, 2, max_tokens=2)
    assert scheduled_tokens(engine) == {"a": 2, "b": 2}
    assert (engine.scheduler.num_running, engine.scheduler.num_waiting) == (2, 1)
    assert scheduled_tokens(engine) == {"a": 1, "b": 1}
    assert scheduled_tokens(engine) == {"c": 2}


@pytest.mark.promise("CORE-6")
def test_priority_decides_who_starts_first():
    engine = Engine(max_num_seqs=1, policy="priority")
    engine.add("late", priority=0, arrival_s=2.0, max_tokens=1)
    engine.add("early", priority=0, arrival_s=1.0, max_tokens=1)
    engine.add("urgent", priority=-1, arrival_s=3.0, max_tokens=1)
    assert [list(scheduled_tokens(engine)) for _ in range(3)] == [["urgent"], ["early"], ["late"]]


# --- prefix cache ---


@pytest.mark.promise("CORE-7")
def test_samples_of_one_prompt_share_its_blocks_in_the_very_first_step():
    for enable_prefix_caching in (True, False):
        engine = Engine(enable_prefix_caching=enable_prefix_caching)
        for index in range(3):
            engine.add(f"g/{index}", list(range(10)), group_id="g")
        scheduled, _ = engine.step()
        assert scheduled.num_scheduled_tokens == {"g/0": 10, "g/1": 2, "g/2": 2}
        first, *others = scheduled.new_requests
        assert all(other.block_ids[:2] == first.block_ids[:2] for other in others)
        assert all(other.num_computed_tokens == 8 for other in others)


def test_a_prefix_hit_is_reported_with_the_first_output():
    engine = Engine()
    engine.add("a", list(range(10)), max_tokens=1)
    _, first = engine.step()
    engine.add("b", list(range(10)), max_tokens=2)
    _, second = engine.step()
    assert (only(first).num_cached_tokens, only(second).num_cached_tokens) == (0, 8)
    assert second.stats is not None
    assert (second.stats.prefix_cache_queries, second.stats.prefix_cache_hits) == (10, 8)
    assert only(engine.step()[1]).num_cached_tokens is None


def test_nothing_computed_before_a_reset_is_found():
    engine = Engine()
    engine.add("a", list(range(10)))
    engine.step()
    engine.scheduler.reset_prefix_cache()
    engine.add("b", list(range(10)))
    assert scheduled_tokens(engine) == {"a": 1, "b": 10}


# --- ends ---


def test_every_end_is_told_with_its_reason():
    engine = Engine()
    engine.add("length", 3, max_tokens=2)
    engine.add("eos", 3)
    engine.add("stop", 3, params=SamplingParams(max_tokens=9, stop_token_ids=(5,)))
    engine.next_tokens = {"eos": EOS, "stop": 5}
    _, outputs = engine.step()
    ends = {output.request_id: (output.finish_reason, output.stop_reason) for output in outputs.outputs}
    assert ends == {"length": (None, None), "eos": (STOP, None), "stop": (STOP, 5)}
    assert only(engine.step()[1]).finish_reason == LENGTH
    assert not engine.scheduler.has_work


def test_the_context_ends_a_request_below_its_max_tokens():
    engine = Engine(max_model_len=10)
    engine.add("a", 7, max_tokens=50)
    assert engine.run() == {"a": (LENGTH, [NEXT_TOKEN] * 3)}


def test_tokens_after_the_end_are_dropped_with_their_logprobs():
    engine = Engine()
    engine.add("a", 3)
    scheduled = engine.scheduler.schedule()
    logprobs = [TokenLogprobs([token_id], [-1.0], 1) for token_id in (5, EOS, 6)]
    result = ModelRunnerOutput({"a": [5, EOS, 6]}, {"a": logprobs})
    output = only(engine.scheduler.update_from_output(scheduled, result))
    assert (output.new_token_ids, output.finish_reason) == ([5, EOS], STOP)
    assert output.logprobs == logprobs[:2]


def test_tokens_delivered_before_a_resubmission_count_for_the_limits():
    engine = Engine()
    engine.add("a", 3, max_tokens=5, output_token_ids=[1, 2, 3])
    scheduled, outputs = engine.step()
    assert scheduled.new_requests[0].num_prompt_tokens == 3
    assert scheduled.num_scheduled_tokens == {"a": 6}
    assert only(outputs).new_token_ids == [NEXT_TOKEN]
    assert only(engine.step()[1]).finish_reason == LENGTH


@pytest.mark.parametrize(("delivered", "reason"), [([1, 2], LENGTH), ([EOS], STOP)])
def test_a_resubmitted_request_that_had_ended_already_just_ends(delivered, reason):
    engine = Engine()
    engine.add("a", 3, max_tokens=2, output_token_ids=delivered)
    assert engine.scheduler.has_work
    scheduled, outputs = engine.step()
    assert scheduled == SchedulerOutput()
    assert (only(outputs).finish_reason, only(outputs).new_token_ids) == (reason, [])
    assert not engine.scheduler.has_work


def test_ended_requests_are_dropped_by_the_runner_in_the_next_step_with_work():
    engine = Engine()
    engine.add("a", 3, max_tokens=1)
    engine.step()
    assert engine.step()[0] == SchedulerOutput()
    engine.add("b", 3)
    assert engine.step()[0].finished_request_ids == ["a"]
    assert engine.step()[0].finished_request_ids == []


# --- aborts and failures ---


@pytest.mark.promise("CORE-8")
def test_an_abort_frees_the_blocks_at_once_and_is_told_once():
    engine = Engine()
    engine.add("running", 9)
    engine.step()
    engine.add("waiting", 9)
    engine.scheduler.abort(["running", "waiting", "running", "unknown"])
    assert engine.scheduler.num_free_blocks == engine.scheduler.num_usable_blocks
    _, outputs = engine.step()
    ends = [(output.request_id, output.finish_reason) for output in outputs.outputs]
    assert ends == [("running", ABORT), ("waiting", ABORT)]
    assert not engine.scheduler.has_work


def test_only_rows_the_runner_knows_are_dropped():
    engine = growing_engine()
    assert overload(engine).finished_request_ids == ["r2"]
    engine.add("new", 1)
    engine.scheduler.abort(["r2", "new", "r1"])
    assert engine.step()[0].finished_request_ids == ["r1"]


def test_a_request_aborted_during_its_step_gets_no_token():
    engine = Engine()
    engine.add("a", 3)
    engine.add("b", 3)
    scheduled = engine.scheduler.schedule()
    engine.scheduler.abort(["a"])
    outputs = engine.scheduler.update_from_output(scheduled, engine.execute(scheduled))
    assert [(output.request_id, output.new_token_ids) for output in outputs.outputs] == [("a", []), ("b", [NEXT_TOKEN])]


def test_an_id_can_be_used_again_while_its_old_request_is_in_the_step():
    engine = Engine()
    engine.add("a", 3)
    scheduled = engine.scheduler.schedule()
    engine.scheduler.abort(["a"])
    engine.add("a", [1, 2, 3, 4, 5])
    only(engine.scheduler.update_from_output(scheduled, engine.execute(scheduled)))
    scheduled, outputs = engine.step()
    assert scheduled.finished_request_ids == ["a"]
    assert scheduled.num_scheduled_tokens == {"a": 5}
    assert only(outputs).new_token_ids == [NEXT_TOKEN]


def test_a_failed_step_ends_its_requests_and_leaves_no_lie_in_the_prefix_cache():
    engine = Engine(max_num_seqs=1)
    engine.add("a", list(range(10)))
    engine.add("b", list(range(10)))
    scheduled = engine.scheduler.schedule()
    engine.scheduler.fail_step(scheduled, "out of memory")
    scheduled, outputs = engine.step()
    failed = outputs.outputs[0]
    assert (failed.request_id, failed.finish_reason, failed.error) == ("a", ERROR, "out of memory")
    assert scheduled.finished_request_ids == ["a"]
    assert scheduled.num_scheduled_tokens == {"b": 10}, "nothing of a is found"
    assert list(engine.run()) == ["b"]


def test_rows_to_drop_are_told_again_after_a_failed_step():
    engine = Engine()
    engine.add("a", 3, max_tokens=1)
    engine.step()
    engine.add("b", 3)
    engine.scheduler.fail_step(engine.scheduler.schedule(), "out of memory")
    engine.add("c", 3)
    assert engine.step()[0].finished_request_ids == ["a", "b"]


def test_a_runner_that_forgets_a_request_is_found_out():
    engine = Engine()
    engine.add("a", 3)
    scheduled = engine.scheduler.schedule()
    with pytest.raises(AssertionError, match="sampled None"):
        engine.scheduler.update_from_output(scheduled, ModelRunnerOutput({}))


# --- admission and numbers ---


@pytest.mark.parametrize("prompt", [[], list(range(64))])
def test_prompts_without_a_token_or_without_room_are_refused(prompt):
    with pytest.raises(InvalidRequestError, match="1 to 63 tokens"):
        Engine().add("a", prompt)


def test_an_open_id_is_refused():
    engine = Engine()
    engine.add("a")
    with pytest.raises(InvalidRequestError, match="'a' is in use"):
        engine.add("a")
    assert engine.scheduler.open_request_ids == ["a"]


def test_a_pool_too_small_for_the_context_is_refused():
    with pytest.raises(ConfigError, match="needs 16 KV blocks"):
        Engine(num_blocks=16, block_size=4, max_model_len=64)


def test_the_wait_is_told_with_the_first_output():
    engine = Engine(max_num_batched_tokens=4)
    engine.scheduler.add_request(make_source("a", 6))
    engine.now_s = 1.5
    engine.step()
    engine.now_s = 9.0
    assert only(engine.step()[1]).scheduled_after_s == 1.5


def test_stats_describe_the_step():
    engine = Engine(num_blocks=11, max_model_len=32, max_num_seqs=1)
    engine.add("a", 5)
    engine.add("b", 5)
    _, outputs = engine.step()
    assert outputs.stats == SchedulerStats(
        num_running=1,
        num_waiting=1,
        num_blocks=10,
        num_free_blocks=8,
        num_scheduled_tokens=5,
        num_preempted=0,
        prefix_cache_queries=5,
        prefix_cache_hits=0,
    )
