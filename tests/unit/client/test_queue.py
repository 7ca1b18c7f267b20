"""The client's queue: who goes next, who is refused, and that no turn is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from tests.client.fake_clock import FakeClock, settle
from vllm_mxext.client.call import HIGH, LOW, NORMAL
from vllm_mxext.client.errors import CircuitOpenError, ClosedError, QueueFullError, TimeoutExceededError
from vllm_mxext.client.queue import PriorityQueue, Turn

pytestmark = pytest.mark.promise("CLIENT-14")


class Rooms:
    """Places by lane; who comes in is noted."""

    def __init__(self, clock: FakeClock, max_size: int = 100, ageing_s: float = 10.0) -> None:
        self.free: dict[str, int] = {}
        self.entered: list[str] = []
        self.error: Exception | None = None
        self.queue: PriorityQueue[str] = PriorityQueue(max_size, clock, ageing_s)

    def turn(self, lane: str = "") -> Turn[str]:
        return Turn(lambda: self.take(lane), self.give_back, lane)

    def take(self, lane: str) -> str | None:
        if self.error is not None:
            raise self.error
        if not self.free.get(lane):
            return None
        self.free[lane] -= 1
        return lane

    def give_back(self, lane: str) -> None:
        self.free[lane] = self.free.get(lane, 0) + 1
        self.queue.wake()

    async def visit(self, name: str, priority: int = NORMAL, lane: str = "", deadline_s: float | None = None) -> str:
        place = await self.queue.wait_turn(self.turn(lane), priority=priority, deadline_s=deadline_s)
        self.entered.append(name)
        return place


async def started(*coroutines: Coroutine[Any, Any, Any]) -> list[asyncio.Task[Any]]:
    tasks = []
    for coroutine in coroutines:
        tasks.append(asyncio.ensure_future(coroutine))
        await settle()
    return tasks


async def finished(*tasks: asyncio.Task[Any]) -> list[Any]:
    return await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_free_place_is_taken_at_once():
    rooms = Rooms(FakeClock(), max_size=0)
    rooms.free[""] = 1
    assert await rooms.visit("a") == ""
    assert len(rooms.queue) == 0


async def test_within_a_priority_it_is_first_come_first_served_and_high_goes_before_low():
    rooms = Rooms(FakeClock())
    tasks = await started(
        rooms.visit("low", LOW), rooms.visit("n1"), rooms.visit("n2"), rooms.visit("h1", HIGH), rooms.visit("h2", HIGH)
    )
    assert len(rooms.queue) == 5
    for _ in tasks:
        rooms.give_back("")
        await settle()
    assert rooms.entered == ["h1", "h2", "n1", "n2", "low"]
    await finished(*tasks)


async def test_one_who_has_waited_long_enough_is_not_overtaken_any_more():
    clock = FakeClock()
    rooms = Rooms(clock, ageing_s=10.0)
    tasks = await started(rooms.visit("low", LOW))
    clock.tick(19.0)
    tasks += await started(rooms.visit("early high", HIGH))
    clock.tick(2.0)
    tasks += await started(rooms.visit("late high", HIGH))
    for _ in tasks:
        rooms.give_back("")
        await settle()
    assert rooms.entered == ["early high", "low", "late high"]
    await finished(*tasks)


async def test_more_than_may_wait_are_refused_at_once_with_what_to_do():
    rooms = Rooms(FakeClock(), max_size=2)
    tasks = await started(rooms.visit("a"), rooms.visit("b"))
    with pytest.raises(QueueFullError, match=r"2 requests wait .* raise .*max_concurrent_requests"):
        await rooms.visit("c", HIGH)
    rooms.free[""] = 2
    rooms.queue.wake()
    await finished(*tasks)
    assert rooms.entered == ["a", "b"]


async def test_at_its_deadline_one_gets_an_error_and_the_others_go_on():
    clock = FakeClock()
    rooms = Rooms(clock)
    late, patient = await started(rooms.visit("late", deadline_s=clock.now() + 5.0), rooms.visit("patient"))
    await clock.advance(5.0)
    with pytest.raises(TimeoutExceededError, match=r"waited 5\.0 s .* raise the timeout"):
        await late
    assert len(rooms.queue) == 1
    rooms.give_back("")
    await patient
    assert rooms.free[""] == 0


async def test_a_deadline_that_has_passed_is_an_error_even_if_there_is_room():
    clock = FakeClock()
    rooms = Rooms(clock)
    rooms.free[""] = 1
    with pytest.raises(TimeoutExceededError):
        await rooms.visit("late", deadline_s=clock.now())
    assert rooms.free[""] == 1


async def test_no_timer_stays_behind():
    clock = FakeClock()
    rooms = Rooms(clock)
    served, cancelled = await started(
        rooms.visit("served", deadline_s=clock.now() + 5.0), rooms.visit("cancelled", deadline_s=clock.now() + 5.0)
    )
    rooms.give_back("")
    cancelled.cancel()
    await finished(served, cancelled)
    await settle()
    assert clock.num_sleepers == 0


async def test_one_who_is_cancelled_while_waiting_leaves_no_gap():
    rooms = Rooms(FakeClock())
    first, second = await started(rooms.visit("first"), rooms.visit("second"))
    first.cancel()
    rooms.give_back("")  # before the cancelled one has run
    await finished(first, second)
    assert rooms.entered == ["second"]
    assert (len(rooms.queue), rooms.free[""]) == (0, 0)


async def test_one_who_is_cancelled_gives_up_his_place_in_the_queue_at_once():
    rooms = Rooms(FakeClock(), max_size=1)
    (first,) = await started(rooms.visit("first"))
    first.cancel()
    await finished(first)
    assert len(rooms.queue) == 0
    (second,) = await started(rooms.visit("second"))
    rooms.give_back("")
    await finished(second)
    assert rooms.entered == ["second"]


async def test_one_who_is_cancelled_between_being_served_and_running_gives_its_place_to_the_next():
    rooms = Rooms(FakeClock())
    first, second = await started(rooms.visit("first"), rooms.visit("second"))
    rooms.give_back("")
    first.cancel()
    results = await finished(first, second)
    assert isinstance(results[0], asyncio.CancelledError)
    assert rooms.entered == ["second"]
    assert rooms.free[""] == 0


async def test_one_who_waits_for_a_place_of_his_own_holds_up_nobody_else():
    rooms = Rooms(FakeClock())
    pinned, free = await started(rooms.visit("pinned", HIGH, lane="a"), rooms.visit("free"))
    rooms.give_back("")
    await free
    assert rooms.entered == ["free"]
    rooms.give_back("a")
    await pinned
    assert rooms.entered == ["free", "pinned"]


async def test_who_waits_learns_that_there_is_nothing_to_wait_for_any_more():
    rooms = Rooms(FakeClock())
    tasks = await started(rooms.visit("a"), rooms.visit("b"))
    rooms.error = CircuitOpenError("Everything is broken.")
    rooms.queue.wake()
    assert [type(result) for result in await finished(*tasks)] == [CircuitOpenError, CircuitOpenError]
    assert len(rooms.queue) == 0


async def test_room_that_came_by_itself_goes_to_who_waits_before_who_comes():
    rooms = Rooms(FakeClock())
    waiting = (await started(rooms.visit("waiting")))[0]
    rooms.free[""] = 1  # nobody has called wake()
    coming = (await started(rooms.visit("coming")))[0]
    assert rooms.entered == ["waiting"]
    rooms.give_back("")
    await finished(waiting, coming)


async def test_room_that_came_by_itself_is_found_soon():
    clock = FakeClock()
    rooms = Rooms(clock)
    waiting = (await started(rooms.visit("waiting")))[0]
    rooms.free[""] = 1  # nobody has called wake()
    await clock.advance(0.1)
    assert rooms.entered == ["waiting"]
    await finished(waiting)
    assert clock.num_sleepers == 0


async def test_closing_refuses_who_waits_and_who_comes():
    rooms = Rooms(FakeClock())
    tasks = await started(rooms.visit("a"), rooms.visit("b", lane="x"))
    rooms.queue.close()
    assert [type(result) for result in await finished(*tasks)] == [ClosedError, ClosedError]
    with pytest.raises(ClosedError):
        await rooms.visit("c")
