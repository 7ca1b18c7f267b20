"""When downloads go on: a clock that can be interrupted, a limit on bytes per second, and how long retries wait."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import Protocol

_FIRST_DELAY_S = 0.5
_MAX_DELAY_S = 30.0
_MAX_RETRY_AFTER_S = 300.0


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


def retry_delay_s(attempt: int, retry_after_s: float | None, jitter: Callable[[], float] = random.random) -> float:
    """Returns how long to wait after failures in a row: exponential with full jitter, or what the server asks for.

    Args:
        attempt: failures without progress, from 1.
        retry_after_s: what the server said; at most five minutes are heeded.
        jitter: a number from 0 to 1, drawn anew each time.
    """
    delay_s = jitter() * min(_MAX_DELAY_S, _FIRST_DELAY_S * 2.0 ** min(attempt, 16))
    return delay_s if retry_after_s is None else min(_MAX_RETRY_AFTER_S, retry_after_s) + delay_s / 4
