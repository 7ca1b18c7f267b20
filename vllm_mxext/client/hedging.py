"""`hedged()`: a second attempt beside one that takes long; the first that succeeds wins, the other is cancelled.

After "The Tail at Scale" (Dean and Barroso 2013). Opt-in: a hedge costs the servers work that is thrown away.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import anyio

from vllm_mxext.client.clock import Clock

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class HedgePolicy:
    """When to hedge.

    Attributes:
        after_s: seconds without a first token, or a whole answer; best a high percentile of what is usual.
    """

    after_s: float = 5.0


async def hedged(
    attempt: Callable[[], Awaitable[T]],
    after_s: float,
    clock: Clock,
    may_hedge: Callable[[], bool],
    discard: Callable[[T], Awaitable[None]],
) -> T:
    """Returns the result of the attempt that succeeds first.

    Args:
        attempt: makes one.
        after_s: seconds after which the second begins.
        clock: time.
        may_hedge: asked then.
        discard: gives back what a loser has brought all the same.

    Raises:
        Exception: that of the first attempt, if all failed.
    """
    tasks: list[asyncio.Future[T]] = [asyncio.ensure_future(_coroutine(attempt))]
    timer: asyncio.Future[None] = asyncio.ensure_future(clock.sleep(after_s))
    winner: asyncio.Future[T] | None = None
    try:
        awaited: list[asyncio.Future[Any]] = [*tasks, timer]
        await asyncio.wait(awaited, return_when=asyncio.FIRST_COMPLETED)
        if not tasks[0].done() and may_hedge():
            tasks.append(asyncio.ensure_future(_coroutine(attempt)))
        pending = {task for task in tasks if not task.done()}
        winner = _winner(tasks)
        while winner is None and pending:
            _, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            winner = _winner(tasks)
    finally:
        timer.cancel()
        ending = asyncio.ensure_future(_end([task for task in tasks if task is not winner], discard))
        try:
            with anyio.CancelScope(shield=True):
                await asyncio.shield(ending)
        except asyncio.CancelledError:  # nobody wants the winner either
            if winner is not None:
                await discard(winner.result())
            raise
    return (winner or tasks[0]).result()


async def _coroutine(attempt: Callable[[], Awaitable[T]]) -> T:
    return await attempt()


def _winner(tasks: list[asyncio.Future[T]]) -> asyncio.Future[T] | None:
    return next((task for task in tasks if task.done() and not task.cancelled() and task.exception() is None), None)


async def _end(losers: list[asyncio.Future[T]], discard: Callable[[T], Awaitable[None]]) -> None:
    for task in losers:
        task.cancel()
    if losers:
        await asyncio.wait(losers)
    for task in losers:
        if not task.cancelled() and task.exception() is None:
            await discard(task.result())
