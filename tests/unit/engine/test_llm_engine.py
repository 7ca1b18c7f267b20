"""The synchronous engine, step by step, on a core without a model."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Sequence

import pytest

from tests.engine_fakes import HashRunner, engine_config, make_core
from tests.unit.engine.conftest import expected, make_request
from vllm_mxext.engine.backends.fake_tokenizer import FakeTokenizer
from vllm_mxext.engine.llm_engine import LLMEngine
from vllm_mxext.errors import ConfigError, EngineDeadError, InvalidRequestError
from vllm_mxext.native.engine_core import EngineCore
from vllm_mxext.native.protocol import EngineCoreOutputs, EngineCoreRequest
from vllm_mxext.sampling_params import OutputKind, SamplingParams

PARAMS = SamplingParams(max_tokens=6, ignore_eos=True, seed=1)


class SteppedCore:
    """An `EngineCore` as `LLMEngine` drives it."""

    def __init__(self, core: EngineCore) -> None:
        self.core = core

    @property
    def has_work(self) -> bool:
        return self.core.has_work

    def add_requests(self, requests: Sequence[EngineCoreRequest]) -> None:
        for request in requests:
            self.core.add_request(request)

    def abort(self, request_ids: Sequence[str]) -> None:
        self.core.abort(request_ids)

    def step(self) -> EngineCoreOutputs:
        return self.core.step()

    def reset_prefix_cache(self) -> bool:
        return self.core.reset_prefix_cache()


def make_engine(runner: HashRunner | None = None) -> LLMEngine:
    return LLMEngine(engine_config(), core=SteppedCore(make_core(runner=runner)), tokenizer=FakeTokenizer())


@pytest.fixture
def engine() -> LLMEngine:
    return make_engine()


@pytest.mark.promise("ENG-2")
def test_each_step_brings_one_token_of_each_running_request(engine: LLMEngine) -> None:
    engine.add_request("a", "hello", PARAMS)
    engine.add_request("b", "world", PARAMS)
    assert engine.has_unfinished_requests()
    assert engine.get_num_unfinished_requests() == 2
    seen: list[list[int]] = []
    while engine.has_unfinished_requests():
        seen.append([len(output.outputs[0].token_ids) for output in engine.step()])
    assert seen == [[i, i] for i in range(1, 7)]
    assert engine.step() == []


@pytest.mark.promise("ENG-2")
def test_outputs_are_those_of_an_undisturbed_run(engine: LLMEngine) -> None:
    requests = [make_request(str(i), "z" * (i + 1), seed=i, output_kind=OutputKind.FINAL_ONLY) for i in range(10)]
    engine.add_requests(requests)
    outputs = {}
    while engine.has_unfinished_requests():
        outputs.update({output.request_id: output for output in engine.step()})
    for request in requests:
        assert outputs[request.request_id].outputs[0].token_ids == expected(request, engine_config())


@pytest.mark.promise("ENG-2")
def test_an_aborted_request_gives_its_last_output_at_once(engine: LLMEngine) -> None:
    engine.add_request("a", "hello", PARAMS)
    engine.add_request("b", "hello", PARAMS)
    engine.step()
    (output,) = engine.abort_request(["a", "unknown"])
    assert (output.request_id, output.outputs[0].finish_reason) == ("a", "abort")
    assert engine.get_num_unfinished_requests() == 1
    while engine.has_unfinished_requests():
        assert [output.request_id for output in engine.step()] in (["b"], [])


@pytest.mark.promise("ENG-7")
def test_a_request_that_fails_in_the_engine_ends_with_error() -> None:
    engine = make_engine(HashRunner(nan_ids={"bad"}))
    engine.add_request("bad", "hello", PARAMS)
    engine.add_request("good", "hello", PARAMS)
    reasons = {}
    while engine.has_unfinished_requests():
        reasons.update({output.request_id: output.outputs[0].finish_reason for output in engine.step()})
    assert reasons == {"bad": "error", "good": "length"}


def test_none_of_several_requests_is_added_if_one_is_bad(engine: LLMEngine) -> None:
    with pytest.raises(InvalidRequestError):
        engine.add_requests([make_request("a"), make_request("b", logprobs=99)])
    with pytest.raises(InvalidRequestError, match="in use"):
        engine.add_requests([make_request("a"), make_request("a")])
    assert not engine.has_unfinished_requests()
    engine.add_request("a", "hello", PARAMS)
    with pytest.raises(InvalidRequestError, match="in use"):
        engine.add_request("a", "hello", PARAMS)


def test_requests_without_a_seed_are_repeatable_between_engines() -> None:
    texts = []
    for _ in range(2):
        engine = make_engine()
        for name in ("a", "b"):
            engine.add_request(name, "hello", SamplingParams(max_tokens=12, output_kind=OutputKind.FINAL_ONLY))
        found = {}
        while engine.has_unfinished_requests():
            found.update({output.request_id: output.outputs[0].token_ids for output in engine.step()})
        texts.append(found)
    assert texts[0] == texts[1]
    assert texts[0]["a"] != texts[0]["b"]


@pytest.mark.promise("TIME-1")
def test_every_step_ends_requests_whose_time_is_over(engine: LLMEngine) -> None:
    engine.add_request("r", "hello", PARAMS, timeout_s=1e-6)
    (output,) = engine.step()
    assert (output.outputs[0].finish_reason, output.outputs[0].stop_reason) == ("abort", "timeout")
    assert not engine.has_unfinished_requests()


def test_a_closed_engine_says_so(engine: LLMEngine) -> None:
    engine.add_request("a", "hello", PARAMS)
    engine.close()
    engine.close()
    assert not engine.has_unfinished_requests()
    with pytest.raises(EngineDeadError, match="closed"):
        engine.add_request("a", "hello", PARAMS)


@pytest.mark.promise("CONF-3")
def test_an_unknown_engine_argument_is_refused_with_a_suggestion() -> None:
    with pytest.raises(ConfigError, match="max_model_len"):
        LLMEngine.from_engine_args(max_modl_len=5)


def test_a_closed_engine_keeps_nothing_of_its_core() -> None:
    core = SteppedCore(make_core())
    engine = LLMEngine(engine_config(), core=core, tokenizer=FakeTokenizer())
    left = weakref.ref(core)
    engine.add_request("a", "hello", PARAMS)
    engine.close()
    del core
    gc.collect()
    assert left() is None
