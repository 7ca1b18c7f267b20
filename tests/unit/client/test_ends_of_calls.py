"""How calls end that are hedged, cancelled, left, closed or refused: nothing of them stays behind."""

from __future__ import annotations

import asyncio
import gc

import pytest

from tests.client.endpoints import assert_idle, chat, closed_port, endpoint, pipeline, text_of, until_idle
from tests.client.fault_server import (
    WORDS,
    FaultServer,
    Reply,
    Request,
    completion,
    delta,
    healthy,
    never_answer,
    status,
    stream,
)
from vllm_mxext.client.call import Call
from vllm_mxext.client.errors import (
    BadRequestError,
    ClosedError,
)
from vllm_mxext.client.hedging import HedgePolicy
from vllm_mxext.client.limiter import LimiterConfig
from vllm_mxext.client.pipeline import Pipeline

TEXT = "".join(WORDS)
BEGUN = (delta(role="assistant"), delta("The"), delta(" answer"))


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.promise("CLIENT-4")
async def test_a_hedge_wins_and_the_loser_is_cancelled(is_stream: bool) -> None:
    async with FaultServer([never_answer, healthy]) as server:
        client = pipeline(server.url, hedge=HedgePolicy(0.01))
        assert (await text_of(client) if is_stream else (await client.call(chat())).body) in (TEXT, completion())
        assert len(server.requests) == 2
        await server.until_gone()
        assert_idle(client)
        await client.close()


async def test_a_cancelled_call_closes_its_request() -> None:
    async with FaultServer([never_answer]) as server:
        client = pipeline(server.url)
        call = asyncio.ensure_future(client.call(chat()))
        await server.until_asked()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await server.until_gone()
        assert_idle(client)
        assert client.metrics.recent[-1].outcome == "cancelled"
        await client.close()


@pytest.mark.parametrize("how", ["aclose", "drop"])
async def test_a_stream_that_is_left_closes_its_request(how: str) -> None:
    async with FaultServer([stream(*BEGUN, end="stall")]) as server:
        client = pipeline(server.url)
        events = client.stream(chat(stream=True))
        await anext(events)
        if how == "aclose":
            await events.aclose()
        else:
            del events
            gc.collect()
            await until_idle(client)
        await server.until_gone()
        assert_idle(client)
        await client.close()


async def test_streams_use_one_connection_after_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vllm_mxext.client.event_stream.DRAIN_S", 60.0)  # else a busy machine uses up what it may take
    async with FaultServer([healthy]) as server:
        client = pipeline(server.url)
        for _ in range(5):
            assert await text_of(client) == TEXT
        assert server.num_connections == 1
        await client.close()


async def test_a_closed_client_refuses_and_ends_what_is_under_way() -> None:
    async with FaultServer([never_answer]) as server:
        client = pipeline(server.url)
        call = asyncio.ensure_future(client.call(chat()))
        await server.until_asked()
        await client.close()
        with pytest.raises(ClosedError):
            await call
        with pytest.raises(ClosedError):
            await client.call(chat())
        assert_idle(client)


def test_a_client_can_be_used_in_one_loop_after_another() -> None:
    async def ask(client: Pipeline, url: str) -> int:
        client.endpoints[:] = [endpoint(url)]
        return (await client.call(chat())).status

    async def once(client: Pipeline) -> int:
        async with FaultServer([healthy]) as server:
            return await ask(client, server.url)

    client = pipeline("http://127.0.0.1:1")
    assert [asyncio.run(once(client)) for _ in range(2)] == [200, 200]


async def test_what_cannot_be_sent_is_told_as_a_typed_error() -> None:
    client = pipeline(closed_port())
    with pytest.raises(BadRequestError, match="cannot be written as JSON"):
        await client.call(Call("/v1/x", {"a": object()}))
    await client.close()


async def test_prompts_are_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    async with FaultServer([status(500), healthy]) as server:
        client = pipeline(server.url)
        await client.call(chat())
        await client.close()
    assert "What is it?" not in "".join(str(vars(record)) for record in caplog.records)


@pytest.mark.promise("CLIENT-4")
async def test_a_call_that_had_to_wait_in_the_queue_is_hedged_once_it_has_been_sent_for_long() -> None:
    released = asyncio.Event()

    async def when_released(request: Request, reply: Reply) -> None:
        await released.wait()
        await healthy(request, reply)

    async with FaultServer([when_released, never_answer]) as slow, FaultServer([healthy]) as quick:
        client = pipeline(slow.url, quick.url, hedge=HedgePolicy(0.05))
        for one in client.endpoints:
            one.limiter.change(LimiterConfig(max_limit=1))
        held = client.endpoints[1].limiter
        assert held.try_acquire()
        pinned = asyncio.ensure_future(client.call(chat(endpoint_id="e0")))
        await slow.until_asked(1)
        hedged = asyncio.ensure_future(client.call(chat()))
        await asyncio.sleep(0.1)  # more than the hedge's time, all of it in the queue
        released.set()
        await slow.until_asked(2)
        held.release(duration_s=0.0, was_throttled=False, failed=True)
        assert (await hedged).endpoint_id == "e1"
        await pinned
        await client.close()
