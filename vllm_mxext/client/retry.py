"""When to try again: `RetryPolicy` after how long, `RetryBudget` how often at most, `retry_after_s` what servers ask.

The waits are "full jitter" (Amazon's Builders' Library): random between 0 and a bound that doubles, never shorter than
what the server asks for. The budget is gRPC's and Finagle's: calls earn a share of a retry, so that an outage is not
multiplied by the number of attempts.
"""

from __future__ import annotations

import email.utils
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone

from vllm_mxext.client.clock import Clock


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and after how long a call is tried again.

    Attributes:
        max_retries: attempts after the first.
        first_delay_s: bound of the first wait.
        factor: from one bound to the next.
        max_delay_s: bound of the longest.
        max_retry_after_s: a server that asks for more gets no further attempt; the caller decides.
    """

    max_retries: int = 2
    first_delay_s: float = 0.5
    factor: float = 2.0
    max_delay_s: float = 8.0
    max_retry_after_s: float = 120.0

    def wait_s(self, num_retries: int, retry_after_s: float | None, chance: float) -> float | None:
        """Returns the seconds before the next attempt; None = there is none.

        Args:
            num_retries: so far.
            retry_after_s: what the server asks for.
            chance: from 0 to 1.
        """
        if num_retries >= self.max_retries or (retry_after_s or 0.0) > self.max_retry_after_s:
            return None
        return (retry_after_s or 0.0) + chance * self.bound_s(num_retries)

    def bound_s(self, num_retries: int) -> float:
        """Returns the longest random wait after so many retries."""
        try:
            return min(self.max_delay_s, self.first_delay_s * self.factor**num_retries)
        except OverflowError:
            return self.max_delay_s


@dataclass(frozen=True, slots=True)
class BudgetConfig:
    """How many retries all calls may make together.

    Attributes:
        share: of a retry that every call earns.
        per_second: retries that time earns, so that a client with few calls can retry each.
        reserve: saved at most, and there at the beginning.
    """

    share: float = 0.2
    per_second: float = 1.0
    reserve: float = 10.0


class RetryBudget:
    """A bucket of retries: never more than `reserve + share * calls + per_second * seconds` are made.

    Args:
        config: its size.
        clock: time.
    """

    def __init__(self, config: BudgetConfig, clock: Clock) -> None:
        self._config = config
        self._clock = clock
        self._saved = config.reserve
        self._seen_s = clock.now()

    def earn(self) -> None:
        """Notes a call."""
        self._add(self._config.share)

    def spend(self) -> bool:
        """Takes one retry, if there is one."""
        self._add(0.0)
        if self._saved < 1.0:
            return False
        self._saved -= 1.0
        return True

    def _add(self, amount: float) -> None:
        now = self._clock.now()
        earned = amount + max(0.0, now - self._seen_s) * self._config.per_second
        self._seen_s = now
        self._saved = min(self._config.reserve, self._saved + earned)


def retry_after_s(headers: Mapping[str, str], now: datetime | None = None) -> float | None:
    """Returns the seconds that a server asks to wait: `retry-after-ms`, or `Retry-After` in seconds or as a date.

    What is malformed counts as absent, as does what is negative; a date that has passed means now.

    Args:
        headers: of the answer, lower-case names.
        now: the date of today, with its zone.
    """
    for name, unit_s in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        text = headers.get(name, "").strip()
        try:
            seconds = float(text) * unit_s
        except ValueError:
            continue
        if math.isfinite(seconds) and seconds >= 0:
            return seconds
    try:
        moment = email.utils.parsedate_to_datetime(headers.get("retry-after", ""))
    except (ValueError, OverflowError):
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=timezone.utc)
    return max(0.0, (moment - (now or datetime.now(timezone.utc))).total_seconds())
