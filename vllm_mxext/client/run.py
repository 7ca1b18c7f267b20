"""`Run`: one call on its way through the policies, with all its attempts."""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import anyio
import stamina

from vllm_mxext.client.call import Attempt, Call, Timeouts
from vllm_mxext.client.clock import Clock
from vllm_mxext.client.errors import CircuitOpenError, ClientError, ClosedError, QueueFullError, TimeoutExceededError
from vllm_mxext.client.event_stream import EventStream
from vllm_mxext.client.exchange import Limits, encoded
from vllm_mxext.client.hedging import HedgePolicy, hedged
from vllm_mxext.client.http import Reply, Wire
from vllm_mxext.client.outcome import AttemptFailedError, Judgement, Retry, credentials, mask, masked
from vllm_mxext.client.queue import PriorityQueue, Turn
from vllm_mxext.client.retry import RetryBudget, RetryPolicy
from vllm_mxext.client.router import Endpoint, Lease, Router
from vllm_mxext.logger import init_logger

logger = init_logger(__name__)

T = TypeVar("T")

_REFUSALS = (CircuitOpenError, QueueFullError, TimeoutExceededError)
"""Why a call gets no further attempt; what went wrong with the last one says more."""
_CLOSED_MEANWHILE = "The client was closed while this request was under way."


@dataclass(slots=True)
class Begun:
    """A stream whose first token has come, or which has ended without one.

    Attributes:
        lease: its place at the endpoint.
        stream: what follows.
        held: what has come so far; nobody has seen it yet.
        began_s: when the attempt began.
        ttft_s: seconds from then to the first token.
        secrets: that it was sent.
    """

    lease: Lease
    stream: EventStream
    held: list[dict[str, Any]]
    began_s: float
    ttft_s: float | None
    secrets: tuple[str, ...] = field(repr=False)

    @property
    def request_id(self) -> str:
        """The server's name for it."""
        return masked(self.stream.request_id, self.secrets)

    async def discard(self) -> None:
        """Ends it; nobody wants it."""
        with self.lease:
            await self.stream.close()


@dataclass(frozen=True, slots=True)
class Policies:
    """What all calls of one client share.

    Attributes:
        endpoints: all there are.
        wire: endpoint -> its connections.
        router: chooses among them.
        queue: who waits for a place.
        retry: when to try again.
        budget: how often at most.
        hedge: when to send a second attempt; None = never.
        clock: time and chance.
        headers: sent with every call.
        is_closed: whether the client has been closed.
        scopes: of the calls under way, to be cancelled then.
    """

    endpoints: Sequence[Endpoint]
    wire: Callable[[Endpoint], Wire]
    router: Router
    queue: PriorityQueue[Lease]
    retry: RetryPolicy
    budget: RetryBudget
    hedge: HedgePolicy | None
    clock: Clock
    headers: Mapping[str, str]
    is_closed: Callable[[], bool]
    scopes: set[anyio.CancelScope]


@dataclass(slots=True)
class Run:
    """One call on its way.

    Attributes:
        call: what is asked.
        timeouts: its own or the client's.
        policies: of the client.
        attempts: so far.
        queue_s: seconds in the queue, of all attempts.
        began_s: when it was asked.
        num_retries: so far.
        num_hedges: so far.
    """

    call: Call
    timeouts: Timeouts
    policies: Policies
    attempts: list[Attempt] = field(default_factory=list)
    queue_s: float = 0.0
    began_s: float = 0.0
    num_retries: int = 0
    num_hedges: int = 0
    _content: bytes | None = None
    _failed_at: set[str] = field(default_factory=set)
    _asking: list[str] = field(default_factory=list)
    _sent_s: float = 0.0
    _waited_s: float = 0.0
    _last: AttemptFailedError | None = None

    def __post_init__(self) -> None:
        self.began_s = self.policies.clock.now()
        self.policies.budget.earn()

    @property
    def ends_s(self) -> float:
        """When its time is up."""
        return math.inf if self.timeouts.total is None else self.began_s + self.timeouts.total

    @property
    def _limits(self) -> Limits:
        return Limits(self.timeouts, self.ends_s)

    async def fetch(self) -> Reply:
        """Returns the answer.

        Raises:
            ClientError: there is none.
        """
        return await self._tried(self._fetch_once, _keep)

    async def begin(self) -> Begun:
        """Returns a stream that has brought its first token.

        Raises:
            ClientError: there is none.
        """
        return await self._tried(self._begin_once, Begun.discard)

    def failed(self, failure: AttemptFailedError) -> ClientError:
        """Returns the error that the caller sees, with all that was tried."""
        error = failure.error
        error.attempts = tuple(self.attempts)
        error.endpoint_id = failure.endpoint_id
        if len(self.attempts) > 1:
            error.args = (f"{error} ({len(self.attempts)} attempts)",)
        return error

    def note(
        self, lease: Lease, began_s: float, failure: AttemptFailedError | None, ttft_s: float | None = None
    ) -> None:
        """Takes an attempt's end into account, for the policies too."""
        failed, duration_s = failure, self.policies.clock.now() - began_s
        if failed is not None:
            mask(failed.error, self._secrets(lease.endpoint))
        status = 200 if failed is None else failed.error.status
        problem = "" if failed is None else str(failed.error)
        self.attempts.append(Attempt(lease.endpoint.id, duration_s, status, problem, self._waited_s))
        self._waited_s = 0.0
        if failed is None:
            lease.finish(True, ttft_s=ttft_s)
            return
        failed.endpoint_id = lease.endpoint.id
        self._last = failed
        judgement = failed.judgement
        # A server that has too much to do is not broken: it gets less at once. Only if it refuses even one call is it.
        is_fault = judgement.is_endpoints_fault and not (judgement.is_throttled and lease.endpoint.limiter.limit > 1)
        lease.finish(
            False if is_fault else None,
            was_throttled=judgement.is_throttled,
            pause_s=failed.retry_after_s or 0.0,
        )

    async def _tried(self, once: Callable[[], Awaitable[T]], discard: Callable[[T], Awaitable[None]]) -> T:
        self._content = encoded(self.call.body)  # once: what is asked stays the same, whatever becomes of the body
        with anyio.CancelScope() as scope:
            self.policies.scopes.add(scope)
            try:
                return await self._tried_again(once, discard)
            finally:
                self.policies.scopes.discard(scope)
        raise ClosedError(_CLOSED_MEANWHILE, attempts=tuple(self.attempts))

    async def _tried_again(self, once: Callable[[], Awaitable[T]], discard: Callable[[T], Awaitable[None]]) -> T:
        logging.getLogger("stamina").addFilter(_is_of_others)
        hedge = self.policies.hedge if self.call.is_idempotent else None
        try:
            # Not `stamina.retry`, which shows a function's arguments, and so the prompt, to its log.
            async for attempt in stamina.retry_context(on=self._wait_s, attempts=None, timeout=None):
                with attempt:
                    if hedge is None:
                        return await once()
                    return await hedged(once, self._hedge_in_s, self.policies.clock, discard)
        except AttemptFailedError as failure:
            if self.policies.is_closed():
                raise ClosedError(_CLOSED_MEANWHILE) from failure
            raise self.failed(failure) from failure.__cause__
        except ClientError as error:
            if self._last is not None and isinstance(error, _REFUSALS):
                raise self.failed(self._last) from error
            error.attempts = tuple(self.attempts)
            raise
        raise AssertionError("Retrying ends with a result or an error.")

    async def _place(self) -> Lease:
        policies, entered_s = self.policies, self.policies.clock.now()
        avoided = self._failed_at | set(self._asking)
        turn = Turn(
            take=lambda: policies.router.choose(self.call, policies.endpoints, avoid=avoided, ends_s=self.ends_s),
            give_back=lambda lease: lease.finish(None),
            lane=(self.call.endpoint_id, frozenset(avoided)),
            only=self.call.endpoint_id,
        )
        deadline_s = None if math.isinf(self.ends_s) else self.ends_s
        limit = f"the total limit of {self.timeouts.total or 0.0:g} s"
        try:
            return await policies.queue.wait_turn(turn, priority=self.call.priority, deadline_s=deadline_s, limit=limit)
        finally:
            self.queue_s += policies.clock.now() - entered_s

    async def _fetch_once(self) -> Reply:
        with await self._place() as lease:
            self._sent_s = began_s = self.policies.clock.now()
            self._asking.append(lease.endpoint.id)
            try:
                reply = await self.policies.wire(lease.endpoint).fetch(self.call, self._content, self._limits)
            except AttemptFailedError as failure:
                if self.call.is_trial and failure.error.status == 500:
                    failure.judgement = Judgement(Retry.NEVER, is_endpoints_fault=False)
                self.note(lease, began_s, failure)
                raise
            finally:
                self._asking.remove(lease.endpoint.id)
            self.note(lease, began_s, None)
            name = masked(reply.request_id, self._secrets(lease.endpoint))
            return reply if name == reply.request_id else replace(reply, request_id=name)

    async def _begin_once(self) -> Begun:
        lease = await self._place()
        self._sent_s = began_s = self.policies.clock.now()
        self._asking.append(lease.endpoint.id)
        stream: EventStream | None = None
        try:
            stream = await self.policies.wire(lease.endpoint).stream(self.call, self._content, self._limits)
            held = []
            while not stream.has_token and (document := await stream.next()) is not None:
                held.append(document)
        except BaseException as error:
            with lease:
                if isinstance(error, AttemptFailedError):
                    self.note(lease, began_s, error)
                if stream is not None:
                    await stream.close()
            raise
        finally:
            self._asking.remove(lease.endpoint.id)
        ttft_s = None
        if stream.has_token:
            ttft_s = self.policies.clock.now() - began_s
            lease.answers(ttft_s)
        return Begun(lease, stream, held, began_s, ttft_s, self._secrets(lease.endpoint))

    def _secrets(self, endpoint: Endpoint) -> tuple[str, ...]:
        """Returns what must not be shown of a request, although the server may send it back."""
        return (*endpoint.secrets, *credentials(self.policies.headers), *credentials(self.call.headers))

    def _hedge_in_s(self) -> float | None:
        """Returns the seconds until a second attempt, None if there is none; what waits for a place gains nothing."""
        policies = self.policies
        assert policies.hedge is not None
        wait_s = policies.hedge.after_s
        if self._asking:
            wait_s = max(0.0, self._sent_s + wait_s - policies.clock.now())
        if wait_s > 0:
            return wait_s
        if not self._asking or not policies.budget.spend():
            return None
        self.num_hedges += 1
        return 0.0

    def _wait_s(self, error: Exception) -> bool | float:
        """Returns the seconds before the next attempt; False = there is none."""
        if not isinstance(error, AttemptFailedError) or self.policies.is_closed():
            return False
        policies, judgement = self.policies, error.judgement
        if judgement.retry is Retry.NEVER or (judgement.was_received and not self.call.is_idempotent):
            return False
        self._failed_at.add(error.endpoint_id)
        has_other = self._has_other()
        if judgement.retry is Retry.ELSEWHERE and not has_other:
            return False
        asked_s = None if has_other else error.retry_after_s  # what one server asks for does not bind another
        wait_s = policies.retry.wait_s(self.num_retries, asked_s, policies.clock.chance())
        if wait_s is None or policies.clock.now() + wait_s >= self.ends_s or not policies.budget.spend():
            return False
        self.num_retries += 1
        self._waited_s = wait_s
        logger.debug("Asking again in %.2f s after %s of %s", wait_s, type(error.error).__name__, error.endpoint_id)
        return wait_s

    def _has_other(self) -> bool:
        return self.call.endpoint_id is None and any(
            one.id not in self._failed_at and one.breaker.state != "OPEN" and not one.limiter.is_paused
            for one in self.policies.endpoints
            if one.takes(self.call)
        )


async def _keep(_: Reply) -> None:
    """An answer holds nothing that must be given back."""


def _is_of_others(record: logging.LogRecord) -> bool:
    """Tells whether a line of stamina's is not about an attempt of this client, which logs those itself."""
    return not str(getattr(record, "stamina.caused_by", "")).startswith(AttemptFailedError.__name__)
