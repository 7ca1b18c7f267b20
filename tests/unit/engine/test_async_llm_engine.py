"""The asynchronous engine as a program uses it."""

from __future__ import annotations

import asyncio

import pytest

from tests.engine_fakes import LoopCores
from tests.unit.engine.conftest import expected, make_request
from vllm_mxext.config.frontend import FrontendConfig
from vllm_mxext.engine.async_llm_engine import AsyncLLMEngine
from vllm_mxext.engine.backends.fake_tokenizer import FakeTokenizer
from vllm_mxext.engine.backends.native import NativeEngineClient
from vllm_mxext.errors import ConfigError, EngineDeadError, InvalidRequestError
from vllm_mxext.native.core_client import CoreExit
from vllm_mxext.sampling_params import OutputKind, SamplingParams

PARAMS = SamplingParams(max_tokens=8, ignore_eos=True, seed=3, output_kind=OutputKind.DELTA)
pytestmark = pytest.mark.promise("ENG-2")


def make_engine(cores: LoopCores) -> AsyncLLMEngine:
    return AsyncLLMEngine(NativeEngineClient(cores.config, FrontendConfig(), FakeTokenizer(), spawn=cores.spawn))


async def test_the_first_request_starts_the_engine() -> None:
    cores = LoopCores()
    engine = make_engine(cores)
    assert not engine.is_running
    prompt = {"prompt_token_ids": list(b"hello")}
    tokens = [t async for output in engine.generate(prompt, PARAMS, "r") for t in output.outputs[0].token_ids]
    assert tokens == expected(make_request(max_tokens=8), cores.config)
    assert engine.is_running
    assert not engine.is_stopped
    await engine.check_health()
    await engine.shutdown()
    assert engine.is_stopped
    assert not engine.is_running
    assert not engine.errored


async def test_requests_at_once_start_one_engine() -> None:
    cores = LoopCores()
    async with make_engine(cores) as engine:

        async def serve(request_id: str) -> str:
            return "".join([output.outputs[0].text async for output in engine.generate("hi", PARAMS, request_id)])

        texts = await asyncio.gather(*(serve(str(i)) for i in range(5)))
    assert len(set(texts)) == 1
    assert len(cores.cores) == 1


async def test_leaving_the_loop_aborts_the_request() -> None:
    cores = LoopCores()
    async with make_engine(cores) as engine:
        outputs = engine.generate("hi", PARAMS.clone(max_tokens=200), "r")
        async for _ in outputs:
            break
        await outputs.aclose()
        assert cores.current.aborted == ["r"]


async def test_abort_takes_one_id_or_several() -> None:
    async with make_engine(LoopCores()) as engine:
        for request_ids in ("a", ["a", "b"]):
            outputs = engine.generate("hi", PARAMS.clone(max_tokens=200), "a")
            await anext(outputs)
            await engine.abort(request_ids)
            assert [output async for output in outputs][-1].outputs[0].finish_reason == "abort"


async def test_a_bad_request_raises_on_the_first_step() -> None:
    async with make_engine(LoopCores()) as engine:
        with pytest.raises(InvalidRequestError):
            await anext(engine.generate([1, -1], PARAMS, "r"))


async def test_a_failed_start_raises_its_root_cause() -> None:
    engine = make_engine(LoopCores(start_failures=[CoreExit("ValueError: shapes differ")]))
    with pytest.raises(EngineDeadError, match="shapes differ"):
        await anext(engine.generate("hi", PARAMS, "r"))
    assert engine.errored
    assert engine.is_stopped
    assert "shapes differ" in str(engine.dead_error)
    await engine.shutdown()


async def test_tokenizer_and_prefix_cache_can_be_reached() -> None:
    async with make_engine(LoopCores()) as engine:
        assert (await engine.get_tokenizer()).encode("a") == [FakeTokenizer.BOS, 97]
        assert await engine.reset_prefix_cache()


def test_an_unknown_argument_is_refused() -> None:
    with pytest.raises(ConfigError, match="max_model_len"):
        AsyncLLMEngine.from_engine_args(max_modl_len=5)
