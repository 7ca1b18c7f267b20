"""`PriorityQueue`: who goes next when there is not room for everybody, and who has waited too long."""

from __future__ import annotations

import asyncio
from bisect import bisect_left, insort
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from typing import Generic, TypeVar

from vllm_mxext.client.call import NORMAL
from vllm_mxext.client.clock import Clock
from vllm_mxext.client.errors import ClosedError, QueueFullError, TimeoutExceededError
from vllm_mxext.client.numbers import check_numbers

T = TypeVar("T")

_PATROL_S = 0.1
"""How often those who wait are looked at although nobody has called `wake()`: breakers let calls through in time, and
pauses that servers have asked for end.
"""


@dataclass(frozen=True, slots=True)
class Turn(Generic[T]):
    """How a place is taken.

    Attributes:
        take: returns a place, or None if there is none now; what it raises, the one who waits gets.
        give_back: for a place whose owner has gone before it could be handed over.
        lane: of those who need the same places; one who waits for a place that only he wants holds up no others.
        only: where alone it finds a place; None = in several.
    """

    take: Callable[[], T | None]
    give_back: Callable[[T], None]
    lane: Hashable = ""
    only: Hashable | None = None


@dataclass(slots=True, order=True)
class _Waiter(Generic[T]):
    """One who waits; `due_s` and `number` are the order."""

    due_s: float
    number: int
    turn: Turn[T] = field(compare=False)
    place: asyncio.Future[T] = field(compare=False)


class PriorityQueue(Generic[T]):
    """Bounded: one more than `max_size` is refused at once. For one event loop.

    Who waits is ordered by `arrival + priority * ageing_s`: first come first served within a priority, and nobody is
    overtaken by calls that came more than `ageing_s` per level of priority after him, so that nobody starves.

    `wake()` is called whenever there may be room again; room that comes by itself is found within a tenth of a second.

    Args:
        max_size: how many may wait.
        clock: time.
        ageing_s: seconds of waiting that are worth one level of priority.
    """

    def __init__(self, max_size: int, clock: Clock, ageing_s: float = 10.0) -> None:
        check_numbers("a queue", is_whole=True, max_size=max_size)
        check_numbers("a queue", ageing_s=ageing_s)
        self.max_size = max_size
        self._clock = clock
        self._ageing_s = ageing_s
        self._lanes: dict[Hashable, list[_Waiter[T]]] = {}
        self._num_arrivals = 0
        self._patrol: asyncio.Task[None] | None = None
        self._is_closed = False

    def __len__(self) -> int:
        return sum(map(len, self._lanes.values()))

    async def wait_turn(
        self, turn: Turn[T], *, priority: int = NORMAL, deadline_s: float | None = None, limit: str = "its time"
    ) -> T:
        """Returns a place as soon as there is one for it; a cancelled waiter holds none.

        Args:
            turn: how a place is taken.
            priority: 0 high, 1 normal, 2 low.
            deadline_s: clock time until which it waits; None = any time.
            limit: what is over then, for the error.

        Raises:
            QueueFullError: too many wait.
            TimeoutExceededError: the deadline has come.
            ClosedError: the queue has been closed.
        """
        if self._is_closed:
            raise ClosedError("The client has been closed; make a new one.")
        arrived_s = self._clock.now()
        if deadline_s is not None and arrived_s >= deadline_s:
            raise _too_late(0.0, limit)
        waiter = _Waiter(
            arrived_s + priority * self._ageing_s, self._num_arrivals, turn, asyncio.get_running_loop().create_future()
        )
        self._num_arrivals += 1
        self.wake(turn.only)  # who waits goes first if room has come by itself
        lane = self._lanes.get(turn.lane)
        if not lane or waiter < lane[0]:
            place = turn.take()
            if place is not None:
                return place
        if len(self) >= self.max_size:
            raise QueueFullError(
                f"{len(self)} requests wait in the client already; send fewer at once, or raise the queue's size or "
                "max_concurrent_requests."
            )
        insort(self._lanes.setdefault(turn.lane, []), waiter)
        if self._patrol is None:
            self._patrol = asyncio.ensure_future(self._keep_looking())
        return await self._wait(waiter, arrived_s, deadline_s, limit)

    def wake(self, where: Hashable | None = None) -> None:
        """Gives places to those who are next, as far as there are any.

        Args:
            where: there may be room; None = anywhere.
        """
        heads = [lane[0] for lane in self._lanes.values() if where is None or lane[0].turn.only in (None, where)]
        heapify(heads)
        while heads:
            waiter = heappop(heads)
            if not waiter.place.done() and not _serve(waiter):
                continue
            self._remove(waiter)
            if waiter.turn.lane in self._lanes:
                heappush(heads, self._lanes[waiter.turn.lane][0])

    def close(self) -> None:
        """Refuses everybody who waits, and everybody who comes."""
        self._is_closed = True
        for waiter in [waiter for lane in self._lanes.values() for waiter in lane]:
            if not waiter.place.done():
                waiter.place.set_exception(ClosedError("The client was closed while this request waited in its queue."))
            self._remove(waiter)

    async def _wait(self, waiter: _Waiter[T], arrived_s: float, deadline_s: float | None, limit: str) -> T:
        timer = None
        if deadline_s is not None:
            timer = asyncio.ensure_future(self._expire(waiter, arrived_s, deadline_s, limit))
        try:
            return await waiter.place
        except asyncio.CancelledError:
            # It may have been given a place and been cancelled before it ran again.
            place = waiter.place
            if place.done() and not place.cancelled() and place.exception() is None:
                waiter.turn.give_back(place.result())
            raise
        finally:
            self._remove(waiter)
            if timer is not None:
                timer.cancel()

    async def _expire(self, waiter: _Waiter[T], arrived_s: float, deadline_s: float, limit: str) -> None:
        await self._clock.sleep(deadline_s - arrived_s)
        if not waiter.place.done():
            waiter.place.set_exception(_too_late(self._clock.now() - arrived_s, limit))
            self._remove(waiter)

    async def _keep_looking(self) -> None:
        while True:
            await self._clock.sleep(_PATROL_S)
            self.wake()

    def _remove(self, waiter: _Waiter[T]) -> None:
        lane = self._lanes.get(waiter.turn.lane, [])
        index = bisect_left(lane, waiter)
        if index < len(lane) and lane[index] is waiter:
            del lane[index]
            if not lane:
                del self._lanes[waiter.turn.lane]
        if self._patrol is not None and not self._lanes:
            self._patrol.cancel()
            self._patrol = None


def _serve(waiter: _Waiter[T]) -> bool:
    """Gives a place or an error to one who waits; returns whether there was either."""
    try:
        place = waiter.turn.take()
    except Exception as error:  # the waiter's, not ours
        waiter.place.set_exception(error)
        return True
    if place is None:
        return False
    waiter.place.set_result(place)
    return True


def _too_late(waited_s: float, limit: str) -> TimeoutExceededError:
    return TimeoutExceededError(
        f"The request waited {waited_s:.1f} s in the client's queue and {limit} was over; raise the timeout or "
        "max_concurrent_requests, or add an endpoint."
    )
