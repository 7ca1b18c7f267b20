"""`LoRARequest` with the engines that programs drive themselves, on cores without a model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tests.adapter_fakes import AdapterFolder, FakeCoreAdapters
from tests.engine_fakes import make_core
from tests.unit.engine.conftest import lora_cores, make_request
from tests.unit.engine.test_llm_engine import SteppedCore
from vllm_mxext.beam_search_params import BeamSearchParams
from vllm_mxext.config.frontend import FrontendConfig
from vllm_mxext.engine.async_llm_engine import AsyncLLMEngine
from vllm_mxext.engine.backends.fake_tokenizer import FakeTokenizer
from vllm_mxext.engine.backends.native import NativeEngineClient
from vllm_mxext.engine.beam_searching import run_beam_searches
from vllm_mxext.engine.llm_engine import LLMEngine
from vllm_mxext.engine.lora_requests import LoRARequests
from vllm_mxext.errors import AdapterConflictError, AdapterError, InvalidRequestError, UnsupportedFeatureError
from vllm_mxext.lora.request import LoRARequest
from vllm_mxext.native.core_messages import AdapterSpec
from vllm_mxext.native.protocol import AdapterKey, AdapterUse, EngineCoreOutputs, EngineCoreRequest
from vllm_mxext.requests import BeamSearchRequest, TokensPrompt
from vllm_mxext.sampling_params import OutputKind, SamplingParams

pytestmark = pytest.mark.promise("LORA-14")
PARAMS = SamplingParams(max_tokens=6, ignore_eos=True, seed=1, output_kind=OutputKind.FINAL_ONLY)
A = LoRARequest("a", 1, "/a")
B = LoRARequest("b", 2, "/b")


class AdapterCore(SteppedCore):
    """A stepped core with adapters."""

    def __init__(self) -> None:
        super().__init__(make_core())
        self.adapters = FakeCoreAdapters(lambda _message: None, {})
        self.received: list[EngineCoreRequest] = []

    def add_requests(self, requests: Sequence[EngineCoreRequest]) -> None:
        self.received += requests
        for request in requests:
            self.adapters.begin(request)
        super().add_requests(requests)

    def abort(self, request_ids: Sequence[str]) -> None:
        self.adapters.end(request_ids)
        super().abort(request_ids)

    def step(self) -> EngineCoreOutputs:
        outputs = super().step()
        self.adapters.end(output.request_id for output in outputs.outputs if output.finish_reason is not None)
        if outputs.stats is not None:
            outputs.stats.adapters = self.adapters.uses()
        return outputs

    def load_adapter(self, spec: AdapterSpec) -> list[AdapterUse]:
        self.adapters.asked.append(spec)
        self.adapters.known[spec.adapter_id, spec.generation] = spec
        return self.adapters.uses()

    def drop_adapter(self, key: AdapterKey) -> list[AdapterUse]:
        self.adapters.drop(key)
        return self.adapters.uses()


@pytest.fixture
def core() -> AdapterCore:
    return AdapterCore()


@pytest.fixture
def files() -> AdapterFolder:
    return AdapterFolder()


@pytest.fixture
def engine(core: AdapterCore, files: AdapterFolder) -> LLMEngine:
    return LLMEngine(lora_cores().config, core=core, tokenizer=FakeTokenizer(), inspect=files.inspect)


@pytest.fixture
async def async_engine(files: AdapterFolder) -> AsyncIterator[AsyncLLMEngine]:
    cores = lora_cores()
    client = NativeEngineClient(
        cores.config, FrontendConfig(), FakeTokenizer(), spawn=cores.spawn, inspect=files.inspect
    )
    async with AsyncLLMEngine(client) as engine:
        yield engine
    assert cores.current.adapters.mistakes == []


def finish(engine: LLMEngine) -> dict[str, object]:
    """Runs all requests; returns the adapters that their outputs name."""
    named: dict[str, object] = {}
    while engine.has_unfinished_requests():
        for output in engine.step():
            assert all(sample.lora_request == output.lora_request for sample in output.outputs)
            named[output.request_id] = output.lora_request
    return named


def test_adapters_are_loaded_on_first_use_and_named_in_the_output(engine: LLMEngine, core: AdapterCore) -> None:
    engine.add_request("x", "hello", PARAMS, lora_request=A)
    engine.add_request("y", "hello", PARAMS, lora_request=A)
    engine.add_request("z", "hello", PARAMS, lora_request=B)
    engine.add_request("base", "hello", PARAMS)
    assert [spec.name for spec in core.adapters.asked] == ["a", "b"]
    assert [request.adapter_id for request in core.received] == [1, 1, 2, 0]
    engine.step()
    assert [(info.name, info.num_running) for info in engine.adapters] == [("a", 2), ("b", 1)]
    assert finish(engine) == {"x": A, "y": A, "z": B, "base": None}
    assert engine.list_loras() == {1, 2}
    assert core.adapters.mistakes == []


@pytest.mark.parametrize(
    "other",
    [LoRARequest("a", 1, "/b"), LoRARequest("b", 1, "/a"), LoRARequest("a", 2, "/a"), LoRARequest("b", 1, "/b")],
)
def test_a_number_and_a_name_stand_for_one_adapter(engine: LLMEngine, other: LoRARequest) -> None:
    engine.add_lora(A)
    with pytest.raises(AdapterConflictError, match="load_inplace=True"):
        engine.add_request("r", "hello", PARAMS, lora_request=other)
    assert not engine.has_unfinished_requests()


def test_loading_in_place_takes_new_files_or_another_path(
    engine: LLMEngine, core: AdapterCore, files: AdapterFolder
) -> None:
    engine.add_request("old", "hello", PARAMS, lora_request=A)
    files.contents["/a"] = "changed"
    engine.add_request("same", "hello", PARAMS, lora_request=A)
    engine.add_request("new", "hello", PARAMS, lora_request=replace(A, load_inplace=True))
    engine.add_request("moved", "hello", PARAMS, lora_request=replace(A, lora_path="/b", load_inplace=True))
    assert [request.adapter_generation for request in core.received] == [1, 1, 2, 3]
    finish(engine)
    assert sorted(core.adapters.dropped) == [(1, 1), (1, 2)]
    assert core.adapters.mistakes == []


@pytest.mark.promise("LORA-12")
def test_refused_and_aborted_requests_give_their_adapters_back(engine: LLMEngine, core: AdapterCore) -> None:
    engine.add_lora(A)
    good = replace(make_request("x"), adapter="a")
    with pytest.raises(InvalidRequestError):
        engine.add_requests([good, replace(make_request("y", logprobs=99), adapter="a")])
    with pytest.raises(InvalidRequestError, match="in use"):
        engine.add_requests([good, good])
    with pytest.raises(InvalidRequestError):
        engine.begin_beam_search(a_search(max_tokens=1000))
    engine.add_requests([good])
    engine.abort_request("x")
    assert engine.remove_lora(1)
    assert core.adapters.dropped == [(1, 1)]
    assert not engine.remove_lora(1)
    assert engine.list_loras() == set()


def a_search(request_id: str = "s", max_tokens: int = 3) -> BeamSearchRequest:
    prompt = TokensPrompt(tuple(b"hello"))
    return BeamSearchRequest(request_id, prompt, BeamSearchParams(2, max_tokens=max_tokens), adapter="a")


@pytest.mark.promise("LORA-12")
def test_beam_searches_give_their_adapters_back_however_they_end(engine: LLMEngine, core: AdapterCore) -> None:
    engine.add_lora(A)
    run_beam_searches(engine, [a_search("s"), a_search("t")], concurrency_limit=1)
    assert {request.adapter_id for request in core.received} == {1}
    with pytest.raises(InvalidRequestError):
        run_beam_searches(engine, [a_search("s"), a_search("t", max_tokens=1000)])

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_beam_searches(engine, [a_search("s")], between_steps=interrupt)
    engine.remove_lora(1)
    assert core.adapters.dropped == [(1, 1)]
    assert core.adapters.mistakes == []


def test_an_adapter_can_be_pinned(engine: LLMEngine, core: AdapterCore) -> None:
    assert engine.add_lora(A)
    assert not engine.add_lora(A)
    assert engine.pin_lora(1)
    assert engine.pin_lora(1)
    assert not engine.pin_lora(9)
    assert [spec.is_pinned for spec in core.adapters.asked] == [False, True]
    assert engine.adapters[0].is_pinned


def test_what_cannot_be_loaded_is_said_and_leaves_nothing(engine: LLMEngine) -> None:
    with pytest.raises(AdapterError, match="no folder '/none'"):
        engine.add_request("r", "hello", PARAMS, lora_request=LoRARequest("c", 3, "/none"))
    assert engine.list_loras() == set()
    assert not engine.has_unfinished_requests()
    without = LLMEngine(replace(lora_cores().config, lora=None), core=AdapterCore(), tokenizer=FakeTokenizer())
    with pytest.raises(UnsupportedFeatureError, match="enable_lora"):
        without.add_lora(A)


@pytest.mark.parametrize("wrong", [("a", 0, "/a"), ("a", "1", "/a"), ("", 1, "/a"), ("a", 1, ""), (1, 1, "a")])
def test_a_request_for_nothing_is_refused(wrong: tuple[str, int, str]) -> None:
    with pytest.raises(InvalidRequestError):
        LoRARequest(*wrong)


def test_a_path_may_be_a_path() -> None:
    assert LoRARequest("a", 1, Path("/a")) == A  # type: ignore[arg-type]


async def test_the_asynchronous_engine_loads_on_first_use_and_names_the_adapter(async_engine: AsyncLLMEngine) -> None:
    async def serve(request_id: str, lora: LoRARequest | None) -> object:
        outputs = async_engine.generate("hi", PARAMS, request_id, lora_request=lora)
        return [(output.lora_request, output.outputs[0].lora_request) async for output in outputs]

    served = await asyncio.gather(serve("x", A), serve("y", A), serve("z", B), serve("base", None))
    assert served == [[(A, A)], [(A, A)], [(B, B)], [(None, None)]]
    assert await async_engine.list_loras() == {1, 2}
    with pytest.raises(AdapterConflictError):
        await serve("w", LoRARequest("a", 1, "/b"))


async def test_the_asynchronous_engine_adds_pins_and_removes(async_engine: AsyncLLMEngine) -> None:
    assert await async_engine.add_lora(A)
    assert not await async_engine.add_lora(A)
    assert await async_engine.add_lora(replace(A, load_inplace=True))
    assert await async_engine.pin_lora(1)
    assert not await async_engine.pin_lora(9)
    assert await async_engine.list_loras() == {1}
    assert await async_engine.remove_lora(1)
    assert not await async_engine.remove_lora(1)
    assert await async_engine.list_loras() == set()


def test_a_number_that_was_removed_can_stand_for_something_else() -> None:
    book = LoRARequests()
    book.add(A)
    book.remove(A)
    other = LoRARequest("b", 1, "/b")
    assert not book.is_loaded(other)
    book.add(other)
    assert book.is_loaded(other)
    assert book.get(1) == book.named("b") == other
