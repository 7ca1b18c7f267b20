"""`AdaptiveLimiter`: adapts the number of concurrent calls to an endpoint to its refusals."""

from __future__ import annotations

import math
from dataclasses import dataclass

from vllm_mxext.client.clock import Clock
from vllm_mxext.client.numbers import check_numbers
from vllm_mxext.errors import ConfigError


@dataclass(frozen=True, slots=True)
class LimiterConfig:
    """Bounds of a concurrency limit, and how it moves between them.

    Attributes:
        max_limit: largest limit, and the one at the start (`max_concurrent_requests`).
        min_limit: smallest limit.
        backoff: factor applied to the limit after a refusal (429 or 503).
        max_pause_s: longest pause in sending that a refusal can ask for, in seconds; 0 = never pause.
    """

    max_limit: int = 10
    min_limit: int = 1
    backoff: float = 0.5
    max_pause_s: float = 60.0

    def __post_init__(self) -> None:
        owner = "a limiter"
        check_numbers(owner, is_whole=True, max_concurrent_requests=self.max_limit, min_limit=self.min_limit)
        if not 1 <= self.min_limit <= self.max_limit:
            raise ConfigError(
                f"max_concurrent_requests must be at least {max(1, self.min_limit)}, not {self.max_limit}; nothing "
                "could be sent otherwise."
            )
        if not 0 < self.backoff < 1:
            raise ConfigError(f"backoff of a limiter must be between 0 and 1, not {self.backoff}.")
        if not 0 <= self.max_pause_s < math.inf:
            raise ConfigError(f"max_pause_s of a limiter must be finite and at least 0, not {self.max_pause_s}.")


class AdaptiveLimiter:
    """Additive increase, multiplicative decrease: TCP Reno (RFC 5681), `AIMDLimit` of Netflix's concurrency-limits.

    From Netflix: no increase unless at least half of the limit is in use, and a decrease by at least one. From TCP: an
    increase by one per limit's worth of successes rather than per success, and one decrease per round trip: a refusal
    of a call that was sent before the last decrease is ignored.

    Latency gradients, as in Netflix's `Gradient2Limit` or Envoy's controller, would not work here: the latency of an
    answer depends on its length, and a server that batches is meant to be slower per call under load.

    A refusal that says how long to wait (`Retry-After`) applies to all calls: until then none is sent.

    Not thread-safe.

    Args:
        config: its bounds.
        clock: source of time.
    """

    def __init__(self, config: LimiterConfig, clock: Clock) -> None:
        self._config = config
        self._clock = clock
        self._limit = float(config.max_limit)
        self._in_flight = 0
        self._decreased_at_s = -math.inf
        self._paused_until_s = -math.inf

    @property
    def limit(self) -> int:
        """Calls that may be under way at once, now."""
        return int(self._limit)

    @property
    def in_flight(self) -> int:
        """Calls under way."""
        return self._in_flight

    @property
    def is_full(self) -> bool:
        """Whether a call would have to wait."""
        return self._in_flight >= self.limit or self.is_paused

    @property
    def is_paused(self) -> bool:
        """Whether a pause that the endpoint has asked for is not over yet."""
        return self._clock.now() < self._paused_until_s

    @property
    def paused_until_s(self) -> float:
        """Clock time at which the last pause that the endpoint has asked for ends."""
        return self._paused_until_s

    def change(self, config: LimiterConfig) -> None:
        """Changes the bounds and starts again at the upper one; calls under way keep their places."""
        self._config = config
        self._limit = float(config.max_limit)

    def try_acquire(self) -> bool:
        """Takes a place if there is one; `release()` gives it back."""
        if self.is_full:
            return False
        self._in_flight += 1
        return True

    def release(self, *, duration_s: float, was_throttled: bool, failed: bool, pause_s: float = 0.0) -> None:
        """Gives a place back and adapts the limit to the call's result.

        Args:
            duration_s: how long the call took.
            was_throttled: whether the endpoint refused it because of overload.
            failed: whether it failed, or its result is unknown; that alone does not change the limit, because failures
                are the breaker's business.
            pause_s: wait that the endpoint asks for with its refusal.
        """
        assert self._in_flight > 0, "No place is taken."
        num_in_flight = self._in_flight
        self._in_flight -= 1
        now_s = self._clock.now()
        if was_throttled:
            if now_s - duration_s >= self._decreased_at_s:
                lower = min(self._limit * self._config.backoff, self._limit - 1)
                self._limit = float(max(self._config.min_limit, math.floor(lower)))
                self._decreased_at_s = now_s
            # Up to a tenth longer, so that not all clients come back at the same moment.
            pause_s = min(pause_s * (1 + 0.1 * self._clock.chance()), self._config.max_pause_s)
            self._paused_until_s = max(self._paused_until_s, now_s + pause_s)
        elif not failed and num_in_flight * 2 >= self._limit:
            self._limit = min(self._limit + 1 / self._limit, float(self._config.max_limit))

    def abandon(self) -> None:
        """Forgets the calls under way, whose places will not be given back."""
        self._in_flight = 0
