"""One stage of a run: sends requests at one load, the warm-up first and without a pause after it, and records them."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vllm_mxext.bench.serve.plan import Plan
from vllm_mxext.bench.serve.prompts import Prompt
from vllm_mxext.bench.serve.request import Reply, ask, request_body
from vllm_mxext.bench.serve.result import RequestRecord, Stage
from vllm_mxext.bench.serve.tokens import TokenCounter
from vllm_mxext.bench.serve.wire import Wire

_SPIN_S = 0.0012
"""Event loops sleep in whole milliseconds, so the last bit of the wait for a request's time is a busy wait."""

_RECENT = 101
"""Latest requests whose median TTFT is shown while a stage runs."""

_PAUSE_S = 0.05
_MAX_PAUSE_S = 1.0


@dataclass(frozen=True, slots=True)
class Target:
    """A server to measure.

    Attributes:
        label: its name in reports.
        model: the model's name there.
        wire: connections to it.
    """

    label: str
    model: str
    wire: Wire


@dataclass(frozen=True, slots=True)
class StageSpec:
    """The load of a stage.

    Attributes:
        name: its name in reports.
        concurrency: requests in flight; None with a schedule.
        rate: requests per second; None without a schedule.
        times: when requests are due, warm-up included, in seconds since the stage began; None without a schedule.
        count: measured requests, or conversations.
        warmup: requests, or conversations, before those.
        duration_s: how long to measure without a schedule; 0 = until `count` is reached.
        max_in_flight: most requests in flight with a schedule; 0 = no limit.
        first_prompt: index of the prompt that the stage begins with.
    """

    name: str
    concurrency: int | None
    rate: float | None
    times: tuple[float, ...] | None
    count: int
    warmup: int
    duration_s: float = 0.0
    max_in_flight: int = 0
    first_prompt: int = 0


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a stage has come.

    Attributes:
        stage: its name.
        server: label of the server.
        num_planned: requests in all; None if the stage ends by time.
        num_done: requests that have ended, failed ones included.
        num_failed: those of them that have failed.
        num_in_flight: requests under way.
        elapsed_s: since the stage began.
        num_chunks: events with text so far.
        chunks_per_s: average over the stage so far.
        ttft_s: median TTFT of the latest requests, from sending; None before the first.
        is_warmup: whether requests before measuring are under way.
    """

    stage: str
    server: str
    num_planned: int | None
    num_done: int
    num_failed: int
    num_in_flight: int
    elapsed_s: float
    num_chunks: int
    chunks_per_s: float
    ttft_s: float | None
    is_warmup: bool


@dataclass(slots=True)
class _Sent:
    reply: Reply
    is_warmup: bool
    scheduled_s: float | None
    conversation: int | None
    turn: int


class StageRun:
    """Runs one stage.

    Args:
        plan: the run's.
        target: the server.
        spec: the load.
        prompts: sent in turn.
        index: the stage's in the run.
        origin_s: monotonic seconds when the run began.
        first_id: number of the first request.
    """

    def __init__(
        self,
        plan: Plan,
        target: Target,
        spec: StageSpec,
        prompts: Sequence[Prompt],
        index: int,
        origin_s: float,
        first_id: int,
    ) -> None:
        self._plan = plan
        self._target = target
        self._spec = spec
        self._prompts = prompts
        self._index = index
        self._origin_s = origin_s
        self._first_id = first_id
        self._sent: list[_Sent] = []
        self._open: set[int] = set()
        self._recent_ttft: deque[float] = deque(maxlen=_RECENT)
        self._num_failed = self._num_chunks = 0
        self._next = 0
        self._started_s = self._measured_s = 0.0
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_interrupted = False

    async def run(self) -> None:
        """Sends all requests; returns when all have ended, or the stage was interrupted."""
        self._started_s = time.monotonic()
        spec = self._spec
        if self._is_interrupted:
            return
        if spec.times is not None:
            self._start_task(self._follow(spec.times))
        else:
            planned = None if spec.duration_s else spec.count + spec.warmup
            workers = spec.concurrency or 1
            for _ in range(workers if planned is None else min(workers, planned)):
                self._start_task(self._work(planned))
        while self._tasks:
            done, _ = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                self._tasks.discard(task)
                if not task.cancelled() and (error := task.exception()) is not None:
                    self.interrupt()
                    raise error

    def interrupt(self) -> None:
        """Ends the stage early; requests under way count as cancelled."""
        self._is_interrupted = True
        for task in self._tasks:
            task.cancel()

    def progress(self) -> Progress:
        """Returns how far the stage has come."""
        elapsed = time.monotonic() - self._started_s if self._started_s else 0.0
        chunks = self._num_chunks + sum(len(self._sent[number].reply.chunk_times_s) for number in self._open)
        recent, spec = sorted(self._recent_ttft), self._spec
        return Progress(
            stage=spec.name,
            server=self._target.label,
            num_planned=None if spec.duration_s else (spec.count + spec.warmup) * self._plan.workload.turns,
            num_done=len(self._sent) - len(self._open),
            num_failed=self._num_failed,
            num_in_flight=len(self._open),
            elapsed_s=elapsed,
            num_chunks=chunks,
            chunks_per_s=chunks / elapsed if elapsed > 0 else 0.0,
            ttft_s=recent[len(recent) // 2] if recent else None,
            is_warmup=spec.warmup > 0 and self._measured_s == 0.0,
        )

    def records(self) -> list[RequestRecord]:
        """Returns a record of every request that was sent."""
        return [self._record(number, sent) for number, sent in enumerate(self._sent)]

    async def counted(self, records: Sequence[RequestRecord], counter: TokenCounter) -> list[RequestRecord]:
        """Returns the records, with the tokens counted of answers for which the server sent no usage.

        Args:
            records: what `records()` returned.
            counter: counts the tokens of their texts.
        """
        counted = []
        for record, sent in zip(records, self._sent, strict=True):
            if record.is_ok and record.output_tokens is None and sent.reply.text:
                tokens = await counter.count(sent.reply.text)
                source = counter.source if tokens is not None else "none"
                counted.append(replace(record, output_tokens=tokens, token_source=source))
            else:
                counted.append(record)
        return counted

    def stage(self, records: Sequence[RequestRecord]) -> Stage:
        """Returns the stage's description for the result: its load and its times."""
        spec, started = self._spec, self._started_s - self._origin_s
        return Stage(
            name=spec.name,
            server=self._target.label,
            concurrency=spec.concurrency,
            rate=spec.rate,
            started_s=started,
            measured_s=self._measured_s - self._origin_s if self._measured_s else started,
            ended_s=max((record.ended_s for record in records), default=started),
        )

    async def _work(self, planned: int | None) -> None:
        """Sends one request, or conversation, after another: one of the workers of a closed loop."""
        num_failed = 0
        while planned is None or self._next < planned:
            number = self._next
            now = time.monotonic()
            if planned is None and self._measured_s and now >= self._measured_s + self._spec.duration_s:
                return
            self._next += 1
            num_failed = 0 if await self._conversation(number) else num_failed + 1
            if num_failed:
                # Do not send a million requests to a server that is gone.
                await asyncio.sleep(min(_PAUSE_S * num_failed, _MAX_PAUSE_S))

    async def _follow(self, times: Sequence[float]) -> None:
        """Sends requests when they are due, whether or not earlier ones have been answered (open loop)."""
        slots = asyncio.Semaphore(self._spec.max_in_flight) if self._spec.max_in_flight else None

        async def one(number: int, due: float) -> None:
            await self._request(number, due, self._prompt(number, 0))
            if slots is not None:
                slots.release()

        for number, at in enumerate(times):
            due = self._started_s + at
            left = due - time.monotonic()
            if left > _SPIN_S:
                await asyncio.sleep(left - _SPIN_S)
            while time.monotonic() < due:  # noqa: ASYNC110 - there is no event for a point in time
                await asyncio.sleep(0)
            if slots is not None:
                await slots.acquire()
            self._start_task(one(number, due))

    async def _conversation(self, number: int) -> bool:
        """Sends the turns of one conversation, usually a single one; returns whether all were answered."""
        messages: list[dict[str, str]] = []
        for turn in range(self._plan.workload.turns):
            prompt = self._prompt(number, turn)
            messages.append({"role": "user", "content": prompt.text})
            reply = await self._request(number, None, prompt, turn, messages)
            if reply.failure:
                return False
            messages.append({"role": "assistant", "content": reply.text})
        return True

    def _prompt(self, number: int, turn: int) -> Prompt:
        place = self._spec.first_prompt + number * self._plan.workload.turns + turn
        return self._prompts[place % len(self._prompts)]

    async def _request(
        self, number: int, due: float | None, prompt: Prompt, turn: int = 0, messages: Sequence[dict[str, str]] = ()
    ) -> Reply:
        params, is_warmup = self._plan.test_params, number < self._spec.warmup
        has_turns = self._plan.workload.turns > 1
        body = request_body(params, self._target.model, messages if has_turns else prompt.text, prompt.max_tokens)
        reply, place = Reply(), len(self._sent)
        self._sent.append(_Sent(reply, is_warmup, due, number if has_turns else None, turn))
        self._open.add(place)
        reply.sent_s = time.monotonic()
        if not is_warmup and not self._measured_s:
            self._measured_s = reply.sent_s if due is None else due
        try:
            await ask(self._target.wire, params, body, reply)
        except asyncio.CancelledError:
            reply.failure, reply.failure_detail = "cancelled", "the run was interrupted"
            raise
        finally:
            if reply.failure or not reply.ended_s:
                reply.ended_s = time.monotonic()
            self._ended(place, reply)
        return reply

    def _ended(self, place: int, reply: Reply) -> None:
        self._open.discard(place)
        if self._plan.workload.turns == 1 and _count(reply.usage.get("completion_tokens")):
            reply.texts.clear()  # not needed any more, and gigabytes in a long run
        self._num_chunks += len(reply.chunk_times_s)
        self._num_failed += bool(reply.failure)
        if reply.chunk_times_s:
            self._recent_ttft.append(reply.chunk_times_s[0] - reply.sent_s)

    def _start_task(self, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.add(asyncio.create_task(work))

    def _record(self, number: int, sent: _Sent) -> RequestRecord:
        reply, origin = sent.reply, self._origin_s
        usage = reply.usage
        tokens = _count(usage.get("completion_tokens"))
        if tokens == 0 and any(reply.texts):
            tokens = None  # how some servers say that they do not count
        details = usage.get("prompt_tokens_details")
        chunk_tokens = reply.chunk_tokens if sum(reply.chunk_tokens) in (tokens, (tokens or 0) - 1) else []

        def since(at: float | None) -> float | None:
            return None if at is None else at - origin

        return RequestRecord(
            request_id=f"req_{self._first_id + number}",
            stage=self._index,
            is_warmup=sent.is_warmup,
            scheduled_s=since(sent.scheduled_s),
            sent_s=reply.sent_s - origin,
            ended_s=reply.ended_s - origin,
            written_s=since(reply.written_s),
            chunk_times_s=tuple(at - origin for at in reply.chunk_times_s),
            empty_times_s=tuple(at - origin for at in reply.empty_times_s),
            chunk_tokens=tuple(chunk_tokens) if len(chunk_tokens) == len(reply.chunk_times_s) else (),
            prompt_tokens=_count(usage.get("prompt_tokens")),
            cached_tokens=_count(details.get("cached_tokens")) if isinstance(details, dict) else None,
            output_tokens=tokens,
            token_source="none" if tokens is None else "usage",
            finish_reason=reply.finish_reason,
            failure=reply.failure,
            failure_detail=reply.failure_detail,
            status=reply.status,
            conversation=sent.conversation,
            turn=sent.turn,
        )


def _count(value: object) -> int | None:
    """Returns a token count as sent by a server; None if it is not a count."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
