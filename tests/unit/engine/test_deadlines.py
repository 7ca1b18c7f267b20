"""Requests that run out of time, in the queue and while they run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.engine_fakes import engine_config
from tests.unit.engine.conftest import Harness, make_request
from vllm_mxext.config.frontend import AdmissionConfig
from vllm_mxext.engine.backends.fake_tokenizer import FakeTokenizer
from vllm_mxext.engine.frontend.input_processor import InputProcessor
from vllm_mxext.engine.frontend.output_processor import OutputProcessor
from vllm_mxext.errors import DeadlineExceededError, InvalidRequestError
from vllm_mxext.native.protocol import EngineCoreOutput, EngineCoreOutputs
from vllm_mxext.requests import GenerateRequest, TokensPrompt
from vllm_mxext.sampling_params import SamplingParams

pytestmark = pytest.mark.promise("TIME-1")
Start = Callable[..., Any]


class Processor:
    """An output processor whose clock the test sets."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._input = InputProcessor(engine_config(), FakeTokenizer(), lambda: 0)
        self.outputs = OutputProcessor(FakeTokenizer(), lambda: self.now_s)

    def add(self, request_id: str, n: int = 1, **limits: Any) -> Any:
        params = SamplingParams(n=n, max_tokens=100, ignore_eos=True)
        request = GenerateRequest(request_id, TokensPrompt((1, 2)), params, **limits)
        return self.outputs.add(self._input.process(request, self.now_s))

    def step(self, state: Any, *tokens: int, sample: int = 0) -> Any:
        core_id = state.samples[sample].request.request_id
        return self.outputs.process(EngineCoreOutputs([EngineCoreOutput(core_id, list(tokens))]))


def test_a_running_request_ends_with_what_it_has() -> None:
    processor = Processor()
    state = processor.add("r", n=2, timeout_s=5.0)
    processor.step(state, 97, 98)
    processor.now_s = 4.9
    assert not processor.outputs.expire().changed
    processor.now_s = 5.0
    step = processor.outputs.expire()
    assert len(step.abort_ids) == 2
    output = state.take_output()
    assert [(s.text, s.finish_reason, s.stop_reason) for s in output.outputs] == [
        ("ab", "length", "timeout"),
        ("", "length", "timeout"),
    ]
    assert state.error is None
    assert processor.outputs.num_requests == 0
    assert processor.outputs.next_deadline_s is None


def test_a_request_without_output_fails() -> None:
    processor = Processor()
    state = processor.add("r", timeout_s=5.0)
    processor.now_s = 6.0
    processor.outputs.expire()
    assert isinstance(state.error, DeadlineExceededError)
    assert "5 seconds" in str(state.error)


def test_the_nearest_deadline_is_known_and_forgotten_with_its_request() -> None:
    processor = Processor()
    processor.add("late", timeout_s=50.0)
    processor.add("never")
    processor.add("soon", timeout_s=5.0)
    assert processor.outputs.next_deadline_s == 5.0
    processor.outputs.abort(["soon"])
    assert processor.outputs.next_deadline_s == 50.0


def test_the_limit_of_generation_counts_from_the_first_token_and_waits_for_a_line_break() -> None:
    processor = Processor()
    state = processor.add("r", max_generation_s=2.0)
    processor.now_s = 10.0
    processor.step(state, 97)
    processor.now_s = 13.0
    processor.step(state, 98)
    assert not state.is_finished
    step = processor.step(state, 10)
    assert state.is_finished
    assert step.abort_ids
    (sample,) = state.take_output().outputs
    assert (sample.text, sample.finish_reason, sample.stop_reason) == ("ab\n", "length", "timeout")


@pytest.mark.parametrize("timeout_s", [0.0, -1.0, float("nan"), float("inf")])
def test_a_limit_must_be_a_positive_time(timeout_s: float) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        GenerateRequest("r", TokensPrompt((1,)), SamplingParams(), timeout_s=timeout_s)
    assert caught.value.param == "timeout_ms"


async def test_a_waiting_request_of_the_client_fails_and_gives_its_place_back(start: Start) -> None:
    harness: Harness = await start(admission=AdmissionConfig(max_num_queued_reqs=0))
    harness.cores.current.freeze()
    slow = make_request("slow", n=8, temperature=1.0)
    request = GenerateRequest("r", slow.prompt, slow.params, timeout_s=0.001)
    with pytest.raises(DeadlineExceededError):
        await harness.outputs(request)
    harness.cores.current.thaw()
    assert len((await harness.outputs(slow))[-1].outputs) > 0
    assert harness.client._deadline is None


async def test_one_timer_serves_all_requests(start: Start) -> None:
    harness: Harness = await start()
    harness.cores.current.freeze()
    made = make_request()
    streams = [
        await harness.client.generate(GenerateRequest(str(i), made.prompt, made.params, timeout_s=timeout_s))
        for i, timeout_s in enumerate((0.004, 0.002, 1000.0))
    ]
    for stream in streams[:2]:
        with pytest.raises(DeadlineExceededError):
            await anext(stream)
    assert harness.client._deadline is not None
    harness.cores.current.thaw()
    assert [output async for output in streams[2]][-1].finished
