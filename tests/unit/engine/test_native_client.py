"""Admission, streams, aborts, draining and shutdown of the native client, on cores without a process."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable
from typing import Any

import pytest

from tests.engine_fakes import LoopCores, engine_config
from tests.unit.engine.conftest import Harness, expected, make_request
from vllm_mxext.config.frontend import AdmissionConfig
from vllm_mxext.engine.backends.fake_tokenizer import FakeTokenizer
from vllm_mxext.engine.client import EnginePhase
from vllm_mxext.engine.frontend.input_processor import InputProcessor
from vllm_mxext.errors import EngineNotReadyError, GenerationError, InvalidRequestError, QueueFullError
from vllm_mxext.requests import GenerateRequest, TextPrompt
from vllm_mxext.sampling_params import OutputKind, SamplingParams

Start = Callable[..., Any]


def text_request(request_id: str = "t") -> GenerateRequest:
    return GenerateRequest(request_id, TextPrompt("hello"), SamplingParams(max_tokens=20, ignore_eos=True, seed=1))


class SlowTokenizer(FakeTokenizer):
    """Tokenizes when the test lets it."""

    def __init__(self) -> None:
        self.has_begun = threading.Event()
        self.may_end = threading.Event()

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        self.has_begun.set()
        assert self.may_end.wait(30)
        return super().encode(text, add_special_tokens=add_special_tokens)


@pytest.fixture
def slow_tokenizer(monkeypatch: pytest.MonkeyPatch) -> SlowTokenizer:
    tokenizer = SlowTokenizer()
    monkeypatch.setattr("tests.unit.engine.conftest.FakeTokenizer", lambda: tokenizer)
    return tokenizer


def num_held_blocks(harness: Harness) -> int:
    scheduler = harness.cores.current.core._scheduler
    return scheduler.num_usable_blocks - scheduler.num_free_blocks


async def test_concurrent_streams_give_what_each_request_would_give_alone(start: Start) -> None:
    harness = await start()
    requests = [make_request(str(i), "y" * (i + 1), seed=i) for i in range(20)]
    results = await asyncio.gather(*(harness.tokens(request) for request in requests))
    assert results == [expected(request, harness.cores.config) for request in requests]


async def test_text_prompts_are_tokenized_off_the_event_loop(start: Start, slow_tokenizer: SlowTokenizer) -> None:
    harness = await start()
    waiting = asyncio.ensure_future(harness.outputs(text_request()))
    await harness.until(slow_tokenizer.has_begun.is_set)
    other = make_request()
    assert await harness.tokens(other) == expected(other, harness.cores.config)
    slow_tokenizer.may_end.set()
    assert (await waiting)[-1].finished


@pytest.mark.parametrize("values", [{"prompt": "y" * 100_001}, {"thinking_token_budget": 1}, {"extra_args": {"a": 1}}])
async def test_tokens_are_checked_off_the_event_loop_where_it_may_take_long(
    start: Start, monkeypatch: pytest.MonkeyPatch, values: dict[str, Any]
) -> None:
    threads: list[threading.Thread] = []

    def process(*_: object) -> None:
        threads.append(threading.current_thread())
        raise InvalidRequestError("Enough.")

    monkeypatch.setattr(InputProcessor, "process", process)
    with pytest.raises(InvalidRequestError, match="Enough"):
        await (await start()).client.generate(make_request(**values))
    assert threads[0] is not threading.main_thread()


async def test_a_slow_consumer_gets_few_large_outputs(start: Start) -> None:
    harness = await start()
    stream = await harness.client.generate(make_request(max_tokens=30))
    await harness.until(lambda: harness.client._outputs.num_requests == 0)
    outputs = [output async for output in stream]
    assert len(outputs) == 1
    assert len(outputs[0].outputs[0].token_ids) == 30


async def test_a_bad_request_is_refused_before_anything_reaches_the_core(start: Start) -> None:
    harness = await start()
    with pytest.raises(InvalidRequestError):
        await harness.client.generate(make_request(logprobs=99))
    assert harness.cores.current.received == []
    assert (await harness.outputs(make_request()))[-1].finished


async def test_an_id_in_use_is_refused_and_similar_ones_are_not(start: Start) -> None:
    harness = await start()
    streams = [
        await harness.client.generate(make_request("a", n=2)),
        await harness.client.generate(make_request("a/1")),
    ]
    for request_id in ("a", "a/1"):
        with pytest.raises(InvalidRequestError, match="in use"):
            await harness.client.generate(make_request(request_id))
    for stream in streams:
        await stream.aclose()


async def test_an_id_can_be_used_again_at_once_after_an_abort(start: Start) -> None:
    harness = await start()
    for i in range(5):
        stream = await harness.client.generate(make_request("same", seed=i, max_tokens=200))
        await anext(stream)
        await stream.aclose()
        request = make_request("same", seed=100 + i)
        assert await harness.tokens(request) == expected(request, harness.cores.config)


async def test_an_id_of_a_request_being_tokenized_is_in_use(start: Start, slow_tokenizer: SlowTokenizer) -> None:
    harness = await start()
    waiting = asyncio.ensure_future(harness.outputs(text_request("t")))
    await harness.until(slow_tokenizer.has_begun.is_set)
    with pytest.raises(InvalidRequestError, match="in use"):
        await harness.client.generate(make_request("t"))
    slow_tokenizer.may_end.set()
    await waiting


# --- leaving ---


@pytest.mark.promise("STREAM-4")
async def test_closing_a_stream_frees_everything_within_one_step(start: Start) -> None:
    harness = await start()
    stream = await harness.client.generate(make_request(max_tokens=200))
    await anext(stream)
    assert num_held_blocks(harness) > 0
    await stream.aclose()
    assert num_held_blocks(harness) == 0
    assert harness.cores.current.aborted == ["r"]
    with pytest.raises(StopAsyncIteration):
        await anext(stream)


@pytest.mark.promise("STREAM-4")
async def test_closing_a_stream_that_was_never_read_aborts_too(start: Start) -> None:
    harness = await start()
    stream = await harness.client.generate(make_request(max_tokens=200))
    await stream.aclose()
    assert harness.cores.current.aborted == ["r"]


@pytest.mark.promise("STREAM-4")
async def test_cancelling_the_reading_task_aborts(start: Start) -> None:
    harness = await start()
    reading = asyncio.ensure_future(harness.outputs(make_request(max_tokens=200)))
    await harness.until(lambda: harness.cores.current.num_steps >= 3)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert harness.cores.current.aborted == ["r"]
    assert num_held_blocks(harness) == 0


@pytest.mark.promise("STREAM-4")
async def test_a_stream_that_is_forgotten_is_aborted(start: Start) -> None:
    harness = await start()
    stream = await harness.client.generate(make_request(max_tokens=200))
    del stream
    gc.collect()
    await harness.until(lambda: harness.cores.current.aborted == ["r"])


async def test_leaving_an_ended_stream_does_not_touch_a_new_request_with_its_id(start: Start) -> None:
    harness = await start()
    old = await harness.client.generate(make_request("same", max_tokens=200))
    await harness.client.abort(["same"])
    request = make_request("same", seed=9)
    new = await harness.client.generate(request)
    await old.aclose()
    tokens = [token_id async for output in new for token_id in output.outputs[0].token_ids]
    assert tokens == expected(request, harness.cores.config)


async def test_shutdown_answers_requests_that_are_being_tokenized(start: Start, slow_tokenizer: SlowTokenizer) -> None:
    harness = await start()
    waiting = [asyncio.ensure_future(harness.client.generate(text_request(str(i)))) for i in range(5)]
    await harness.until(slow_tokenizer.has_begun.is_set)
    await harness.client.shutdown()
    slow_tokenizer.may_end.set()
    for error in await asyncio.gather(*waiting, return_exceptions=True):
        assert isinstance(error, EngineNotReadyError)


@pytest.mark.promise("STREAM-4")
async def test_cancelling_while_tokenizing_leaves_nothing(start: Start, slow_tokenizer: SlowTokenizer) -> None:
    harness = await start()
    waiting = asyncio.ensure_future(harness.client.generate(text_request()))
    await harness.until(slow_tokenizer.has_begun.is_set)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    slow_tokenizer.may_end.set()
    assert harness.cores.current.received == []
    assert (await harness.outputs(text_request()))[-1].finished


@pytest.mark.promise("STREAM-4")
async def test_abort_while_tokenizing_ends_the_stream_without_the_core(
    start: Start, slow_tokenizer: SlowTokenizer
) -> None:
    harness = await start()
    waiting = asyncio.ensure_future(harness.outputs(text_request()))
    await harness.until(slow_tokenizer.has_begun.is_set)
    await harness.client.abort(["t"])
    slow_tokenizer.may_end.set()
    (output,) = await waiting
    assert output.outputs[0].finish_reason == "abort"
    assert harness.cores.current.received == []


@pytest.mark.promise("STREAM-4")
async def test_a_queued_request_is_aborted_before_it_runs(start: Start) -> None:
    harness = await start(LoopCores(engine_config(max_num_seqs=1)))
    first = await harness.client.generate(make_request("first", max_tokens=50))
    queued = await harness.client.generate(make_request("queued"))
    await harness.client.abort(["queued"])
    (output,) = [output async for output in queued]
    assert (output.outputs[0].finish_reason, output.outputs[0].token_ids) == ("abort", [])
    assert [output async for output in first][-1].outputs[0].finish_reason == "length"


async def test_abort_ends_the_stream_with_what_was_generated(start: Start) -> None:
    harness = await start()
    request = make_request(max_tokens=200)
    stream = await harness.client.generate(request)
    await harness.until(lambda: harness.cores.current.num_steps >= 5)
    await harness.client.abort(["r", "unknown"])
    (output,) = [output async for output in stream]
    sample = output.outputs[0]
    assert (output.finished, sample.finish_reason) == (True, "abort")
    assert sample.token_ids == expected(request, harness.cores.config)[: len(sample.token_ids)]
    assert sample.token_ids


async def test_a_stop_string_stops_the_core_too(start: Start) -> None:
    harness = await start()
    calm = make_request(max_tokens=60, output_kind=OutputKind.FINAL_ONLY)
    text = (await harness.outputs(calm))[0].outputs[0].text
    stop = text[20:23]
    (output,) = await harness.outputs(make_request(max_tokens=60, output_kind=OutputKind.FINAL_ONLY, stop=[stop]))
    sample = output.outputs[0]
    assert sample.text == text[: text.index(stop)]
    assert (sample.finish_reason, sample.stop_reason) == ("stop", stop)
    assert harness.cores.current.aborted == ["r"]


@pytest.mark.promise("ENG-7")
async def test_a_request_that_fails_in_the_engine_raises_in_its_stream_alone(start: Start) -> None:
    harness = await start(LoopCores(nan_ids={"bad"}))
    good = make_request("good")
    serving = asyncio.ensure_future(harness.tokens(good))
    with pytest.raises(GenerationError, match="no usable scores"):
        await harness.tokens(make_request("bad"))
    assert await serving == expected(good, harness.cores.config)


# --- admission ---


@pytest.mark.promise("OPS-4")
async def test_the_queue_is_bounded_and_says_when_to_retry(start: Start) -> None:
    harness = await start(LoopCores(engine_config(max_num_seqs=1)), admission=AdmissionConfig(max_num_queued_reqs=2))
    streams = [await harness.client.generate(make_request(str(i))) for i in range(3)]
    with pytest.raises(QueueFullError) as refusal:
        await harness.client.generate(make_request("late"))
    assert refusal.value.retry_after_s >= 1.0
    await streams[0].aclose()
    streams.append(await harness.client.generate(make_request("late")))
    for stream in streams[1:]:
        assert [output async for output in stream][-1].finished


@pytest.mark.promise("OPS-4")
async def test_requests_being_tokenized_count_as_open(start: Start, slow_tokenizer: SlowTokenizer) -> None:
    harness = await start(LoopCores(engine_config(max_num_seqs=1)), admission=AdmissionConfig(max_num_queued_reqs=0))
    waiting = asyncio.ensure_future(harness.outputs(text_request()))
    await harness.until(slow_tokenizer.has_begun.is_set)
    with pytest.raises(QueueFullError):
        await harness.client.generate(make_request())
    slow_tokenizer.may_end.set()
    await waiting
    assert (await harness.outputs(make_request()))[-1].finished


@pytest.mark.promise("OPS-4")
async def test_queued_prompt_tokens_are_bounded(start: Start) -> None:
    admission = AdmissionConfig(max_num_queued_tokens=10)
    harness = await start(LoopCores(engine_config(max_num_seqs=1)), admission=admission)
    harness.cores.current.freeze()
    first = await harness.client.generate(make_request("1", "x" * 50))
    with pytest.raises(QueueFullError):
        await harness.client.generate(make_request("2"))
    harness.cores.current.thaw()
    await anext(first)
    assert (await harness.outputs(make_request("2")))[-1].finished
    await first.aclose()


# --- the engine's life ---


async def test_requests_are_refused_before_the_engine_is_ready(start: Start) -> None:
    harness = await start(is_ready=False)
    with pytest.raises(EngineNotReadyError):
        await harness.client.generate(make_request())
    await harness.client.wait_until_ready()
    assert (await harness.outputs(make_request()))[-1].finished


async def test_draining_refuses_new_requests_and_serves_open_ones(start: Start) -> None:
    harness = await start()
    request = make_request()
    stream = await harness.client.generate(request)
    harness.client.begin_drain()
    assert harness.client.status.phase is EnginePhase.DRAINING
    with pytest.raises(EngineNotReadyError):
        await harness.client.generate(make_request("late"))
    await harness.client.shutdown(timeout_s=60)
    tokens = [token_id async for output in stream for token_id in output.outputs[0].token_ids]
    assert tokens == expected(request, harness.cores.config)


async def test_shutdown_without_time_aborts_what_is_open(start: Start) -> None:
    harness = await start()
    stream = await harness.client.generate(make_request(max_tokens=200))
    await harness.client.shutdown()
    (output,) = [output async for output in stream]
    assert output.outputs[0].finish_reason == "abort"
    assert not harness.cores.current.is_alive


async def test_a_cancelled_shutdown_can_be_called_again(start: Start) -> None:
    harness = await start()
    harness.cores.current.freeze()
    stream = await harness.client.generate(make_request())
    slow = asyncio.ensure_future(harness.client.shutdown(timeout_s=1000))
    await asyncio.sleep(0)
    slow.cancel()
    with pytest.raises(asyncio.CancelledError):
        await slow
    await harness.client.shutdown()
    assert [output async for output in stream][-1].outputs[0].finish_reason == "abort"
    assert not harness.cores.current.is_alive


async def test_no_task_outlives_the_client(start: Start) -> None:
    harness = await start()
    stream = await harness.client.generate(make_request(max_tokens=200))
    await anext(stream)
    await harness.client.shutdown()
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_reset_prefix_cache_reaches_the_core(start: Start) -> None:
    harness = await start()
    request = make_request(prompt="z" * 40, max_tokens=1)
    assert [(await harness.outputs(request))[-1].num_cached_tokens for _ in range(2)] == [0, 36]
    assert await harness.client.reset_prefix_cache()
    assert (await harness.outputs(request))[-1].num_cached_tokens == 0


@pytest.mark.promise("SAMP-8")
async def test_log_probabilities_of_a_long_prompt_come_whole_through_the_death_of_the_core(start):
    prompt = "a long prompt of more than a step's tokens, " * 4
    calm = await start()
    [expected] = await calm.outputs(
        make_request(prompt=prompt, max_tokens=3, prompt_logprobs=1, output_kind=OutputKind.FINAL_ONLY)
    )
    assert len(expected.prompt_logprobs) == len(prompt)
    assert expected.prompt_logprobs[0] is None

    harness = await start(LoopCores())
    request = make_request(prompt=prompt, max_tokens=3, prompt_logprobs=1, output_kind=OutputKind.FINAL_ONLY)
    stream = await harness.client.generate(request)
    runner = harness.cores.current.core._runner
    await harness.until(lambda: runner.num_steps == 3)
    await harness.kill_core()
    assert [output async for output in stream][-1].prompt_logprobs == expected.prompt_logprobs
    assert harness.cores.current.received[0].num_prompt_logprobs > 0
