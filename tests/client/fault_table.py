"""What callers of this client and of the `openai` package see when servers fail: `python -m tests.client.fault_table`.

Both ask the same fault server, with two retries and limits of one second; each row has a server of its own per client.
VLLM_MXEXT_TEST_LONG=1 makes the outage last 60 seconds instead of three.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from email.utils import formatdate
from typing import Any

from tests.client.endpoints import closed_port
from tests.client.fault_server import (
    Fault,
    FaultServer,
    Reply,
    Request,
    body,
    delta,
    healthy,
    never_answer,
    reset,
    status,
    stream,
)
from vllm_mxext.client.async_client import AsyncVllmClient
from vllm_mxext.client.call import Timeouts

LIMIT_S = 1.0
PATIENCE_S = 6.0
"""After this a row ends: the caller would wait on."""

IS_LONG = os.environ.get("VLLM_MXEXT_TEST_LONG") == "1"
OUTAGE_S = 60.0 if IS_LONG else 3.0

ASKED: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "?"}]}
BEGUN = (delta(role="assistant"), delta("The"), delta(" answer"))

Ask = Callable[[bool], Awaitable[str]]
"""Asks, streaming or not, and returns the text."""


async def dated(request: Request, reply: Reply) -> None:
    """Answers 429 with the date of the next second but one."""
    await status(429, retry_after=formatdate(time.time() + 2, usegmt=True))(request, reply)


async def slow(_: Request, reply: Reply) -> None:
    """Begins a stream whose first token takes longer than the limit."""
    await reply.begin_stream()
    await reply.event(delta(role="assistant"))
    await asyncio.sleep(2 * LIMIT_S)
    await reply.event(delta("late", finish="stop"))
    await reply.end_stream()


@dataclass(frozen=True)
class Row:
    """One fault.

    Attributes:
        name: in the table.
        faults: of the server, one request after another, the last one for ever.
        is_stream: whether the answer is streamed.
    """

    name: str
    faults: tuple[Fault, ...]
    is_stream: bool = False


ROWS = (
    Row("accepts, never answers", (never_answer,)),
    Row("accepts, never answers, once", (never_answer, healthy)),
    Row("breaks the connection, once", (reset, healthy)),
    Row("429 without Retry-After, twice", (status(429), status(429), healthy)),
    Row("429, Retry-After: 1", (status(429, retry_after="1"), healthy)),
    Row("429, retry-after-ms: 200", (status(429, retry_after_ms="200"), healthy)),
    Row("429, Retry-After: a date in 2 s", (dated, healthy)),
    Row("429, Retry-After: 3600", (status(429, retry_after="3600"), healthy)),
    Row("503 twice, then well", (status(503), status(503), healthy)),
    Row("500 for ever", (status(500),)),
    Row("slow first token", (slow,), True),
    Row("stalls in mid-stream", (stream(*BEGUN, end="stall"),), True),
    Row("only keep-alive in mid-stream", (stream(*BEGUN, end="keep-alive"),), True),
    Row("stream cut off in mid-answer", (stream(*BEGUN),), True),
    Row("connection broken in mid-stream", (stream(*BEGUN, end="cut"),), True),
    Row("malformed event first, once", (stream(b"data: {]\n\n"), healthy), True),
    Row("malformed event in mid-stream", (stream(*BEGUN, b"data: {]\n\n"),), True),
    Row("cut off before the first token, once", (stream(delta(role="assistant")), healthy), True),
    Row("error inside the stream", (stream(*BEGUN, {"error": {"message": "dead", "code": 500}}, end="done"),), True),
    Row("wrong content type", (body("<html>sign in</html>", "text/html"),)),
    Row("wrong content type for a stream", (body("<html>sign in</html>", "text/html"),), True),
    Row("malformed JSON", (body('{"choices": ['),)),
    Row("200 with an error inside", (body(json.dumps({"error": {"message": "no such model", "code": 404}})),)),
)


@contextlib.asynccontextmanager
async def ours(*urls: str) -> AsyncIterator[Ask]:
    """Asks with this client."""
    limits = Timeouts(connect=LIMIT_S, first_token=LIMIT_S, idle=LIMIT_S, total=30.0)

    async def ask(is_stream: bool) -> str:
        answer = await client.chat.completions.create(**ASKED, stream=is_stream)
        if not is_stream:
            return str(answer.choices[0].message.content)  # type: ignore[union-attr]
        return "".join([chunk.choices[0].delta.get("content", "") async for chunk in answer])  # type: ignore[union-attr]

    async with AsyncVllmClient(urls, "key", timeout=limits, max_retries=2) as client:
        yield ask


@contextlib.asynccontextmanager
async def openai(*urls: str) -> AsyncIterator[Ask]:
    """Asks with the `openai` package, which knows one server: the first."""
    from openai import AsyncOpenAI

    async def ask(is_stream: bool) -> str:
        answer = await client.chat.completions.create(**ASKED, stream=is_stream)
        if not is_stream:
            return str(answer.choices[0].message.content)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in answer])

    async with AsyncOpenAI(base_url=f"{urls[0]}/v1", api_key="key", max_retries=2, timeout=LIMIT_S) as client:
        yield ask


CLIENTS = (ours, openai)


async def seen(ask: Ask, is_stream: bool = False) -> str:
    """Returns what a caller sees."""
    try:
        text = await asyncio.wait_for(ask(is_stream), PATIENCE_S)
    except asyncio.TimeoutError as error:
        if type(error) is not asyncio.TimeoutError:  # ours is one too
            return _name(error)
        return "waits on"
    except Exception as error:  # whatever it is, it is what is asked
        return _name(error)
    return f"answer '{text}'"


async def of_row(row: Row) -> list[str]:
    """Returns the cells of one row."""
    cells = [row.name]
    for client in CLIENTS:
        async with FaultServer(list(row.faults)) as server, client(server.url) as ask:
            began_s = time.monotonic()
            result = await seen(ask, row.is_stream)
            cells.append(f"{result}; {len(server.requests)} requests, {time.monotonic() - began_s:.1f} s")
    return cells


async def of_refusal() -> list[str]:
    """Returns the cells of a port where nobody listens."""
    cells = ["refuses the connection"]
    for client in CLIENTS:
        async with client(closed_port()) as ask:
            began_s = time.monotonic()
            cells.append(f"{await seen(ask)}; {time.monotonic() - began_s:.1f} s")
    return cells


async def of_bad_endpoint() -> list[str]:
    """Returns the cells of one bad endpoint of three, asked 30 times."""
    cells = ["one bad endpoint of three, 30 calls"]
    for client in CLIENTS:
        async with (
            FaultServer([never_answer]) as bad,
            FaultServer([healthy]) as one,
            FaultServer([healthy]) as other,
            client(bad.url, one.url, other.url) as ask,
        ):
            began_s = time.monotonic()
            results = await asyncio.gather(*(seen(ask) for _ in range(30)))
            num_good = sum(result.startswith("answer") for result in results)
            took_s = time.monotonic() - began_s
            cells.append(f"{num_good} answers, {len(bad.requests)} requests to the bad one, {took_s:.1f} s")
    return cells


async def of_outage() -> list[str]:
    """Returns the cells of an outage: a call every 50 ms until the server is well again and has answered."""
    cells = [f"an outage of {OUTAGE_S:.0f} s, 20 calls/s"]
    for client in CLIENTS:
        ends_s = time.monotonic() + OUTAGE_S

        async def fault(request: Request, reply: Reply, ends_s: float = ends_s) -> None:
            await (healthy if time.monotonic() >= ends_s else status(503))(request, reply)

        async with FaultServer([fault]) as server, client(server.url) as ask:
            calls: list[asyncio.Future[str]] = []
            recovered_s = None
            while recovered_s is None:
                calls.append(asyncio.ensure_future(seen(ask)))
                await asyncio.sleep(0.05)
                if any(call.done() and call.result().startswith("answer") for call in calls):
                    recovered_s = time.monotonic() - ends_s
            results = await asyncio.gather(*calls)
            num_failed = sum(not result.startswith("answer") for result in results)
            num_requests = len(server.requests)
            cells.append(
                f"{num_failed} of {len(calls)} calls failed, {num_requests} requests, well {recovered_s:.1f} s after"
            )
    return cells


async def table() -> list[list[str]]:
    """Returns all rows."""
    await asyncio.to_thread(importlib.import_module, "openai")  # takes long, and would stop the clock of the others
    places = asyncio.Semaphore(4)

    async def placed(row: Row) -> list[str]:
        async with places:
            return await of_row(row)

    return [
        await of_refusal(),
        *await asyncio.gather(*(placed(row) for row in ROWS)),
        await of_bad_endpoint(),
        await of_outage(),
    ]


def main() -> int:
    """Prints the table."""
    import openai as package

    rows = asyncio.run(table())
    sys.stdout.write(f"| fault | this client | openai {package.__version__} |\n|---|---|---|\n")
    sys.stdout.writelines(f"| {' | '.join(cells)} |\n" for cells in rows)
    return 0


def _name(error: BaseException) -> str:
    text = getattr(error, "text", None)
    kept = f" keeping '{text}'" if isinstance(text, str) else ""
    cause = error.__cause__
    because = f" ({type(cause).__name__})" if kept and cause is not None else ""
    return f"{type(error).__name__}{because}{kept}"


if __name__ == "__main__":
    sys.exit(main())
