"""Hedges: who wins, who is cancelled, what is given back."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from tests.client.fake_clock import FakeClock
from vllm_mxext.client.hedging import hedged

pytestmark = pytest.mark.promise("CLIENT-4")


class Attempts:
    """Attempts whose ends a test decides."""

    def __init__(self) -> None:
        self.ends: list[asyncio.Future[str]] = []
        self.discarded: list[str] = []

    async def make(self) -> str:
        self.ends.append(asyncio.get_running_loop().create_future())
        return await self.ends[-1]

    async def discard(self, result: str) -> None:
        self.discarded.append(result)


def after_a_second(then_s: float | None = 0.0) -> Callable[[], float | None]:
    answers = iter((1.0, then_s))
    return lambda: next(answers)


async def begun(attempts: Attempts, clock: FakeClock, then_s: float | None = 0.0) -> Awaitable[str]:
    call = asyncio.ensure_future(hedged(attempts.make, after_a_second(then_s), clock, attempts.discard))
    await clock.advance(0.9)
    assert len(attempts.ends) == 1
    return call


@pytest.mark.parametrize("winner", [0, 1])
async def test_the_first_success_wins_and_the_other_is_cancelled(winner: int) -> None:
    attempts, clock = Attempts(), FakeClock()
    call = await begun(attempts, clock)
    await clock.advance(0.2)
    attempts.ends[winner].set_result("won")
    assert await call == "won"
    assert attempts.ends[1 - winner].cancelled()


async def test_a_quick_answer_needs_no_hedge() -> None:
    attempts, clock = Attempts(), FakeClock()
    call = await begun(attempts, clock)
    attempts.ends[0].set_result("won")
    assert await call == "won"
    await clock.advance(5.0)
    assert len(attempts.ends) == 1
    assert clock.num_sleepers == 0


async def test_without_leave_the_first_goes_on_alone() -> None:
    attempts, clock = Attempts(), FakeClock()
    call = await begun(attempts, clock, None)
    await clock.advance(5.0)
    attempts.ends[0].set_result("won")
    assert await call == "won"
    assert len(attempts.ends) == 1


async def test_a_failure_waits_for_the_other() -> None:
    attempts, clock = Attempts(), FakeClock()
    call = await begun(attempts, clock)
    await clock.advance(0.2)
    attempts.ends[0].set_exception(ValueError("first"))
    await clock.advance(0.1)
    attempts.ends[1].set_result("won")
    assert await call == "won"


async def test_if_all_fail_the_first_failure_is_told() -> None:
    attempts, clock = Attempts(), FakeClock()
    call = await begun(attempts, clock)
    await clock.advance(0.2)
    attempts.ends[1].set_exception(ValueError("second"))
    attempts.ends[0].set_exception(ValueError("first"))
    with pytest.raises(ValueError, match="first"):
        await call


async def test_both_at_once_gives_one_back() -> None:
    attempts, clock = Attempts(), FakeClock()
    call = await begun(attempts, clock)
    await clock.advance(0.2)
    attempts.ends[0].set_result("one")
    attempts.ends[1].set_result("two")
    assert await call == "one"
    assert attempts.discarded == ["two"]


async def test_a_winner_that_nobody_waits_for_any_more_is_given_back_too() -> None:
    attempts, clock = Attempts(), FakeClock()
    is_ending = asyncio.Event()

    async def make() -> str:
        number = len(attempts.ends)
        try:
            return await attempts.make()
        finally:
            if number == 0:  # takes its time to end
                is_ending.set()
                await asyncio.shield(clock.sleep(1.0))

    call = asyncio.ensure_future(hedged(make, after_a_second(), clock, attempts.discard))
    await clock.advance(1.1)
    attempts.ends[1].set_result("won")
    await is_ending.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert attempts.discarded == ["won"]


async def test_a_cancelled_call_cancels_both() -> None:
    attempts, clock = Attempts(), FakeClock()
    call = asyncio.ensure_future(hedged(attempts.make, after_a_second(), clock, attempts.discard))
    await clock.advance(1.1)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert [end.cancelled() for end in attempts.ends] == [True, True]
