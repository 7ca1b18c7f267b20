"""`Pipeline`: what a call goes through, in order: queue, route, limit, attempt, judgement, retry or hedge.

It belongs to the event loop of its first call, until that loop is closed or the process forks; then it begins anew,
with the same endpoints and what their breakers know.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import anyio

from vllm_mxext.client.breaker import BreakerConfig
from vllm_mxext.client.call import Answer, Call, Timeouts
from vllm_mxext.client.call_stream import CallStream
from vllm_mxext.client.clock import Clock, SystemClock
from vllm_mxext.client.errors import ClientError, ClosedError
from vllm_mxext.client.hedging import HedgePolicy
from vllm_mxext.client.http import Wire
from vllm_mxext.client.limiter import LimiterConfig
from vllm_mxext.client.metrics import SUCCESS, CallRecord, ClientMetrics
from vllm_mxext.client.queue import PriorityQueue
from vllm_mxext.client.retry import BudgetConfig, RetryBudget, RetryPolicy
from vllm_mxext.client.router import Endpoint, Lease, Router, RouterConfig
from vllm_mxext.client.run import Policies, Run

if TYPE_CHECKING:
    import httpx


@dataclass(frozen=True, slots=True)
class PipelineConfig:
    """The policies' settings.

    Attributes:
        timeouts: of calls that bring none.
        retry: when to try again.
        budget: how often at most.
        hedge: when to send a second attempt; None = never.
        router: how endpoints are chosen.
        breaker: when endpoints that are given as addresses are given up for a while.
        limiter: how many calls they get at once.
        max_queue: calls that may wait.
        ageing_s: seconds of waiting that are worth one level of priority.
        headers: sent with every request.
    """

    timeouts: Timeouts = field(default_factory=Timeouts)
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    hedge: HedgePolicy | None = None
    router: RouterConfig = field(default_factory=RouterConfig)
    breaker: BreakerConfig = field(default_factory=BreakerConfig)
    limiter: LimiterConfig = field(default_factory=lambda: LimiterConfig(max_limit=100))
    max_queue: int = 1000
    ageing_s: float = 10.0
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)


class Pipeline:
    """Sends calls to endpoints.

    Args:
        endpoints: to begin with; more may be appended to the attribute later.
        config: settings.
        clock: time and chance.
        transport: in the place of the network, for tests.

    Attributes:
        metrics: what the calls came to.
        endpoints: all there are.
        config: settings; replaced as a whole to change them for later calls.
    """

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        config: PipelineConfig | None = None,
        clock: Clock | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.endpoints = list(endpoints)
        self.config = config or PipelineConfig()
        self.metrics = ClientMetrics()
        self._clock = clock or SystemClock()
        self._transport = transport
        self._budget = RetryBudget(self.config.budget, self._clock)
        self._is_closed = False
        self._pid = os.getpid()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._abandoned: list[object] = []
        self._wires: dict[Endpoint, Wire] = {}
        self._begin_anew()

    @property
    def max_queue(self) -> int:
        """Calls that may wait; can be changed."""
        return self._queue.max_size

    @max_queue.setter
    def max_queue(self, number: int) -> None:
        self.config = replace(self.config, max_queue=number)
        self._queue.max_size = number

    @property
    def num_queued(self) -> int:
        """Calls that wait for a place."""
        return len(self._queue)

    @property
    def num_running(self) -> int:
        """Attempts under way."""
        return sum(one.limiter.in_flight for one in self.endpoints)

    async def call(self, call: Call, retry: RetryPolicy | None = None) -> Answer:
        """Returns the whole answer to a call.

        Args:
            call: what is asked.
            retry: in the place of the client's.

        Raises:
            ClientError: there is none; its class says why.
        """
        run = self.prepare(call, retry)
        with self.recording(run) as outcome:
            reply = await run.fetch()
            if isinstance(reply.body, Mapping):
                outcome.usage = reply.body.get("usage")
            outcome.request_id = reply.request_id
        return Answer(
            reply.status,
            reply.body,
            dict(reply.headers),
            reply.request_id,
            run.attempts[-1].endpoint_id,
            tuple(run.attempts),
            run.queue_s,
            self._clock.now() - run.began_s,
        )

    def stream(self, call: Call, retry: RetryPolicy | None = None) -> CallStream:
        """Returns the events of a streamed answer; nothing is sent before the first is asked for.

        Args:
            call: what is asked.
            retry: in the place of the client's.
        """
        return CallStream(self, call, retry)

    async def close(self) -> None:
        """Closes the connections; what waits or is under way ends with `ClosedError`."""
        self._is_closed = True
        self._queue.close()
        for scope in self._scopes:
            scope.cancel()
        wires, self._wires = self._wires, {}
        for wire in wires.values():
            await wire.close()

    @contextlib.contextmanager
    def recording(self, run: Run) -> Generator[Outcome, None, None]:
        """Puts how a call went into the metrics, at the end of the context."""
        outcome = Outcome()
        try:
            yield outcome
        except BaseException as error:
            is_left = isinstance(error, (asyncio.CancelledError, GeneratorExit))
            outcome.name = "cancelled" if is_left else type(error).__name__
            raise
        finally:
            self.metrics.record(outcome.record(run, self._clock.now()))

    def prepare(self, call: Call, retry: RetryPolicy | None) -> Run:
        """Returns a call that is about to be sent.

        Raises:
            ClientError: the client has been closed, or belongs to another event loop.
        """
        if self._is_closed:
            raise ClosedError("The client has been closed; make a new one.")
        self._check_loop()
        policies = Policies(
            self.endpoints,
            self._wire,
            self._router,
            self._queue,
            retry or self.config.retry,
            self._budget,
            self.config.hedge,
            self._clock,
            self.config.headers,
            lambda: self._is_closed,
            self._scopes,
        )
        return Run(call, call.timeouts or self.config.timeouts, policies)

    def _check_loop(self) -> None:
        loop = asyncio.get_running_loop()
        is_forked = os.getpid() != self._pid
        if is_forked or (self._loop is not None and self._loop.is_closed()):
            if is_forked:  # Sockets and their selector are shared with the parent: they are kept, and not touched.
                self._abandoned += [self._wires, self._loop]
            self._pid = os.getpid()
            self._begin_anew()
            for endpoint in self.endpoints:
                endpoint.abandon()
            self._loop = None
        if self._loop is None:
            self._loop = loop
        if self._loop is not loop:
            raise ClientError(
                "This client is in use by another event loop; make one AsyncVllmClient for each, or use VllmClient."
            )

    def _begin_anew(self) -> None:
        self._wires = {}
        self._scopes: set[anyio.CancelScope] = set()
        self._queue: PriorityQueue[Lease] = PriorityQueue(self.config.max_queue, self._clock, self.config.ageing_s)
        self._router = Router(self.config.router, self._clock, self._queue.wake)

    def _wire(self, endpoint: Endpoint) -> Wire:
        wire = self._wires.get(endpoint)
        if wire is None:
            if self._is_closed:
                raise ClosedError("The client has been closed; make a new one.")
            wire = Wire(endpoint.url, endpoint.api_key, self.config.headers, self._clock, self._transport)
            self._wires[endpoint] = wire
        return wire


@dataclass(slots=True)
class Outcome:
    """How a call went.

    Attributes:
        name: `success`, `cancelled`, or the class of the error.
        usage: what the server says of tokens.
        request_id: of the server.
        ttft_s: seconds from sending the last attempt to its first token.
        decode_s: from the first token to the last.
    """

    name: str = SUCCESS
    usage: object = None
    request_id: str = ""
    ttft_s: float | None = None
    decode_s: float | None = None

    def record(self, run: Run, now_s: float) -> CallRecord:
        """Returns it for the metrics."""
        return CallRecord(
            model=run.call.model,
            endpoint_id=run.attempts[-1].endpoint_id if run.attempts else "",
            priority=run.call.priority,
            outcome=self.name,
            duration_s=now_s - run.began_s,
            queue_s=run.queue_s,
            ttft_s=self.ttft_s,
            decode_s=self.decode_s,
            num_prompt_tokens=_count(self.usage, "prompt_tokens"),
            num_output_tokens=_count(self.usage, "completion_tokens"),
            num_attempts=max(1, 1 + run.num_retries + run.num_hedges),
            request_id=self.request_id,
            ended_at_s=time.time(),
        )


def _count(usage: object, name: str) -> int:
    value = usage.get(name) if isinstance(usage, Mapping) else None
    return value if isinstance(value, int) and value >= 0 else 0
