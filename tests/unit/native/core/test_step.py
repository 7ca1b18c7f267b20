"""What a step tells the runner."""

from __future__ import annotations

from tests.unit.native.core.builders import make_request
from vllm_mxext.native.core.step import Step
from vllm_mxext.native.protocol import CachedRequestData, SchedulerOutput


def test_an_empty_step_says_nothing():
    assert Step(10).finish([]) == SchedulerOutput()


def test_running_requests_are_sent_as_differences_and_new_ones_whole():
    step, running, new = Step(10), make_request("a", 5), make_request("b", [1, 2, 3], adapter_id=4)
    running.num_computed_tokens, new.block_ids, new.num_computed_tokens = 4, [8, 9], 2
    step.add_running(running, 1, [7])
    step.add_admitted(new, 1, adapter_slot=3)
    output = step.finish(["gone"])
    assert output.cached_requests == [CachedRequestData("a", [7], 4)]
    (described,) = output.new_requests
    assert (described.token_ids, described.num_prompt_tokens, described.block_ids) == ([1, 2, 3], 3, [8, 9])
    assert (described.num_computed_tokens, described.adapter_slot, described.seed) == (2, 3, 1)
    assert output.num_scheduled_tokens == {"a": 1, "b": 1}
    assert (output.total_num_scheduled_tokens, step.num_free_tokens) == (2, 8)
    assert output.finished_request_ids == ["gone"]


def test_what_is_sent_does_not_change_with_the_request():
    step, request = Step(10), make_request("a", [1, 2])
    request.block_ids = [3]
    step.add_admitted(request, 2)
    request.token_ids.append(5)
    request.block_ids.append(6)
    (described,) = step.finish([]).new_requests
    assert (described.token_ids, described.block_ids) == ([1, 2], [3])


def test_a_preempted_request_gives_its_tokens_back():
    step, request = Step(10), make_request("a")
    step.add_running(request, 3, [])
    step.preempt(request)
    step.preempt(make_request("not scheduled"))
    assert step.finish([]) == SchedulerOutput()
    assert (step.num_free_tokens, step.num_preempted) == (10, 2)
