"""`Clock`: the client's source of time, waiting and randomness, which tests replace by a fake one."""

from __future__ import annotations

import asyncio
import random
import time
from typing import Protocol


class Clock(Protocol):
    """Time, waiting and randomness."""

    def now(self) -> float:
        """Monotonic seconds."""

    async def sleep(self, seconds: float) -> None:
        """Waits; other tasks go on."""

    def chance(self) -> float:
        """A random number from 0 to 1, 1 excluded."""


class SystemClock:
    """The clock of this process."""

    def now(self) -> float:
        """Monotonic seconds."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """Waits; other tasks go on."""
        await asyncio.sleep(seconds)

    def chance(self) -> float:
        """A random number from 0 to 1, 1 excluded."""
        return random.random()
