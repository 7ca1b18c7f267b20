"""What every `EngineClient` promises, held against every backend."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import pytest

from tests.engine_fakes import LoopCores, engine_config
from vllm_mxext.config.frontend import AdmissionConfig, FrontendConfig
from vllm_mxext.engine.backends.fake import FakeEngineClient
from vllm_mxext.engine.backends.fake_tokenizer import FakeTokenizer
from vllm_mxext.engine.backends.native import NativeEngineClient
from vllm_mxext.engine.client import EngineClient, EnginePhase
from vllm_mxext.errors import ContextLengthExceededError, EngineNotReadyError, InvalidRequestError, QueueFullError
from vllm_mxext.native.core_client import ProcessCoreClient
from vllm_mxext.outputs import RequestOutput
from vllm_mxext.requests import GenerateRequest, TextPrompt, TokensPrompt
from vllm_mxext.sampling_params import OutputKind, SamplingParams

QUEUE_LIMIT = 3
MAX_NUM_SEQS = 4
MAX_MODEL_LEN = 50_000
"""So many tokens take a process minutes: however late a test comes, an endless request has not ended."""


@dataclass(frozen=True)
class Engine:
    """A client with the means to keep what computes for it from going on."""

    client: EngineClient
    hold: Callable[[], None]
    release: Callable[[], None]


def fake() -> Engine:
    client = FakeEngineClient(max_model_len=MAX_MODEL_LEN, max_num_seqs=MAX_NUM_SEQS, max_queued=QUEUE_LIMIT)
    return Engine(client, client.hold, client.release)


def native() -> Engine:
    cores = LoopCores(engine_config(MAX_MODEL_LEN, max_num_seqs=MAX_NUM_SEQS))
    client = NativeEngineClient(cores.config, frontend(), FakeTokenizer(), spawn=cores.spawn)
    return Engine(client, lambda: cores.current.freeze(), lambda: cores.current.thaw())  # noqa: PLW0108 - the core is made later


def native_process() -> Engine:
    config = engine_config(MAX_MODEL_LEN, max_num_seqs=MAX_NUM_SEQS)
    command = (sys.executable, "-m", "tests.fake_core_process", "none")
    core = ProcessCoreClient(config, command=command)

    def send(signal_number: signal.Signals) -> None:
        assert core.process_id is not None
        os.kill(core.process_id, signal_number)

    client = NativeEngineClient(config, frontend(), FakeTokenizer(), spawn=lambda: core)
    return Engine(client, lambda: send(signal.SIGSTOP), lambda: send(signal.SIGCONT))


def frontend() -> FrontendConfig:
    return FrontendConfig(AdmissionConfig(max_num_queued_reqs=QUEUE_LIMIT))


@pytest.fixture(params=[fake, native, native_process], ids=lambda make: make.__name__)
async def engine(request: pytest.FixtureRequest) -> AsyncIterator[Engine]:
    engine = request.param()
    yield engine
    await engine.client.shutdown()


@pytest.fixture
async def new_client(engine: Engine) -> EngineClient:
    return engine.client


@pytest.fixture
async def client(new_client: EngineClient) -> EngineClient:
    await new_client.start()
    await new_client.wait_until_ready()
    return new_client


def make_request(request_id: str = "r", prompt: str = "contract", **params: Any) -> GenerateRequest:
    values = {"max_tokens": 12, "ignore_eos": True, "seed": 1, **params}
    return GenerateRequest(request_id, TextPrompt(prompt), SamplingParams(**values))


async def outputs_of(client: EngineClient, request: GenerateRequest) -> list[RequestOutput]:
    return [output async for output in await client.generate(request)]


def endless(request_id: str) -> GenerateRequest:
    return make_request(request_id, max_tokens=MAX_MODEL_LEN - 20)


async def test_a_stream_ends_with_one_finish_reason_and_all_tokens(client: EngineClient) -> None:
    outputs = await outputs_of(client, make_request(output_kind=OutputKind.DELTA))
    assert [output.finished for output in outputs] == [False] * (len(outputs) - 1) + [True]
    reasons = [sample.finish_reason for output in outputs for sample in output.outputs]
    assert reasons == [None] * (len(reasons) - 1) + ["length"]
    assert sum(len(sample.token_ids) for output in outputs for sample in output.outputs) == 12
    assert outputs[-1].prompt == "contract"
    assert outputs[-1].prompt_token_ids == client.tokenizer.encode("contract")


async def test_the_three_kinds_of_output_tell_the_same(client: EngineClient) -> None:
    deltas = await outputs_of(client, make_request("d", output_kind=OutputKind.DELTA))
    cumulative = await outputs_of(client, make_request("c", output_kind=OutputKind.CUMULATIVE))
    final = await outputs_of(client, make_request("f", output_kind=OutputKind.FINAL_ONLY))
    assert len(final) == 1
    sample = final[0].outputs[0]
    assert "".join(output.outputs[0].text for output in deltas) == sample.text
    assert [token for output in deltas for token in output.outputs[0].token_ids] == sample.token_ids
    assert (cumulative[-1].outputs[0].text, cumulative[-1].outputs[0].token_ids) == (sample.text, sample.token_ids)


async def test_samples_come_in_one_output_ordered_by_index(client: EngineClient) -> None:
    (output,) = await outputs_of(client, make_request(n=3, output_kind=OutputKind.FINAL_ONLY))
    assert [sample.index for sample in output.outputs] == [0, 1, 2]
    assert all(sample.finish_reason == "length" for sample in output.outputs)


async def test_times_are_reported(client: EngineClient) -> None:
    metrics = (await outputs_of(client, make_request()))[-1].metrics
    assert metrics is not None
    assert metrics.first_token_s is not None
    assert metrics.finished_s is not None
    assert metrics.arrival_s <= metrics.first_token_s <= metrics.finished_s


async def test_log_probabilities_come_with_their_tokens(client: EngineClient) -> None:
    (output,) = await outputs_of(client, make_request(logprobs=2, output_kind=OutputKind.FINAL_ONLY))
    sample = output.outputs[0]
    assert sample.logprobs is not None
    assert [next(iter(position)) for position in sample.logprobs] == sample.token_ids
    assert sample.cumulative_logprob is not None


async def test_a_stop_string_ends_the_text_before_it(client: EngineClient) -> None:
    (whole,) = await outputs_of(client, make_request("a", output_kind=OutputKind.FINAL_ONLY))
    text = whole.outputs[0].text
    stop = text[3:5]
    (output,) = await outputs_of(client, make_request("b", output_kind=OutputKind.FINAL_ONLY, stop=[stop]))
    sample = output.outputs[0]
    assert (sample.text, sample.finish_reason, sample.stop_reason) == (text[: text.index(stop)], "stop", stop)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"prompt": TokensPrompt((FakeTokenizer.SIZE,))}, InvalidRequestError),
        ({"prompt": TokensPrompt(())}, InvalidRequestError),
        ({"prompt": TokensPrompt((1,) * MAX_MODEL_LEN)}, ContextLengthExceededError),
        ({"params": SamplingParams(max_tokens=MAX_MODEL_LEN)}, ContextLengthExceededError),
        ({"params": SamplingParams(logprobs=21)}, InvalidRequestError),
    ],
)
async def test_a_bad_request_is_refused_before_the_first_output(
    client: EngineClient, change: dict[str, Any], error: type[Exception]
) -> None:
    values: dict[str, Any] = {"prompt": TextPrompt("x"), "params": SamplingParams(), **change}
    with pytest.raises(error):
        await client.generate(GenerateRequest("bad", values["prompt"], values["params"]))
    assert (await outputs_of(client, make_request("bad")))[-1].finished


async def test_an_id_in_use_is_refused(client: EngineClient) -> None:
    stream = await client.generate(endless("twice"))
    with pytest.raises(InvalidRequestError):
        await client.generate(make_request("twice"))
    await client.abort(["twice"])
    await stream.aclose()


async def test_abort_ends_a_stream_with_abort(client: EngineClient) -> None:
    stream = await client.generate(endless("r"))
    await anext(stream)
    await client.abort(["r", "unknown"])
    last = [output async for output in stream][-1]
    assert last.finished
    assert last.outputs[0].finish_reason == "abort"


@pytest.mark.parametrize("num_read", [0, 1])
async def test_leaving_a_stream_makes_its_id_and_its_place_free(client: EngineClient, num_read: int) -> None:
    for _ in range(3 * (MAX_NUM_SEQS + QUEUE_LIMIT)):
        stream = await client.generate(endless("same"))
        for _ in range(num_read):
            await anext(stream)
        await stream.aclose()
        await client.abort(["same"])
    assert (await outputs_of(client, make_request("same")))[-1].outputs[0].finish_reason == "length"


async def test_cancelling_the_reader_makes_its_id_free(client: EngineClient) -> None:
    reading = asyncio.ensure_future(outputs_of(client, endless("same")))
    for _ in range(3):
        await asyncio.sleep(0)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    await client.abort(["same"])
    assert (await outputs_of(client, make_request("same")))[-1].outputs[0].finish_reason == "length"


async def test_the_queue_is_bounded(client: EngineClient, engine: Engine) -> None:
    engine.hold()
    streams = [await client.generate(endless(str(i))) for i in range(MAX_NUM_SEQS + QUEUE_LIMIT)]
    with pytest.raises(QueueFullError) as refusal:
        await client.generate(make_request("late"))
    assert refusal.value.retry_after_s > 0
    engine.release()
    for i, stream in enumerate(streams):
        await stream.aclose()
        await client.abort([str(i)])


async def test_nothing_is_accepted_before_the_engine_is_ready(new_client: EngineClient) -> None:
    assert new_client.status.phase is EnginePhase.STARTING
    with pytest.raises(EngineNotReadyError):
        await new_client.generate(make_request())


async def test_model_and_tokenizer_are_known_before_the_engine_is_ready(new_client: EngineClient) -> None:
    assert new_client.model.max_model_len == MAX_MODEL_LEN
    assert new_client.model.served_names
    assert new_client.tokenizer.encode("x")


async def test_a_ready_engine_is_healthy(client: EngineClient) -> None:
    assert client.status.phase is EnginePhase.READY
    assert client.status.accepts_requests
    await client.check_health()
    assert await client.reset_prefix_cache()


async def test_draining_refuses_new_requests_and_lets_open_ones_finish(client: EngineClient) -> None:
    stream = await client.generate(make_request())
    client.begin_drain()
    assert client.status.phase is EnginePhase.DRAINING
    with pytest.raises(EngineNotReadyError):
        await client.generate(make_request("late"))
    shutting_down = asyncio.ensure_future(client.shutdown(timeout_s=60))
    last = [output async for output in stream][-1]
    assert last.outputs[0].finish_reason == "length"
    await shutting_down


async def test_shutdown_ends_every_open_stream(client: EngineClient) -> None:
    streams = await asyncio.gather(*(client.generate(endless(str(i))) for i in range(3)))
    await client.shutdown()
    for stream in streams:
        last = [output async for output in stream][-1]
        assert last.outputs[0].finish_reason == "abort"
    await client.shutdown()
