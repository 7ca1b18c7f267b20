"""The stream's manners as an asynchronous generator."""

from __future__ import annotations

import asyncio

import pytest

from tests.engine_fakes import engine_config
from vllm_mxext.engine.backends.fake_tokenizer import FakeTokenizer
from vllm_mxext.engine.frontend.input_processor import InputProcessor
from vllm_mxext.engine.frontend.output_processor import OutputProcessor
from vllm_mxext.engine.frontend.output_stream import OutputStream
from vllm_mxext.engine.frontend.request_state import RequestState
from vllm_mxext.errors import EngineDeadError
from vllm_mxext.native.protocol import EngineCoreOutput, EngineCoreOutputs, FinishReason
from vllm_mxext.requests import GenerateRequest, TextPrompt
from vllm_mxext.sampling_params import OutputKind, SamplingParams


class Source:
    """One request whose outputs the test makes."""

    def __init__(self) -> None:
        self.released: list[RequestState] = []
        self.outputs = OutputProcessor(FakeTokenizer())
        inputs = InputProcessor(engine_config(), FakeTokenizer(), lambda: 0)
        request = GenerateRequest("r", TextPrompt("x"), SamplingParams(output_kind=OutputKind.DELTA))
        processed = inputs.process(request, 0.0)
        self.core_id = processed.samples[0].request_id
        changed = asyncio.Event()
        self.state = self.outputs.add(processed, changed.set)
        self.stream = OutputStream(self.state, changed, self.released.append)

    def feed(self, data: bytes, finish_reason: FinishReason | None = None) -> None:
        output = EngineCoreOutput(self.core_id, list(data), finish_reason=finish_reason)
        self.outputs.process(EngineCoreOutputs([output]))


@pytest.fixture
async def source() -> Source:
    return Source()


async def test_a_waiting_consumer_is_woken_by_the_next_output(source: Source) -> None:
    waiting = asyncio.ensure_future(anext(source.stream))
    await asyncio.sleep(0)
    assert not waiting.done()
    source.feed(b"a")
    assert (await waiting).outputs[0].text == "a"


async def test_a_finished_stream_stops_and_releases_nothing(source: Source) -> None:
    source.feed(b"a", FinishReason.LENGTH)
    assert [output.finished async for output in source.stream] == [True]
    await source.stream.aclose()
    assert source.released == []


async def test_closing_releases_once(source: Source) -> None:
    await source.stream.aclose()
    await source.stream.aclose()
    assert source.released == [source.state]


async def test_an_exception_thrown_in_closes_the_stream(source: Source) -> None:
    with pytest.raises(ValueError, match="from outside"):
        await source.stream.athrow(ValueError("from outside"))
    assert source.released == [source.state]
    with pytest.raises(StopAsyncIteration):
        await source.stream.asend(None)


async def test_an_engine_that_is_lost_raises_after_nothing_more_can_come(source: Source) -> None:
    waiting = asyncio.ensure_future(anext(source.stream))
    await asyncio.sleep(0)
    source.outputs.fail(source.core_id, EngineDeadError("it is gone"))
    with pytest.raises(EngineDeadError, match="it is gone"):
        await waiting
    with pytest.raises(StopAsyncIteration):
        await anext(source.stream)
