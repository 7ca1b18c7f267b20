"""`EventStream`: waits for slow clients, ends its work, and never leaves a request open."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from vllm_mxext.errors import GenerationError
from vllm_mxext.server.clock import SystemClock
from vllm_mxext.server.disconnect import ClientDisconnectedError
from vllm_mxext.server.sse import DONE, EventStream


class Connection:
    """An ASGI connection whose client reads, or does not, and may leave."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []
        self.reads = asyncio.Event()
        self.reads.set()
        self.left = asyncio.Event()

    async def receive(self) -> dict[str, Any]:
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        await self.reads.wait()
        self.sent.append(message)

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent)


class Source:
    """Events that the test produces; counts how many were taken."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[bytes | Exception | None] = asyncio.Queue()
        self.num_taken = 0
        self.num_closed = 0

    async def events(self) -> AsyncGenerator[bytes, None]:
        while (item := await self.queue.get()) is not None:
            self.num_taken += 1
            if isinstance(item, Exception):
                raise item
            yield item

    async def close(self) -> None:
        self.num_closed += 1

    def stream(self) -> EventStream:
        return EventStream(self.events(), self.close, SystemClock(), keep_alive_s=0)


@pytest.fixture
def source() -> Source:
    return Source()


@pytest.fixture
def connection() -> Connection:
    return Connection()


def run(source: Source, connection: Connection) -> asyncio.Task[None]:
    return asyncio.create_task(source.stream()({"type": "http"}, connection.receive, connection.send))


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_events_are_sent_in_order_and_done_ends_the_body(source, connection):
    for item in (b"a", b"b", None):
        source.queue.put_nowait(item)

    await run(source, connection)

    assert connection.body == b"ab" + DONE
    assert [message.get("more_body") for message in connection.sent] == [None, True, True, False]
    assert source.num_closed == 1


async def test_nothing_more_is_taken_while_the_client_does_not_read(source, connection):
    task = run(source, connection)
    await settle()
    connection.reads.clear()
    for item in (b"a", b"b", b"c", None):
        source.queue.put_nowait(item)
    await settle()
    assert source.num_taken == 1  # the others wait in the engine, which merges them

    connection.reads.set()
    await task
    assert connection.body == b"abc" + DONE


async def test_a_client_that_leaves_ends_the_stream_and_closes_its_source(source, connection):
    task = run(source, connection)
    source.queue.put_nowait(b"a")
    await settle()
    connection.left.set()

    with pytest.raises(ClientDisconnectedError):
        await task
    assert connection.body == b"a"
    assert source.num_closed == 1


async def test_a_client_that_leaves_without_reading_is_noticed_too(source, connection):
    task = run(source, connection)
    await settle()
    connection.reads.clear()
    source.queue.put_nowait(b"a")
    await settle()
    connection.left.set()

    with pytest.raises(ClientDisconnectedError):
        await task
    assert source.num_closed == 1


async def test_a_stream_cancelled_before_it_began_still_closes_its_source(source, connection):
    connection.reads.clear()
    task = run(source, connection)
    await settle()
    task.cancel()
    await asyncio.wait((task,))

    assert task.cancelled()
    assert source.num_closed == 1


async def test_a_failure_is_an_error_event_before_done(source, connection):
    source.queue.put_nowait(b"a")
    source.queue.put_nowait(GenerationError("It broke."))

    await run(source, connection)

    assert connection.body.startswith(b'adata: {"error":{"message":"It broke."')
    assert connection.body.endswith(b"}}\n\n" + DONE)


async def test_an_unexpected_failure_gives_nothing_away(source, connection, caplog):
    source.queue.put_nowait(ValueError("secret"))

    await run(source, connection)

    assert b"secret" not in connection.body
    assert connection.body.endswith(DONE)
    assert "secret" in caplog.text


async def test_no_task_is_left_behind(source, connection):
    before = asyncio.all_tasks()
    task = run(source, connection)
    source.queue.put_nowait(b"a")
    await settle()
    connection.left.set()
    await asyncio.wait((task,))
    assert isinstance(task.exception(), ClientDisconnectedError)

    assert asyncio.all_tasks() == before
