"""The asynchronous engine as a program uses it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Literal

import pytest

from tests.engine_fakes import LoopCores
from tests.unit.engine.conftest import expected, make_request
from vllm_mxext.config.frontend import AdmissionConfig, FrontendConfig
from vllm_mxext.engine.async_llm_engine import AsyncLLMEngine
from vllm_mxext.engine.backends.fake_tokenizer import FakeTokenizer
from vllm_mxext.engine.backends.native import NativeEngineClient
from vllm_mxext.errors import (
    ConfigError,
    EngineDeadError,
    EngineNotReadyError,
    InvalidRequestError,
    QueueFullError,
    UnsupportedFeatureError,
)
from vllm_mxext.native.core_client import CoreExit
from vllm_mxext.observability.metrics import PrometheusMetrics
from vllm_mxext.outputs import RequestOutput
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


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - each turn of the loop is a step of the test's engine
        await asyncio.sleep(0)


def request_of(engine: AsyncLLMEngine, request_id: str, **params: object) -> asyncio.Task[list[RequestOutput]]:
    async def read() -> list[RequestOutput]:
        return [output async for output in engine.generate("hi", PARAMS.clone(**params), request_id)]

    return asyncio.create_task(read())


async def test_a_paused_engine_holds_requests_back_until_it_is_resumed() -> None:
    cores = LoopCores()
    async with make_engine(cores) as engine:
        await engine.pause_generation()
        assert await engine.is_paused()
        with pytest.raises(EngineNotReadyError, match="paused"):
            await engine.check_admission()
        waiting = request_of(engine, "r")
        for _ in range(20):
            await asyncio.sleep(0)
        assert cores.current.received == []
        await engine.resume_generation()
        assert not await engine.is_paused()
        assert (await waiting)[-1].finished


@pytest.mark.parametrize(("mode", "reason"), [("abort", "abort"), ("wait", "length")])
async def test_pausing_ends_open_requests_or_waits_for_them(mode: Literal["abort", "wait"], reason: str) -> None:
    cores = LoopCores()
    async with make_engine(cores) as engine:
        open_request = request_of(engine, "r", max_tokens=100)
        await until(lambda: bool(cores.current.received))
        await engine.pause_generation(mode=mode)
        assert (await open_request)[-1].outputs[0].finish_reason == reason
        with pytest.raises(UnsupportedFeatureError, match="frozen"):
            await engine.pause_generation(mode="keep")  # type: ignore[arg-type]


async def test_drain_waits_for_open_requests_but_not_for_ever() -> None:
    cores = LoopCores()
    async with make_engine(cores) as engine:
        await engine.wait_for_requests_to_drain()
        open_request = request_of(engine, "r")
        await until(lambda: bool(cores.current.received))
        cores.current.freeze()
        with pytest.raises(TimeoutError, match="1 requests are still open"):
            await engine.wait_for_requests_to_drain(0.001)
        cores.current.thaw()
        await engine.wait_for_requests_to_drain()
        assert (await open_request)[-1].finished


async def test_admission_is_refused_when_the_queue_is_full_or_the_engine_ends() -> None:
    cores = LoopCores()
    client = NativeEngineClient(
        cores.config, FrontendConfig(AdmissionConfig(max_num_queued_reqs=0)), FakeTokenizer(), spawn=cores.spawn
    )
    engine = AsyncLLMEngine(client)
    await engine.check_admission()
    await engine.start()
    cores.current.freeze()
    requests = [request_of(engine, str(i)) for i in range(8)]
    await until(lambda: len(cores.current.received) == 8)
    with pytest.raises(QueueFullError):
        await engine.check_admission()
    await engine.shutdown()
    await asyncio.wait(requests)
    with pytest.raises(EngineNotReadyError):
        await engine.check_admission()


async def test_figures_can_be_read_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    cores = LoopCores()
    metrics = PrometheusMetrics("m", 256)
    client = NativeEngineClient(cores.config, FrontendConfig(), FakeTokenizer(), spawn=cores.spawn, recorder=metrics)
    async with AsyncLLMEngine(client, metrics) as engine:
        await request_of(engine, "r")
        found = {metric.name: metric for metric in engine.get_metrics()}
        assert found["vllm:generation_tokens"].value == 8
        assert found["vllm:e2e_request_latency_seconds"].count == 1
        with caplog.at_level(logging.INFO, logger="vllm_mxext"):
            await engine.do_log_stats()
        assert "Open requests: 0" in caplog.text


@pytest.mark.parametrize("argument", [{"trace_headers": {"a": "b"}}, {"data_parallel_rank": 1}])
async def test_arguments_that_would_be_ignored_are_refused(argument: dict[str, object]) -> None:
    async with make_engine(LoopCores()) as engine:
        with pytest.raises(UnsupportedFeatureError, match=next(iter(argument))):
            await anext(engine.generate("hi", PARAMS, "r", **argument))
        with pytest.raises(UnsupportedFeatureError, match="sleep"):
            await engine.sleep()
        assert not await engine.is_sleeping()


async def test_neutral_arguments_of_vllm_are_taken() -> None:
    async with make_engine(LoopCores()) as engine:
        outputs = engine.generate(
            "hi", PARAMS, "r", lora_request=None, trace_headers=None, data_parallel_rank=0, session_id="s",
            tokenization_kwargs={"add_special_tokens": False}, timeout_s=1000.0,
        )  # fmt: skip
        assert (await anext(outputs)).prompt_token_ids == list(b"hi")
        await outputs.aclose()
