"""When downloads go on: a clock that can be interrupted, and a limit on bytes per second."""

from __future__ import annotations

import threading
import time
from typing import Protocol


class Clock(Protocol):
    """A monotonic clock whose sleepers can be woken."""

    def monotonic(self) -> float:
        """Seconds since some fixed moment."""
        ...

    def sleep(self, seconds: float, halt: threading.Event) -> None:
        """Returns after that many seconds, or when `halt` is set."""
        ...


class SystemClock:
    """The machine's clock."""

    def monotonic(self) -> float:
        """Seconds since some fixed moment."""
        return time.monotonic()

    def sleep(self, seconds: float, halt: threading.Event) -> None:
        """Returns after that many seconds, or when `halt` is set."""
        halt.wait(seconds)


class TokenBucket:
    """A limit on bytes per second for any number of threads; a quarter of a second's bytes may come at once.

    Args:
        bytes_per_s: None = no limit.
        clock: time.
    """

    def __init__(self, bytes_per_s: int | None, clock: Clock) -> None:
        self._rate = bytes_per_s
        self._clock = clock
        self._lock = threading.Lock()
        self._free_at_s = clock.monotonic()

    def take(self, num_bytes: int, halt: threading.Event) -> None:
        """Returns when so many bytes may have passed, or when `halt` is set."""
        if self._rate is None:
            return
        with self._lock:
            now = self._clock.monotonic()
            self._free_at_s = max(self._free_at_s, now - 0.25) + num_bytes / self._rate
            delay_s = self._free_at_s - now
        if delay_s > 0:
            self._clock.sleep(delay_s, halt)
