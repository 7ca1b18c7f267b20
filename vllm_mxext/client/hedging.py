"""`hedged()`: adds a second attempt to one that takes long; the first to succeed wins, the other is cancelled.

After "The Tail at Scale" (Dean and Barroso 2013). Opt-in: a hedge costs the servers work that is thrown away.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import anyio

from vllm_mxext.client.clock import Clock
from vllm_mxext.client.numbers import check_numbers

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class HedgePolicy:
    """When to hedge.

    Attributes:
        after_s: seconds without a first token, or a whole answer; best a high percentile of what is usual.
    """

    after_s: float = 5.0

    def __post_init__(self) -> None:
        check_numbers("a hedge policy", after_s=self.after_s)


async def hedged(
    attempt: Callable[[], Awaitable[T]],
    hedge_in_s: Callable[[], float | None],
    clock: Clock,
    discard: Callable[[T], Awaitable[None]],
) -> T:
    """Returns the result of the attempt that succeeds first.

    Args:
        attempt: makes one.
        hedge_in_s: asked at once and whenever its seconds are over: 0 = the second begins now, None = there is none.
        clock: time.
        discard: gives back what a loser has brought all the same.

    Raises:
        Exception: that of the first attempt, if all failed.
    """
    tasks: list[asyncio.Future[T]] = [asyncio.ensure_future(_coroutine(attempt))]
    timer: asyncio.Future[None] | None = None
    winner: asyncio.Future[T] | None = None
    try:
        while (wait_s := hedge_in_s()) and not tasks[0].done():
            timer = asyncio.ensure_future(clock.sleep(wait_s))
            awaited: list[asyncio.Future[Any]] = [*tasks, timer]
            await asyncio.wait(awaited, return_when=asyncio.FIRST_COMPLETED)
        if wait_s is not None and not tasks[0].done():
            tasks.append(asyncio.ensure_future(_coroutine(attempt)))
        pending = {task for task in tasks if not task.done()}
        winner = _winner(tasks)
        while winner is None and pending:
            _, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            winner = _winner(tasks)
    finally:
        if timer is not None:
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
