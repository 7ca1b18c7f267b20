"""`Clock`: time, waiting and chance as the client sees them, so that its policies can be tested without either."""

from __future__ import annotations

import asyncio
import random
import time
from typing import Protocol


class Clock(Protocol):
    """What policies know of the world."""

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
