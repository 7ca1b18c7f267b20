"""Retries: `RetryPolicy` decides how long to wait before the next attempt, `RetryBudget` limits retries in all.

The budget follows gRPC and Finagle: each call earns a fraction of a retry, so that retries do not multiply the load
during an outage.
"""

from __future__ import annotations

from dataclasses import dataclass

from vllm_mxext import backoff
from vllm_mxext.client.clock import Clock
from vllm_mxext.client.numbers import check_numbers


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often a call is retried, and after how long (full jitter).

    Attributes:
        max_retries: attempts after the first.
        first_delay_s: upper bound of the first random wait.
        factor: growth of the bound from one wait to the next.
        max_delay_s: largest bound.
        max_retry_after_s: if the server asks for a longer wait, the call fails instead, and the caller decides.
    """

    max_retries: int = 2
    first_delay_s: float = 0.5
    factor: float = 2.0
    max_delay_s: float = 8.0
    max_retry_after_s: float = 120.0

    def __post_init__(self) -> None:
        owner = "a retry policy"
        check_numbers(owner, is_whole=True, max_retries=self.max_retries)
        check_numbers(owner, first_delay_s=self.first_delay_s, max_delay_s=self.max_delay_s)
        check_numbers(owner, least=1.0, factor=self.factor)
        check_numbers(owner, max_retry_after_s=self.max_retry_after_s)

    def wait_s(self, num_retries: int, retry_after_s: float | None, chance: float) -> float | None:
        """Returns the seconds to wait before the next attempt; None = no further attempt.

        Args:
            num_retries: retries so far.
            retry_after_s: the wait that the server asks for, if any.
            chance: a random number from 0 to 1.
        """
        if num_retries >= self.max_retries or (retry_after_s or 0.0) > self.max_retry_after_s:
            return None
        return (retry_after_s or 0.0) + chance * self.bound_s(num_retries)

    def bound_s(self, num_retries: int) -> float:
        """Returns the longest random wait after so many retries."""
        return backoff.bound_s(num_retries, self.first_delay_s, self.max_delay_s, self.factor)


@dataclass(frozen=True, slots=True)
class BudgetConfig:
    """How many retries all calls together may make.

    Attributes:
        share: fraction of a retry that every call earns.
        per_second: retries earned per second, so that a client with few calls can retry each of them.
        reserve: most retries that can be saved up, and the number at the start.
    """

    share: float = 0.2
    per_second: float = 1.0
    reserve: float = 10.0

    def __post_init__(self) -> None:
        check_numbers("a retry budget", share=self.share, per_second=self.per_second, reserve=self.reserve)


class RetryBudget:
    """A token bucket of retries: at most `reserve + share * calls + per_second * seconds` are made.

    Args:
        config: its size and rates.
        clock: source of time.
    """

    def __init__(self, config: BudgetConfig, clock: Clock) -> None:
        self._config = config
        self._clock = clock
        self._saved = config.reserve
        self._seen_s = clock.now()

    def earn(self) -> None:
        """Adds what a call earns."""
        self._add(self._config.share)

    def spend(self) -> bool:
        """Takes one retry from the bucket; returns whether there was one."""
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
