"""The step loop body on a runner without a model."""

from __future__ import annotations

import msgspec
import pytest

from tests.engine_fakes import CoreKilledError, HashRunner, engine_config, make_core, undisturbed
from vllm_mxext.native.engine_core import EngineCore
from vllm_mxext.native.protocol import EngineCoreOutput, EngineCoreRequest, FinishReason
from vllm_mxext.sampling_params import SamplingParams


def request(request_id: str, prompt: list[int] | None = None, **params: object) -> EngineCoreRequest:
    values = {"max_tokens": 12, "ignore_eos": True, **params}
    return EngineCoreRequest(request_id, prompt or [1, 2, 3, 4, 5], SamplingParams(**values), seed=7)


def run(core: EngineCore) -> dict[str, list[EngineCoreOutput]]:
    outputs: dict[str, list[EngineCoreOutput]] = {}
    while core.has_work:
        for output in core.step().outputs:
            outputs.setdefault(output.request_id, []).append(output)
    return outputs


def tokens(outputs: list[EngineCoreOutput]) -> list[int]:
    return [token_id for output in outputs for token_id in output.new_token_ids]


def test_requests_run_to_their_end_with_one_finish_reason_each() -> None:
    core = make_core()
    requests = [request(str(i), list(range(1, 4 + 5 * i)), max_tokens=3 + i) for i in range(6)]
    for each in requests:
        core.add_request(each)
    outputs = run(core)
    for each in requests:
        assert tokens(outputs[each.request_id]) == undisturbed(each)
        reasons = [output.finish_reason for output in outputs[each.request_id]]
        assert reasons == [None] * (len(reasons) - 1) + [FinishReason.LENGTH]


def test_an_idle_core_has_no_work() -> None:
    core = make_core()
    assert not core.has_work
    core.add_request(request("a"))
    run(core)
    assert not core.has_work


@pytest.mark.promise("ENG-4")
@pytest.mark.parametrize("num_delivered", range(12))
def test_a_resubmitted_request_continues_with_the_same_tokens(num_delivered: int) -> None:
    whole = request("a")
    expected = undisturbed(whole)
    core = make_core(engine_config(max_num_batched_tokens=8))
    core.add_request(msgspec.structs.replace(whole, output_token_ids=expected[:num_delivered]))
    assert tokens(run(core)["a"]) == expected[num_delivered:]


@pytest.mark.promise("ENG-7")
def test_unusable_logits_fail_one_request_and_no_other() -> None:
    core = make_core(runner=HashRunner(nan_ids={"bad"}))
    good, bad = request("good"), request("bad")
    core.add_request(good)
    core.add_request(bad)
    outputs = run(core)
    assert tokens(outputs["good"]) == undisturbed(good)
    assert [output.finish_reason for output in outputs["bad"]] == [FinishReason.ERROR]
    assert outputs["bad"][0].new_token_ids == []
    assert "no usable scores" in (outputs["bad"][0].error or "")


def test_a_failed_request_leaves_nothing_in_the_prefix_cache() -> None:
    core = make_core(runner=HashRunner(nan_ids={"bad"}))
    prompt = list(range(1, 30))
    core.add_request(request("bad", prompt))
    run(core)
    core.add_request(request("good", prompt))
    assert run(core)["good"][0].num_cached_tokens == 0


def test_reset_prefix_cache_forgets_computed_prefixes() -> None:
    core = make_core()
    prompt = list(range(1, 30))
    core.add_request(request("a", prompt))
    run(core)
    core.add_request(request("b", prompt))
    assert run(core)["b"][0].num_cached_tokens == 28
    assert core.reset_prefix_cache()
    core.add_request(request("c", prompt))
    assert run(core)["c"][0].num_cached_tokens == 0


def test_an_aborted_request_ends_with_abort_and_others_go_on() -> None:
    core = make_core()
    kept, dropped = request("kept"), request("dropped")
    core.add_request(kept)
    core.add_request(dropped)
    core.step()
    core.abort(["dropped", "never heard of"])
    outputs = run(core)
    assert [output.finish_reason for output in outputs["dropped"]] == [FinishReason.ABORT]
    assert tokens(outputs["kept"]) == undisturbed(kept)[1:]


@pytest.mark.promise("ENG-7")
def test_a_forward_pass_that_raises_ends_its_requests_and_leaves_a_working_core() -> None:
    runner = HashRunner(lethal=lambda request_ids: "bad" in request_ids)
    core = make_core(runner=runner)
    core.add_request(request("bad"))
    with pytest.raises(CoreKilledError) as raised:
        core.step()
    good = request("good")
    core.add_request(good)
    outputs = run(core)
    assert [(output.finish_reason, output.error) for output in outputs["bad"]] == [
        (FinishReason.ERROR, str(raised.value))
    ]
    assert tokens(outputs["good"]) == undisturbed(good)


@pytest.mark.promise("SPEC-1")
def test_drafts_make_steps_fewer_and_leave_tokens_and_logprobs_as_they_are() -> None:
    whole = request("a", max_tokens=40, logprobs=2)
    answers, num_steps = [], []
    for num_draft_tokens in (0, 3):
        runner = HashRunner()
        core = make_core(engine_config(num_draft_tokens=num_draft_tokens), runner)
        core.add_request(whole)
        outputs = run(core)["a"]
        logprobs = [entry for output in outputs for entry in output.logprobs or ()]
        answers.append((tokens(outputs), logprobs))
        num_steps.append(runner.num_steps)
    assert answers[0] == answers[1]
    assert answers[0][0] == undisturbed(whole)
    assert num_steps[1] < 0.7 * num_steps[0]
