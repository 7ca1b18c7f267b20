"""`Router`: which endpoint a call goes to, and what it holds there until it ends."""

from __future__ import annotations

import math
from base64 import b64encode
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from types import TracebackType
from urllib.parse import unquote, urlsplit

from vllm_mxext.client.breaker import CircuitBreaker, Permit
from vllm_mxext.client.call import Call
from vllm_mxext.client.clock import Clock
from vllm_mxext.client.errors import CircuitOpenError, ClientError, RateLimitedError
from vllm_mxext.client.limiter import AdaptiveLimiter
from vllm_mxext.errors import ConfigError

_SOONEST_RETRY_S = 0.1
"""What a caller is told at least to wait if everything is open: he must not come back at once, and again, and again."""


@dataclass(slots=True, eq=False, kw_only=True)
class Endpoint:
    """One server that calls can go to.

    Attributes:
        id: how people and pinned calls name it.
        url: its address, without `/v1`.
        breaker: whether it may be asked.
        limiter: how much at once.
        api_key: its own; empty = none.
        weight: its share of the work in comparison with others.
        is_fallback: it is asked only while no other can be.
        is_by_name: only calls that name it go to it.
        outstanding_tokens: of the calls under way, as estimated.
        generation: counts how often its calls were abandoned.
    """

    id: str
    url: str = field(repr=False)
    breaker: CircuitBreaker
    limiter: AdaptiveLimiter
    api_key: str = field(default="", repr=False)
    weight: float = 1.0
    is_fallback: bool = False
    is_by_name: bool = False
    outstanding_tokens: int = 0
    generation: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.weight < math.inf:
            raise ConfigError(f"The weight of endpoint '{self.id}' must be above 0, not {self.weight}.")

    def takes(self, call: Call) -> bool:
        """Whether a call may go to it as far as names go."""
        return not self.is_by_name if call.endpoint_id is None else call.endpoint_id == self.id

    @property
    def secrets(self) -> tuple[str, ...]:
        """What must not be shown: its key, and the password in its address, also as it is sent."""
        address = urlsplit(self.url)
        password = unquote(address.password or "")
        sent = b64encode(f"{unquote(address.username or '')}:{password}".encode()).decode() if password else ""
        return tuple(one for one in (self.api_key, password, sent) if one)

    @property
    def load(self) -> float:
        """Outstanding tokens by weight."""
        return self.outstanding_tokens / self.weight

    def abandon(self) -> None:
        """Forgets all calls under way, which nobody will end: their event loop is closed, or the process has forked.

        What is known of the endpoint stays; a lease of theirs that is given back after all changes nothing.
        """
        self.generation += 1
        self.outstanding_tokens = 0
        self.breaker.abandon()
        self.limiter.abandon()


@dataclass(frozen=True, slots=True)
class RouterConfig:
    """When affinity gives way to balance: both must be exceeded, as in SGLang's cache-aware router.

    Attributes:
        overload_tokens: by how many outstanding tokens (by weight) an endpoint exceeds the least loaded one.
        overload_factor: by which factor.
    """

    overload_tokens: float = 16384.0
    overload_factor: float = 1.5


class Lease:
    """What one attempt holds: a place at an endpoint's limiter, its breaker's permit, and its tokens.

    A context; leaving it gives everything back with a neutral result unless `finish()` has been called, so that a
    cancelled attempt leaks nothing.

    Args:
        endpoint: where the attempt goes.
        permit: of its breaker.
        num_tokens: that it is counted with.
        clock: time.
        on_change: called with the endpoint's id when everything has been given back.
    """

    def __init__(
        self, endpoint: Endpoint, permit: Permit, num_tokens: int, clock: Clock, on_change: Callable[[str], None]
    ) -> None:
        self.endpoint = endpoint
        self._permit = permit
        self._num_tokens = num_tokens
        self._clock = clock
        self._on_change = on_change
        self._began_at_s = clock.now()
        self._generation = endpoint.generation
        self._is_finished = False
        self._has_answered = False

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.finish(None)

    def answers(self, ttft_s: float) -> None:
        """Takes that the first token has come: a probe is judged by it, not at the end of a long stream.

        Args:
            ttft_s: seconds until it came.
        """
        if self._permit.is_probe and not self._is_abandoned:
            self._has_answered = True
            self.endpoint.breaker.record(self._permit, True, ttft_s=ttft_s)
            self._on_change(self.endpoint.id)

    def finish(
        self,
        success: bool | None,
        *,
        ttft_s: float | None = None,
        was_throttled: bool = False,
        pause_s: float = 0.0,
    ) -> None:
        """Gives everything back with the attempt's result; only the first call counts.

        Args:
            success: None = it says nothing about the endpoint.
            ttft_s: seconds until the first token, if it is known.
            was_throttled: the endpoint refused it because it has too much to do.
            pause_s: what the endpoint asks to wait with that.
        """
        endpoint = self.endpoint
        if self._is_finished or self._is_abandoned:
            return
        self._is_finished = True
        endpoint.outstanding_tokens -= self._num_tokens
        if success is False or not self._has_answered:
            endpoint.breaker.record(self._permit, success, ttft_s=ttft_s)
        endpoint.limiter.release(
            duration_s=self._clock.now() - self._began_at_s,
            was_throttled=was_throttled,
            failed=success is not True,
            pause_s=pause_s,
        )
        self._on_change(endpoint.id)

    @property
    def _is_abandoned(self) -> bool:
        return self.endpoint.generation != self._generation


class Router:
    """Chooses by outstanding tokens, weights and affinity among the endpoints that may be asked. For one thread.

    Calls with an affinity go to the endpoint that rendezvous hashing prefers for it (Thaler and Ravishankar 1996, with
    weights), so that few of them move when endpoints come and go; if that one is overloaded or broken, to the next.

    Fallbacks are asked only while every other endpoint is broken or has asked for a pause, not while one is busy: then
    calls wait.

    If everything is broken, calls are refused, but one at a time goes through as a probe at the intervals of
    `BreakerConfig.last_probe_interval_s`, to the endpoint whose time comes first; so a lone endpoint is found again
    soon after it is back, however long its breaker would stay open.

    Args:
        config: its thresholds.
        clock: time and chance.
        on_change: called with an endpoint's id whenever a lease has been given back, so that there may be room.
    """

    def __init__(self, config: RouterConfig, clock: Clock, on_change: Callable[[str], None]) -> None:
        self._config = config
        self._clock = clock
        self._on_change = on_change

    def choose(
        self, call: Call, endpoints: Sequence[Endpoint], *, avoid: Collection[str] = (), ends_s: float = math.inf
    ) -> Lease | None:
        """Returns a place at an endpoint, or None if the call has to wait until one that is under way ends.

        Args:
            call: what is asked; its `endpoint_id` pins it.
            endpoints: all there are.
            avoid: ids that are asked only if no other can be, fallbacks included: they have just failed with this call.
            ends_s: clock time at which the call ends.

        Raises:
            RateLimitedError: every endpoint has asked for no calls until then or later.
            CircuitOpenError: every endpoint is known to fail, and none is to be probed now.
            ClientError: there is no such endpoint, or none at all.
        """
        if call.endpoint_id is None:
            candidates = [one for one in endpoints if not one.is_by_name]
        else:
            candidates = [one for one in endpoints if one.id == call.endpoint_id]
        if not candidates:
            known = ", ".join(f"'{one.id}'" for one in endpoints) or "none"
            wanted = f"endpoint '{call.endpoint_id}'" if call.endpoint_id is not None else "endpoint"
            raise ClientError(f"There is no {wanted}; those known are: {known}. Add it with create_endpoint().")
        ready = [one for one in candidates if one.breaker.is_ready]
        if not ready:
            return self._last_resort(call, candidates)
        ranks = [_rank(one, avoid) for one in ready]
        best = min(ranks)
        with_room = [one for one, rank in zip(ready, ranks, strict=True) if rank == best and not one.limiter.is_full]
        if not with_room:
            self._check_pauses(candidates, ends_s)
            return None
        num_tokens = max(1, call.num_tokens)
        chosen = (
            self._preferred(call.affinity, with_room) if call.affinity else self._least_loaded(num_tokens, with_room)
        )
        return self._lease(chosen, call)

    def _check_pauses(self, candidates: Sequence[Endpoint], ends_s: float) -> None:
        """Raises for a call that nobody will take in time."""
        resumes_s = min(one.limiter.paused_until_s for one in candidates)
        if not self._clock.now() < ends_s <= resumes_s:  # one whose time is up already has waited for something else
            return
        error = RateLimitedError(
            f"Every endpoint ({', '.join(one.id for one in candidates)}) has asked for no calls for another "
            f"{resumes_s - self._clock.now():.1f} s, which is more than is left to this one; raise its timeout, or try "
            "again then."
        )
        error.retry_after_s = resumes_s - self._clock.now()
        raise error

    def _preferred(self, affinity: str, endpoints: Sequence[Endpoint]) -> Endpoint:
        least = min(one.load for one in endpoints)
        limit = max(least + self._config.overload_tokens, least * self._config.overload_factor)
        return max((one for one in endpoints if one.load <= limit), key=lambda one: _score(one, affinity))

    def _least_loaded(self, num_tokens: int, endpoints: Sequence[Endpoint]) -> Endpoint:
        """Returns the endpoint with the least load including this call; idle ones are drawn by weight."""
        drawn = [one for one in endpoints if not one.outstanding_tokens]
        if len(drawn) < len(endpoints):
            loads = [(one.outstanding_tokens + num_tokens) / one.weight for one in endpoints]
            least = min(loads)
            drawn = [one for one, load in zip(endpoints, loads, strict=True) if load == least]
        point = self._clock.chance() * sum(one.weight for one in drawn)
        for one in drawn[:-1]:
            point -= one.weight
            if point < 0:
                return one
        return drawn[-1]

    def _last_resort(self, call: Call, candidates: Sequence[Endpoint]) -> Lease | None:
        half_open = [one for one in candidates if one.breaker.state == "HALF-OPEN"]
        if half_open:  # its probes are under way, and when one of them ends there will be news
            return None
        by_time = sorted(candidates, key=lambda one: one.breaker.retry_at_s(is_last=True))
        if not any(one.breaker.num_probes for one in candidates):
            for one in by_time:
                if not one.limiter.is_full and one.breaker.retry_at_s(is_last=True) <= self._clock.now():
                    return self._lease(one, call)
        retry_after_s = max(by_time[0].breaker.retry_at_s(is_last=True) - self._clock.now(), _SOONEST_RETRY_S)
        raise CircuitOpenError(
            f"Every endpoint ({', '.join(one.id for one in candidates)}) is known to fail at present; check the "
            f"servers, or try again in {retry_after_s:.1f} s.",
            retry_after_s=retry_after_s,
        )

    def _lease(self, endpoint: Endpoint, call: Call) -> Lease:
        permit = endpoint.breaker.allows(is_last=True)
        assert permit is not None, "The breaker was asked before."
        is_placed = endpoint.limiter.try_acquire()
        assert is_placed, "The limiter was asked before."
        num_tokens = max(1, call.num_tokens)
        endpoint.outstanding_tokens += num_tokens
        return Lease(endpoint, permit, num_tokens, self._clock, self._on_change)


def _rank(endpoint: Endpoint, avoid: Collection[str]) -> tuple[bool, bool, bool]:
    return (endpoint.limiter.is_paused, endpoint.id in avoid, endpoint.is_fallback)


def _score(endpoint: Endpoint, affinity: str) -> float:
    """Returns how much a value is drawn to an endpoint: weighted rendezvous hashing, -weight / ln(uniform)."""
    digest = blake2b(f"{endpoint.id}\0{affinity}".encode(errors="surrogatepass"), digest_size=8).digest()
    uniform = (int.from_bytes(digest, "big") + 1) / (2**64 + 2)
    return -endpoint.weight / math.log(uniform)
