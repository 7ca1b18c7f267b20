"""Random histories of the client's queue, router, breakers, limiters and batches: nothing is lost or held for ever."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.client.fake_clock import FakeClock, settle
from vllm_mxext.client.batcher import Batcher
from vllm_mxext.client.breaker import HALF_OPEN, OPEN, STATES, BreakerConfig, CircuitBreaker
from vllm_mxext.client.call import Call
from vllm_mxext.client.errors import (
    BadRequestError,
    CircuitOpenError,
    ClosedError,
    QueueFullError,
    TimeoutExceededError,
)
from vllm_mxext.client.limiter import AdaptiveLimiter, LimiterConfig
from vllm_mxext.client.queue import PriorityQueue, Turn
from vllm_mxext.client.router import Endpoint, Lease, Router, RouterConfig

IS_LONG = os.environ.get("VLLM_MXEXT_TEST_LONG") == "1"
HISTORIES = settings(
    max_examples=500 if IS_LONG else 50,
    stateful_step_count=100 if IS_LONG else 40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
MAX_WAITING = 6

pytestmark = pytest.mark.timeout(3000 if IS_LONG else 900)
NUM_PROBES = 2


class LoopMachine(RuleBasedStateMachine):
    """Has an event loop and a clock of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.clock = FakeClock()

    def settle(self) -> None:
        self.loop.run_until_complete(settle(10))

    def pass_time(self, seconds: float) -> None:
        self.loop.run_until_complete(self.clock.advance(seconds))

    def teardown(self) -> None:
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.close()


class CallsMachine(LoopMachine):
    """Calls come, wait, run, end in every way and are cancelled at every moment."""

    @initialize(
        limits=st.lists(st.integers(1, 3), min_size=1, max_size=3),
        has_fallback=st.booleans(),
        chance=st.floats(0, 0.99),
    )
    def start(self, limits: list[int], has_fallback: bool, chance: float) -> None:
        self.clock.chances = chance
        self.queue: PriorityQueue[Lease] = PriorityQueue(MAX_WAITING, self.clock, ageing_s=5.0)
        self.router = Router(RouterConfig(overload_tokens=100.0), self.clock, self.queue.wake)
        self.endpoints = [
            Endpoint(
                id=str(number),
                url="",
                breaker=CircuitBreaker(
                    BreakerConfig(failure_threshold=2, min_calls=4, reset_timeout_s=10.0, num_probes=NUM_PROBES),
                    self.clock,
                ),
                limiter=AdaptiveLimiter(LimiterConfig(max_limit=limit), self.clock),
                is_fallback=has_fallback and number == len(limits) - 1 > 0,
            )
            for number, limit in enumerate(limits)
        ]
        self.calls: dict[asyncio.Task[Lease], Call] = {}
        self.running: list[tuple[Lease, Call]] = []

    @rule(
        priority=st.integers(0, 2),
        affinity=st.sampled_from(["", "x", "y"]),
        pin=st.sampled_from([None, None, None, 0, 1, 2]),
        num_tokens=st.integers(0, 200),
        patience_s=st.sampled_from([None, 1.0, 20.0]),
    )
    def call(self, priority: int, affinity: str, pin: int | None, num_tokens: int, patience_s: float | None) -> None:
        endpoint_id = None if pin is None else str(pin % len(self.endpoints))
        call = Call("/", priority=priority, affinity=affinity, num_tokens=num_tokens, endpoint_id=endpoint_id)
        deadline_s = None if patience_s is None else self.clock.now() + patience_s
        turn = Turn(
            lambda: self.router.choose(call, self.endpoints), lambda lease: lease.finish(None), endpoint_id or ""
        )
        task = self.loop.create_task(self.queue.wait_turn(turn, priority=priority, deadline_s=deadline_s))
        self.calls[task] = call
        self.settle()
        self.collect()

    @precondition(lambda self: self.running)
    @rule(
        which=st.integers(0, 100),
        result=st.sampled_from([True, False, None]),
        was_throttled=st.booleans(),
        num_cancelled=st.integers(0, 2),
    )
    def end(self, which: int, result: bool | None, was_throttled: bool, num_cancelled: int) -> None:
        """A call ends, and others are cancelled before those that it made room for have run."""
        lease, _ = self.running.pop(which % len(self.running))
        with lease:
            lease.finish(result, was_throttled=was_throttled and not result)
        for task in list(self.calls)[:num_cancelled]:
            task.cancel()
        self.settle()
        self.collect()

    @precondition(lambda self: self.calls)
    @rule(which=st.integers(0, 100))
    def cancel(self, which: int) -> None:
        list(self.calls)[which % len(self.calls)].cancel()
        self.settle()
        self.collect()

    @rule(seconds=st.sampled_from([0.5, 1.0, 3.0, 11.0, 31.0]))
    def wait(self, seconds: float) -> None:
        self.pass_time(seconds)
        self.collect()

    @rule(which=st.integers(0, 100), state=st.sampled_from(STATES))
    def set_state(self, which: int, state: str) -> None:
        self.endpoints[which % len(self.endpoints)].breaker.state = state
        self.queue.wake()
        self.settle()
        self.collect()

    def collect(self) -> None:
        for task, call in list(self.calls.items()):
            if not task.done():
                continue
            del self.calls[task]
            if task.cancelled():
                continue
            error = task.exception()
            if error is None:
                lease = task.result()
                assert call.endpoint_id in (None, lease.endpoint.id)
                self.running.append((lease, call))
            else:
                assert isinstance(error, (QueueFullError, TimeoutExceededError, CircuitOpenError))

    @invariant()
    def what_is_held_is_what_runs(self) -> None:
        for endpoint in self.endpoints:
            here = [call for lease, call in self.running if lease.endpoint is endpoint]
            assert endpoint.limiter.in_flight == len(here)
            assert endpoint.outstanding_tokens == sum(max(1, call.num_tokens) for call in here)
            assert endpoint.breaker.num_probes <= min(NUM_PROBES, len(here))
            assert endpoint.limiter.limit >= 1

    @invariant()
    def the_queue_holds_those_who_wait(self) -> None:
        assert len(self.queue) == len(self.calls) <= MAX_WAITING

    @invariant()
    def who_waits_waits_for_somebody(self) -> None:
        """Otherwise nobody would ever wake him: a call that nobody is in the way of is served or refused."""
        for call in self.calls.values():
            rivals = [lease for lease, _ in self.running if call.endpoint_id in (None, lease.endpoint.id)]
            assert rivals, f"{call} waits although nothing is under way."

    def teardown(self) -> None:
        """Everything that runs ends well: then everybody is served, and nothing is held."""
        if hasattr(self, "endpoints"):
            for endpoint in self.endpoints:
                endpoint.breaker.state = "CLOSED"
            while self.running:
                self.running.pop()[0].finish(True)
                self.settle()
                self.collect()
            assert not self.calls
            assert len(self.queue) == 0
            self.what_is_held_is_what_runs()
            assert self.clock.num_sleepers == 0
        super().teardown()


class OrderMachine(LoopMachine):
    """One lane and one place at a time, against a model that sorts."""

    @initialize(ageing_s=st.sampled_from([0.0, 1.0, 10.0]))
    def start(self, ageing_s: float) -> None:
        self.ageing_s = ageing_s
        self.queue: PriorityQueue[int] = PriorityQueue(1000, self.clock, ageing_s)
        self.num_free = 0
        self.waiting: list[tuple[float, int]] = []
        self.tasks: dict[int, asyncio.Task[int]] = {}
        self.numbers = 0

    def take(self) -> int | None:
        if not self.num_free:
            return None
        self.num_free -= 1
        return 1

    def give_back(self, _: int) -> None:
        self.num_free += 1
        self.queue.wake()

    @rule(priority=st.integers(0, 2))
    def come(self, priority: int) -> None:
        turn = Turn(self.take, self.give_back)
        self.tasks[self.numbers] = self.loop.create_task(self.queue.wait_turn(turn, priority=priority))
        self.waiting.append((self.clock.now() + priority * self.ageing_s, self.numbers))
        self.numbers += 1
        self.settle()

    @precondition(lambda self: self.waiting)
    @rule()
    def serve(self) -> None:
        first = min(self.waiting)
        self.give_back(1)
        self.settle()
        assert [number for number, task in self.tasks.items() if task.done()] == [first[1]]
        self.waiting.remove(first)
        del self.tasks[first[1]]

    @precondition(lambda self: self.waiting)
    @rule(which=st.integers(0, 1000))
    def cancel(self, which: int) -> None:
        gone = self.waiting.pop(which % len(self.waiting))
        self.tasks.pop(gone[1]).cancel()
        self.settle()

    @rule(seconds=st.sampled_from([0.1, 1.0, 7.0]))
    def wait(self, seconds: float) -> None:
        self.clock.tick(seconds)

    @invariant()
    def all_are_there(self) -> None:
        assert len(self.queue) == len(self.waiting) == len(self.tasks)

    def teardown(self) -> None:
        while getattr(self, "waiting", None):
            self.serve()
        super().teardown()


class BreakerMachine(RuleBasedStateMachine):
    """Permits in any order; those who hold probes can be counted."""

    @initialize(num_probes=st.integers(1, 3), successes=st.integers(1, 4))
    def start(self, num_probes: int, successes: int) -> None:
        self.clock = FakeClock()
        self.num_probes = num_probes
        self.breaker = CircuitBreaker(
            BreakerConfig(
                failure_threshold=2, num_probes=num_probes, successes_to_close=successes, slow_ttft_s=1.0, min_calls=3
            ),
            self.clock,
        )
        self.permits = []
        self.probes = set()

    @rule(is_last=st.booleans())
    def ask(self, is_last: bool) -> None:
        is_ready, state = self.breaker.is_ready, self.breaker.state
        permit = self.breaker.allows(is_last=is_last)
        assert permit is not None or not is_ready
        assert permit is None or is_ready or (is_last and state == OPEN)
        if permit is not None:
            self.permits.append(permit)

    @precondition(lambda self: self.permits)
    @rule(
        which=st.integers(0, 100),
        success=st.sampled_from([True, False, None]),
        ttft_s=st.sampled_from([None, 0.1, 2.0]),
    )
    def record(self, which: int, success: bool | None, ttft_s: float | None) -> None:
        permit = self.permits.pop(which % len(self.permits))
        before = self.breaker.state
        self.breaker.record(permit, success, ttft_s=ttft_s)
        if success is None:
            assert self.breaker.state == before

    @rule(seconds=st.sampled_from([0.5, 1.0, 30.0, 300.0]))
    def wait(self, seconds: float) -> None:
        self.clock.tick(seconds)

    @invariant()
    def probes_are_held_by_somebody(self) -> None:
        assert self.breaker.num_probes <= min(self.num_probes, len(self.permits))
        assert self.breaker.state in STATES
        assert self.breaker.failure_count >= 0

    def teardown(self) -> None:
        """Whatever has been, an endpoint that works is in use again in the end."""
        if hasattr(self, "breaker"):
            while self.permits:
                self.breaker.record(self.permits.pop(), None)
            assert self.breaker.num_probes == 0
            self.clock.tick(300.0)
            for _ in range(4):
                permit = self.breaker.allows()
                assert permit is not None
                assert self.breaker.state != HALF_OPEN or permit.is_probe
                self.breaker.record(permit, True)
            assert self.breaker.state == "CLOSED"


class BatchesMachine(LoopMachine):
    """Items come, leave and are answered; nobody waits longer than the timer and the server."""

    @initialize(max_size=st.integers(1, 4))
    def start(self, max_size: int) -> None:
        self.max_size = max_size
        self.under_way: list[tuple[Sequence[int], asyncio.Future[None]]] = []
        self.tasks: dict[int, asyncio.Task[int]] = {}
        self.numbers = 0
        self.batcher: Batcher[str, int, int] = Batcher(self.send, self.clock, max_size=max_size, timeout_s=1.0)

    async def send(self, key: str, items: Sequence[int]) -> Sequence[int | Exception]:
        assert 0 < len(items) <= self.max_size
        entry = (items, self.loop.create_future())
        self.under_way.append(entry)
        try:
            await entry[1]
        finally:
            self.under_way.remove(entry)
        return [-item for item in items]

    @rule(key=st.sampled_from("ab"), count=st.integers(1, 5))
    def come(self, key: str, count: int) -> None:
        for _ in range(count):
            self.tasks[self.numbers] = self.loop.create_task(self.batcher.add(key, self.numbers))
            self.numbers += 1
        self.settle()

    @precondition(lambda self: self.tasks)
    @rule(which=st.integers(0, 100))
    def leave(self, which: int) -> None:
        number = list(self.tasks)[which % len(self.tasks)]
        self.tasks.pop(number).cancel()
        self.settle()

    @precondition(lambda self: self.under_way)
    @rule(which=st.integers(0, 100), ending=st.sampled_from(["answer", "wrong", "broken"]))
    def answer(self, which: int, ending: str) -> None:
        _, gate = self.under_way[which % len(self.under_way)]
        if ending == "answer":
            gate.set_result(None)
        else:
            gate.set_exception(BadRequestError("wrong") if ending == "wrong" else ValueError("broken"))
        self.settle()
        self.collect()

    @rule(seconds=st.sampled_from([0.4, 1.0]))
    def wait(self, seconds: float) -> None:
        self.pass_time(seconds)
        if seconds == 1.0:
            assert self.batcher.num_waiting == 0, "Nobody waits for longer than the timer."

    def collect(self) -> None:
        for number, task in list(self.tasks.items()):
            if task.done():
                del self.tasks[number]
                error = task.exception()
                assert error is not None or task.result() == -number
                assert error is None or isinstance(error, (BadRequestError, ValueError))

    @invariant()
    def everybody_waits_or_is_under_way(self) -> None:
        sent = {item for items, _ in self.under_way for item in items}
        assert self.batcher.num_waiting + len(sent & self.tasks.keys()) == len(self.tasks)
        assert all(self.tasks.keys() & set(items) for items, _ in self.under_way), "Nobody wants this answer."

    def teardown(self) -> None:
        if hasattr(self, "batcher"):
            self.loop.run_until_complete(self.batcher.close(flushes=False))
            self.settle()
            for task in self.tasks.values():
                assert isinstance(task.exception(), ClosedError)
            assert self.clock.num_sleepers == 0
        super().teardown()


@pytest.mark.promise("CLIENT-12", "CLIENT-13", "CLIENT-14", "CLIENT-15")
class TestCalls(CallsMachine.TestCase):  # type: ignore[misc]
    settings = HISTORIES


@pytest.mark.promise("CLIENT-14")
class TestOrder(OrderMachine.TestCase):  # type: ignore[misc]
    settings = HISTORIES


@pytest.mark.promise("CLIENT-12")
class TestBreaker(BreakerMachine.TestCase):  # type: ignore[misc]
    settings = HISTORIES


@pytest.mark.promise("CLIENT-16")
class TestBatches(BatchesMachine.TestCase):  # type: ignore[misc]
    settings = HISTORIES
