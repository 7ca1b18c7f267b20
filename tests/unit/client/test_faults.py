"""Many calls against a server that fails at random, and the table of faults."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import tracemalloc

import pytest

from tests.client import fault_table
from tests.client.endpoints import chat, endpoint, pipeline, until_idle
from tests.client.fault_server import Fault, FaultServer, Reply, Request, body, delta, healthy, reset, status, stream
from vllm_mxext.client.breaker import BreakerConfig
from vllm_mxext.client.call import Call
from vllm_mxext.client.errors import ClientError
from vllm_mxext.client.hedging import HedgePolicy
from vllm_mxext.client.pipeline import Pipeline

NUM_CALLS = 10_000 if os.environ.get("VLLM_MXEXT_TEST_LONG") == "1" else 300

FAULTS: list[Fault] = [
    healthy,
    healthy,
    healthy,
    reset,
    status(429, retry_after_ms="1"),
    status(503),
    status(400),
    body("<html>", "text/html"),
    stream(delta(role="assistant")),
    stream(delta("The"), end="cut"),
    stream(delta("The"), b"data: ]\n\n"),
]


async def ended(client: Pipeline, call: Call, is_cancelled: bool) -> str:
    """Returns how a call ended; anything but an answer, a typed error or the cancellation that was asked for fails."""

    async def ask() -> None:
        if call.is_stream:
            async for _ in client.stream(call):
                pass
        else:
            await client.call(call)

    task = asyncio.ensure_future(ask())
    if is_cancelled:
        await asyncio.sleep(0.001)
        task.cancel()
    try:
        await task
    except ClientError as error:
        return type(error).__name__
    except asyncio.CancelledError:
        assert is_cancelled
        return "cancelled"
    return "answer"


@pytest.mark.promise("CLIENT-9")
@pytest.mark.timeout(900)
async def test_every_call_ends_with_an_answer_or_a_typed_error_and_nothing_is_left() -> None:
    chance = random.Random(7)

    async def fault(request: Request, reply: Reply) -> None:
        await chance.choice(FAULTS)(request, reply)

    breaker = BreakerConfig(reset_timeout_s=0.01, last_probe_interval_s=0.001)
    async with FaultServer([fault]) as one, FaultServer([fault]) as other:
        client = Pipeline(
            [endpoint(server.url, breaker=breaker) for server in (one, other)],
            pipeline(hedge=HedgePolicy(0.002), max_queue=40).config,
        )

        async def batch(number: int) -> list[str]:
            calls = [chat(stream=chance.random() < 0.5, priority=chance.randrange(3)) for _ in range(number)]
            return await asyncio.gather(*(ended(client, call, chance.random() < 0.1) for call in calls))

        await batch(50)
        gc.collect()
        tracemalloc.start()
        results = [result for _ in range(NUM_CALLS // 50) for result in await batch(50)]
        await until_idle(client)  # what a cancelled call has begun is ended behind its back
        one.requests.clear()
        other.requests.clear()
        client.metrics.snapshot(reset=True)
        gc.collect()
        kept_bytes = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        assert "answer" in results
        assert len(results) == NUM_CALLS
        assert kept_bytes < 2_000_000
        await client.close()


async def test_the_table_of_faults_shows_what_callers_see(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fault_table, "LIMIT_S", 60.0)  # what these rows show is not a matter of time
    monkeypatch.setattr(fault_table, "PATIENCE_S", 120.0)
    rows = [row for row in fault_table.ROWS if row.name in ("stream cut off in mid-answer", "malformed JSON")]
    cut, malformed = [await fault_table.of_row(row) for row in rows]
    assert cut[1].startswith("StreamInterruptedError (ProtocolError) keeping 'The answer'; 1 requests")
    assert malformed[1].startswith("ProtocolError; 1 requests")
    assert "requests" in cut[2]
