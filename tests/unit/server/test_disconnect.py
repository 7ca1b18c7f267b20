"""`run_until_disconnect`: the work's result, or its end when the client leaves."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from vllm_mxext.server.disconnect import ClientDisconnectedError, run_until_disconnect


async def never() -> dict[str, Any]:
    await asyncio.Event().wait()
    return {}


async def at_once() -> dict[str, Any]:
    return {"type": "http.disconnect"}


async def test_the_result_of_the_work_is_returned():
    async def work() -> int:
        return 3

    assert await run_until_disconnect(never, work()) == 3


async def test_an_error_of_the_work_is_raised():
    async def work() -> int:
        raise KeyError("x")

    with pytest.raises(KeyError):
        await run_until_disconnect(never, work())


async def test_the_work_has_ended_its_clean_up_when_the_disconnect_is_reported():
    steps = []

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            steps.append("cleaned up")

    with pytest.raises(ClientDisconnectedError):
        await run_until_disconnect(at_once, work())
    assert steps == ["cleaned up"]


async def test_work_that_has_ended_wins_over_a_disconnect_at_the_same_time():
    async def work() -> int:
        return 5

    assert await run_until_disconnect(at_once, work()) == 5


async def test_cancelling_the_caller_cancels_work_and_watcher():
    before = asyncio.all_tasks()
    is_cancelled = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            is_cancelled.set()
            raise

    task = asyncio.create_task(run_until_disconnect(never, work()))
    for _ in range(5):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait((task,))

    assert is_cancelled.is_set()
    assert asyncio.all_tasks() == before


async def test_messages_before_the_disconnect_are_passed_over():
    messages = [{"type": "http.request"}, {"type": "http.disconnect"}]

    async def receive() -> dict[str, Any]:
        return messages.pop(0)

    with pytest.raises(ClientDisconnectedError):
        await run_until_disconnect(receive, never())
