"""`FakeClock`: time that passes only when a test says so."""

from __future__ import annotations

import asyncio
import itertools


class FakeClock:
    """A `Clock` whose sleepers wake in order of their time.

    Args:
        chance: what every draw gives.
    """

    def __init__(self, chance: float = 0.5) -> None:
        self.time_s = 1000.0
        self.chances = chance
        self._sleepers: dict[int, tuple[float, asyncio.Future[None]]] = {}
        self._numbers = itertools.count()

    def now(self) -> float:
        return self.time_s

    def chance(self) -> float:
        return self.chances

    @property
    def num_sleepers(self) -> int:
        return len(self._sleepers)

    async def sleep(self, seconds: float) -> None:
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        number, woken = next(self._numbers), asyncio.get_running_loop().create_future()
        self._sleepers[number] = (self.time_s + seconds, woken)
        try:
            await woken
        finally:
            del self._sleepers[number]

    def tick(self, seconds: float) -> None:
        """Passes time for what does not sleep."""
        self.time_s += seconds

    async def advance(self, seconds: float) -> None:
        """Passes time, lets everybody wake whose time has come, one after the other, and do what he can."""
        end_s = self.time_s + seconds
        await settle()
        while True:
            due = [
                (at_s, number) for number, (at_s, woken) in self._sleepers.items() if at_s <= end_s and not woken.done()
            ]
            if not due:
                break
            at_s, number = min(due)
            self.time_s = max(self.time_s, at_s)
            self._sleepers[number][1].set_result(None)
            await settle()
        self.time_s = end_s
        await settle()


async def settle(num_rounds: int = 50) -> None:
    """Lets every task go on until it waits for something that only time or the test can bring."""
    for _ in range(num_rounds):
        await asyncio.sleep(0)
