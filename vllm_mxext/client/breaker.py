"""`CircuitBreaker`: decides from the results of recent calls whether an endpoint may be asked."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from vllm_mxext.client.clock import Clock
from vllm_mxext.client.numbers import check_numbers
from vllm_mxext.errors import ConfigError

CLOSED, OPEN, HALF_OPEN = "CLOSED", "OPEN", "HALF-OPEN"
"""Calls go through; calls are refused; a few probes go through, whose results decide."""

STATES = (CLOSED, OPEN, HALF_OPEN)


@dataclass(frozen=True, slots=True)
class BreakerConfig:
    """When a breaker opens, for how long, and what closes it. Rates are defined as by Resilience4j.

    Attributes:
        failure_threshold: consecutive failures that open it.
        failure_rate: share of failed calls in the window that opens it.
        slow_ttft_s: a call whose first token takes longer is slow; None = no call is.
        slow_rate: share of slow calls in the window that opens it.
        min_calls: calls in the window below which rates are ignored.
        window_s: length of the window in seconds.
        window_calls: most calls in the window; older ones drop out.
        reset_timeout_s: how long it stays open.
        backoff_factor: growth of that time whenever a probe fails.
        max_reset_timeout_s: longest time that it stays open.
        jitter: share by which that time is randomly shortened at most, so that many clients do not probe at once.
        num_probes: concurrent calls while it is half-open.
        successes_to_close: successful probes that close it.
        last_probe_interval_s: interval at which single calls go through even while it is open, if no other endpoint is
            left.
    """

    failure_threshold: int = 5
    failure_rate: float = 0.5
    slow_ttft_s: float | None = None
    slow_rate: float = 0.8
    min_calls: int = 20
    window_s: float = 60.0
    window_calls: int = 100
    reset_timeout_s: float = 30.0
    backoff_factor: float = 2.0
    max_reset_timeout_s: float = 300.0
    jitter: float = 0.1
    num_probes: int = 1
    successes_to_close: int = 2
    last_probe_interval_s: float = 1.0

    def __post_init__(self) -> None:
        owner = "a circuit breaker"
        for name in ("failure_threshold", "min_calls", "window_calls", "num_probes", "successes_to_close"):
            check_numbers(owner, least=1, is_whole=True, **{name: getattr(self, name)})
        for name in ("reset_timeout_s", "max_reset_timeout_s", "window_s", "last_probe_interval_s"):
            check_numbers(owner, **{name: getattr(self, name)})
        if self.slow_ttft_s is not None:
            check_numbers(owner, slow_ttft_s=self.slow_ttft_s)
        check_numbers(owner, least=1.0, backoff_factor=self.backoff_factor)
        check_numbers(owner, most=1.0, jitter=self.jitter)
        for name in ("failure_rate", "slow_rate"):
            if not 0 < getattr(self, name) <= 1:
                raise ConfigError(f"{name} of a circuit breaker must be above 0 and at most 1.")


@dataclass(frozen=True, slots=True, eq=False)
class Permit:
    """Permission for one call, given back with `CircuitBreaker.record()`.

    Attributes:
        era: period between two state changes in which it was given; results of an earlier one are ignored.
        is_probe: whether it takes one of the few places of a half-open breaker.
        is_early: whether it was given while the breaker was open, because no other endpoint was left.
    """

    era: int
    is_probe: bool = False
    is_early: bool = False


@dataclass(frozen=True, slots=True)
class _Result:
    at_s: float
    is_failure: bool
    is_slow: bool


class CircuitBreaker:
    """Opens when an endpoint fails or is slow, probes it after a while, and closes when it works. Not thread-safe.

    Args:
        config: its limits.
        clock: source of time and randomness.
    """

    def __init__(self, config: BreakerConfig, clock: Clock) -> None:
        self._config = config
        self._clock = clock
        self._state = CLOSED
        self._era = 0
        self._results: deque[_Result] = deque()
        self._num_failures = self._num_slow = 0
        """Among the results."""
        self._num_failures_in_row = 0
        self._num_openings = 0
        """In a row, without closing between them."""
        self._probes: set[Permit] = set()
        self._num_good_probes = 0
        self._retry_at_s = 0.0
        self._early_at_s = 0.0

    @property
    def state(self) -> str:
        """`CLOSED`, `OPEN` or `HALF-OPEN`; can be set, which discards all earlier results."""
        if self._state == OPEN and self._clock.now() >= self._retry_at_s:
            return HALF_OPEN
        return self._state

    @state.setter
    def state(self, state: str) -> None:
        if state not in STATES:
            raise ConfigError(f"A circuit is CLOSED, OPEN or HALF-OPEN, not {state!r}.")
        self._num_openings = 0
        self._close()
        if state == OPEN:
            self._open(grows=True)
            self._early_at_s = self._retry_at_s  # opened by hand, it lets no early probe through
        elif state == HALF_OPEN:
            self._enter(HALF_OPEN)

    @property
    def failure_count(self) -> int:
        """Failures since the last success."""
        return self._num_failures_in_row

    @property
    def num_probes(self) -> int:
        """Probes under way."""
        return len(self._probes)

    @property
    def is_ready(self) -> bool:
        """Whether a call would be let through now, not counting early probes."""
        state = self.state
        return state == CLOSED or (state == HALF_OPEN and (self._state == OPEN or self._has_free_probe))

    def retry_at_s(self, *, is_last: bool = False) -> float:
        """Returns the clock time from which a call may be let through; now, unless it is open.

        Args:
            is_last: whether no other endpoint is left.
        """
        if self._state != OPEN:
            return self._clock.now()
        return min(self._retry_at_s, self._early_at_s) if is_last else self._retry_at_s

    def allows(self, *, is_last: bool = False) -> Permit | None:
        """Returns permission for one call, to be given back with `record()`; None if the call is refused.

        Args:
            is_last: whether no other endpoint is left; then this one is probed now and then even while it is open.
        """
        if self.state == HALF_OPEN and self._state == OPEN:
            self._enter(HALF_OPEN)
        if self._state == CLOSED:
            return Permit(self._era)
        if self._state == HALF_OPEN:
            return self._probe() if self._has_free_probe else None
        if is_last and not self._probes and self._clock.now() >= self._early_at_s:
            self._early_at_s = self._clock.now() + self._config.last_probe_interval_s
            return self._probe(is_early=True)
        return None

    def record(self, permit: Permit, success: bool | None, *, ttft_s: float | None = None) -> None:
        """Records the result of a call and takes its permit back; results of an earlier era are ignored.

        Args:
            permit: from `allows()`.
            success: None = neutral: the request was wrong, or the caller has gone.
            ttft_s: seconds until the first token, if known.
        """
        self._probes.discard(permit)
        if permit.era != self._era:
            return
        is_slow = ttft_s is not None and self._config.slow_ttft_s is not None and ttft_s > self._config.slow_ttft_s
        if success is not None:
            self._num_failures_in_row = 0 if success else self._num_failures_in_row + 1
        if permit.is_probe:
            self._judge_probe(permit, None if success is None else success and not is_slow)
        elif success is not None:
            self._results.append(_Result(self._clock.now(), not success, is_slow))
            self._num_failures += not success
            self._num_slow += is_slow
            if self._is_bad():
                self._open(grows=True)

    def abandon(self) -> None:
        """Forgets the permits given out, which will not be given back."""
        self._enter(self._state)

    @property
    def _has_free_probe(self) -> bool:
        return len(self._probes) < self._config.num_probes

    def _probe(self, *, is_early: bool = False) -> Permit:
        permit = Permit(self._era, is_probe=True, is_early=is_early)
        self._probes.add(permit)
        return permit

    def _judge_probe(self, permit: Permit, is_good: bool | None) -> None:
        if is_good:
            if self._state == OPEN:
                self._enter(HALF_OPEN)
            self._num_good_probes += 1
            if self._num_good_probes >= self._config.successes_to_close:
                self._num_openings = 0
                self._close()
        elif is_good is False:
            # An early probe is expected to fail, so its failure must not keep the breaker open longer.
            self._open(grows=not permit.is_early)

    def _is_bad(self) -> bool:
        config = self._config
        oldest_s = self._clock.now() - config.window_s
        while self._results[0].at_s < oldest_s or len(self._results) > config.window_calls:
            result = self._results.popleft()
            self._num_failures -= result.is_failure
            self._num_slow -= result.is_slow
        num_calls = len(self._results)
        if self._num_failures_in_row >= config.failure_threshold or num_calls < config.min_calls:
            return self._num_failures_in_row >= config.failure_threshold
        return self._num_failures >= config.failure_rate * num_calls or self._num_slow >= config.slow_rate * num_calls

    def _open(self, *, grows: bool) -> None:
        config, now_s = self._config, self._clock.now()
        if grows:
            growth = config.backoff_factor ** min(self._num_openings, 64)
            self._num_openings += 1
            longest_s = max(config.max_reset_timeout_s, config.reset_timeout_s)
            open_s = min(config.reset_timeout_s * growth, longest_s) * (1 - config.jitter * self._clock.chance())
            self._retry_at_s = now_s + open_s
        self._early_at_s = now_s + config.last_probe_interval_s
        self._enter(OPEN)

    def _close(self) -> None:
        self._num_failures_in_row = 0
        self._results.clear()
        self._num_failures = self._num_slow = 0
        self._enter(CLOSED)

    def _enter(self, state: str) -> None:
        self._state = state
        self._era += 1
        self._probes.clear()
        self._num_good_probes = 0
