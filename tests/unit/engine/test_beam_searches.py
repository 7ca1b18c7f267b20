"""Beam searches in the native client: places in the queue, leaving, aborting, restarts, deadlines, figures."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable
from typing import Any

import pytest

from tests.engine_fakes import LoopCores
from tests.unit.engine.conftest import Harness, make_request
from vllm_mxext.beam_search_params import BeamSearchParams
from vllm_mxext.config.frontend import AdmissionConfig
from vllm_mxext.errors import DeadlineExceededError, GenerationError, InvalidRequestError, QueueFullError
from vllm_mxext.outputs import RequestOutput
from vllm_mxext.requests import BeamSearchRequest, TextPrompt, TokensPrompt

pytestmark = pytest.mark.promise("BEAM-2")
Start = Callable[..., Any]


def search(request_id: str = "b", width: int = 3, **params: Any) -> BeamSearchRequest:
    timeout_s = params.pop("timeout_s", None)
    values = {"max_tokens": 10, "ignore_eos": True, **params}
    prompt = TokensPrompt(tuple(b"hello"))
    return BeamSearchRequest(request_id, prompt, BeamSearchParams(width, **values), timeout_s=timeout_s)


async def serve(harness: Harness, request: BeamSearchRequest) -> RequestOutput:
    (output,) = [output async for output in await harness.client.beam_search(request)]
    return output


async def nothing_is_left(harness: Harness) -> None:
    await harness.until(lambda: not harness.cores.current.core.has_work)
    harness.cores.current.core._scheduler.check_integrity()
    assert not harness.client._outputs.num_requests
    assert not harness.client._searches.request_ids
    assert harness.client._idle.is_set()


async def test_a_search_ends_with_its_hypotheses_best_first(start: Start) -> None:
    harness = await start()
    output = await serve(harness, search(logprobs=2))
    assert output.finished
    assert [sample.finish_reason for sample in output.outputs] == ["length"] * 3
    scores = [sample.cumulative_logprob for sample in output.outputs]
    assert scores == sorted(scores, reverse=True)
    for sample in output.outputs:
        assert len(sample.token_ids) == len(sample.logprobs) == 10
        assert all(next(iter(entry)) == token for token, entry in zip(sample.token_ids, sample.logprobs, strict=True))
        total = sum(entry[token].logprob for token, entry in zip(sample.token_ids, sample.logprobs, strict=True))
        assert total == pytest.approx(sample.cumulative_logprob)
    await nothing_is_left(harness)


async def test_a_text_is_tokenized_first(start: Start) -> None:
    harness = await start()
    output = await serve(harness, BeamSearchRequest("b", TextPrompt("hello"), BeamSearchParams(2, max_tokens=4, n=1)))
    assert output.prompt == "hello"
    assert len(output.outputs) == 1


async def test_a_search_survives_the_death_of_the_core(start: Start) -> None:
    harness = await start()
    wanted = await serve(harness, search("undisturbed"))
    serving = asyncio.create_task(serve(harness, search()))
    await harness.until(lambda: harness.client._outputs.num_requests > 0)
    await harness.kill_core()
    found = await serving
    assert [s.token_ids for s in found.outputs] == [s.token_ids for s in wanted.outputs]


async def test_a_search_holds_as_many_places_as_beams_until_its_end(start: Start) -> None:
    harness = await start(admission=AdmissionConfig(max_num_queued_reqs=0))  # max_num_seqs is 8
    stream = await harness.client.beam_search(search(width=7))
    with pytest.raises(QueueFullError):
        await harness.client.generate(make_request("r", n=2, temperature=1.0))
    tokens = asyncio.create_task(harness.tokens(make_request("r")))
    async for output in stream:
        assert len(output.outputs) == 7
    assert len(await tokens) == 20
    assert len(await harness.tokens(make_request("r"))) == 20
    with pytest.raises(InvalidRequestError):
        await harness.client.beam_search(search(width=9))


async def test_an_id_is_used_once(start: Start) -> None:
    harness = await start()
    stream = await harness.client.beam_search(search("same"))
    with pytest.raises(InvalidRequestError, match="in use"):
        await harness.client.generate(make_request("same"))
    await stream.aclose()


async def test_leaving_the_stream_ends_the_search(start: Start) -> None:
    harness = await start()
    stream = await harness.client.beam_search(search(max_tokens=200))
    await harness.until(lambda: harness.client._outputs.num_requests > 0)
    await stream.aclose()
    await nothing_is_left(harness)


async def test_a_cancelled_reader_ends_the_search(start: Start) -> None:
    harness = await start()
    reading = asyncio.create_task(serve(harness, search(max_tokens=200)))
    await harness.until(lambda: harness.client._outputs.num_requests > 0)
    reading.cancel()
    await asyncio.wait((reading,))
    await nothing_is_left(harness)


async def test_a_forgotten_stream_ends_the_search(start: Start) -> None:
    harness = await start()
    stream = await harness.client.beam_search(search(max_tokens=200))
    await harness.until(lambda: harness.client._outputs.num_requests > 0)
    del stream
    gc.collect()
    await harness.until(lambda: not harness.client._searches.request_ids)
    await nothing_is_left(harness)


async def test_an_aborted_search_ends_with_abort(start: Start) -> None:
    harness = await start()
    serving = asyncio.create_task(serve(harness, search(max_tokens=200)))
    await harness.until(lambda: harness.cores.current.num_steps > 2)
    await harness.client.abort(["b", "unknown"])
    output = await serving
    assert {sample.finish_reason for sample in output.outputs} == {"abort"}
    await nothing_is_left(harness)


async def test_shutdown_ends_searches(start: Start) -> None:
    harness = await start()
    serving = asyncio.create_task(serve(harness, search(max_tokens=200)))
    await harness.until(lambda: harness.cores.current.num_steps > 2)
    await harness.client.shutdown()
    assert {sample.finish_reason for sample in (await serving).outputs} == {"abort"}


async def test_a_failed_step_fails_the_search(start: Start) -> None:
    cores = LoopCores(nan_ids={"b/2.1"})
    harness = await start(cores)
    with pytest.raises(GenerationError):
        await serve(harness, search())
    await nothing_is_left(harness)


async def test_time_over_returns_what_was_found_so_far(start: Start) -> None:
    harness = await start()
    stream = await harness.client.beam_search(search(max_tokens=200, timeout_s=100.0))
    await harness.until(lambda: harness.cores.current.num_steps > 5)
    harness.cores.current.freeze()
    (run,) = harness.client._searches._runs.values()
    harness.client._searches._end(run, "length")  # what the timer does
    async for output in stream:
        assert {(sample.finish_reason, sample.stop_reason) for sample in output.outputs} == {("length", "timeout")}
        assert 0 < len(output.outputs[0].token_ids) < 200
    harness.cores.current.thaw()
    await nothing_is_left(harness)


async def test_time_over_before_the_first_step_is_an_error(start: Start) -> None:
    harness = await start()
    harness.cores.current.freeze()
    with pytest.raises(DeadlineExceededError):
        await serve(harness, search(timeout_s=1e-6))
    harness.cores.current.thaw()
    await nothing_is_left(harness)


async def test_a_search_that_is_left_before_it_began_gives_its_places_and_its_id_back(start: Start) -> None:
    harness = await start()
    for _ in range(2):
        await (await harness.client.beam_search(search("s"))).aclose()
    assert harness.client._searches.num_places == 0
