"""Runs a plan: prepares prompts and measures stage after stage; returns a `RunResult`, also of an interrupted run."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import math
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from vllm_mxext.bench.environment import describe_environment
from vllm_mxext.bench.serve import definitions
from vllm_mxext.bench.serve.address import Address
from vllm_mxext.bench.serve.file_limit import allow_connections, most_in_flight
from vllm_mxext.bench.serve.knee import kept_up, speed
from vllm_mxext.bench.serve.labels import LABELS, language_of
from vllm_mxext.bench.serve.load import Level, next_concurrency, next_rate, schedule
from vllm_mxext.bench.serve.plan import Plan
from vllm_mxext.bench.serve.prompts import Prompt, make_prompts
from vllm_mxext.bench.serve.result import ClientLag, MetricsSample, RequestRecord, RunResult, Stage
from vllm_mxext.bench.serve.stage_run import Progress, StageRun, StageSpec, Target
from vllm_mxext.bench.serve.statistics import stage_figures
from vllm_mxext.bench.serve.tokens import FileTokenCounter, ServerTokenCounter, TokenCounter
from vllm_mxext.bench.serve.watching import LagWatch, Scraper, lag_reasons
from vllm_mxext.bench.serve.wire import Wire
from vllm_mxext.errors import ConfigError

_PROGRESS_S = 0.25
_NO_FILES = os.strerror(errno.EMFILE)
"""Text of a failure when this process has no file descriptor left for another connection."""

_LEVEL_S = 3.0
_LEVEL_ANSWERS = 3
"""A level of a sweep of rates sends for at least this many seconds, and as long as this many single answers take."""


def run_plan(plan: Plan, on_progress: Callable[[Progress], None] | None = None) -> RunResult:
    """Runs a plan in an event loop of its own; after Ctrl-C the result holds what was measured so far.

    Args:
        plan: checked.
        on_progress: called several times per second.

    Raises:
        ConfigError: prompts, addresses or a tokenizer are wrong; nothing was measured.
    """

    async def interruptible() -> RunResult:
        runner = Runner(plan, on_progress)
        loop = asyncio.get_running_loop()

        def interrupted() -> None:
            loop.remove_signal_handler(signal.SIGINT)  # a second Ctrl-C ends everything at once
            runner.interrupt()

        # Not possible on Windows or outside the main thread: there the caller handles Ctrl-C.
        with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
            loop.add_signal_handler(signal.SIGINT, interrupted)
        return await runner.run()

    try:
        import uvloop  # noqa: PLC0415 - not on every system
    except ImportError:
        return asyncio.run(interruptible())
    loop = uvloop.new_event_loop()
    try:
        return loop.run_until_complete(interruptible())
    finally:
        loop.close()


@dataclass(slots=True)
class _Collected:
    stages: list[Stage]
    records: list[RequestRecord]
    lag: list[ClientLag]
    reasons: list[str]
    notes: list[str]


class Runner:
    """One run of a plan.

    Args:
        plan: checked.
        on_progress: called several times per second.

    Attributes:
        origin_s: monotonic seconds when the run began; 0 before that.
    """

    def __init__(self, plan: Plan, on_progress: Callable[[Progress], None] | None = None) -> None:
        self._plan = plan
        self._on_progress = on_progress
        self._is_interrupted = False
        self._stage: StageRun | None = None
        self._preparing: asyncio.Task[tuple[Prompt, ...]] | None = None
        self.origin_s = 0.0
        self._collected = _Collected([], [], [], [], [])
        self._language = language_of(plan.output.language)
        self._words = LABELS[self._language]

    def interrupt(self) -> None:
        """Ends the run early: requests under way count as cancelled, and `run` returns what was measured."""
        self._is_interrupted = True
        if self._preparing is not None:
            self._preparing.cancel()
        if self._stage is not None:
            self._stage.interrupt()

    async def run(self) -> RunResult:
        """Runs the plan.

        Raises:
            ConfigError: prompts, addresses or a tokenizer are wrong; nothing was measured.
        """
        plan = self._plan
        allow_connections(most_in_flight(plan))
        targets = self._targets()
        environment = await asyncio.to_thread(describe_environment)
        counter = self._counter(targets[0])
        workload = plan.workload
        made = workload.num_requests or workload.num_prompts
        prompts = await self._prepared((made + plan.test_params.warmup_requests) * workload.turns, counter)
        is_made = workload.input_tokens is not None
        count = workload.num_requests or (made if is_made else max(len(prompts) // workload.turns, 1))
        started_at = datetime.now().astimezone().isoformat(timespec="milliseconds")
        self.origin_s = time.monotonic()
        scrapers = [Scraper(target.wire, target.label, self.origin_s) for target in targets]
        metrics: list[MetricsSample] = []
        try:
            if plan.test_params.server_metrics and not self._is_interrupted:
                await asyncio.gather(*(scraper.start() for scraper in scrapers))
            await self._run_stages(targets, prompts, count, counter)
        finally:
            for scraper in scrapers:
                metrics += await scraper.stop()
            for target in targets:
                target.wire.close()
        collected = self._collected
        self._note_sources()
        if len(collected.records) > len(prompts) * len(targets):
            collected.notes.append(self._words["note_again"])
        return RunResult(
            started_at=started_at,
            plan=plan.as_dict(),
            environment=environment,
            stages=tuple(collected.stages),
            records=tuple(collected.records),
            lag=tuple(collected.lag),
            invalid_reasons=tuple(collected.reasons),
            notes=tuple(collected.notes),
            metrics=tuple(sorted(metrics, key=lambda sample: sample.at_s)),
            is_interrupted=self._is_interrupted,
            duration_s=time.monotonic() - self.origin_s,
        )

    async def _prepared(self, count: int, counter: TokenCounter) -> tuple[Prompt, ...]:
        """Returns the prompts; none if the run is interrupted meanwhile: the server may have to count their tokens."""
        self._preparing = asyncio.create_task(make_prompts(self._plan, count, counter))
        try:
            return await self._preparing
        except asyncio.CancelledError:
            if not self._is_interrupted:
                raise
            return ()

    def _targets(self) -> list[Target]:
        server = self._plan.server
        key = os.environ.get(server.api_key_env, "") if server.api_key_env else ""
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        if "\n" in key or "\r" in key:
            raise ConfigError(f"{server.api_key_env} holds more than one line; set it to the key alone.")
        targets = [Target(server.name, server.model, Wire(Address.parse(server.url), headers))]
        if server.compare_url:
            model = server.compare_model or server.model
            targets.append(Target(server.compare_name, model, Wire(Address.parse(server.compare_url), headers)))
        return targets

    def _counter(self, target: Target) -> TokenCounter:
        given = self._plan.test_params.tokenizer
        return FileTokenCounter(Path(given)) if given else ServerTokenCounter(target.wire, target.model)

    async def _run_stages(
        self, targets: list[Target], prompts: tuple[Prompt, ...], count: int, counter: TokenCounter
    ) -> None:
        load = self._plan.load
        if load.sweep:
            await self._sweep(targets[0], prompts, count, counter)
        elif len(targets) == 1:
            await self._measure(targets[0], self._spec(count, prompts), prompts, counter)
        else:
            await self._take_turns(targets, prompts, count, counter)

    async def _take_turns(
        self, targets: list[Target], prompts: tuple[Prompt, ...], count: int, counter: TokenCounter
    ) -> None:
        plan, load = self._plan, self._plan.load
        rounds = plan.server.compare_rounds
        # Every turn gets enough requests to reach the load.
        total = max(count, rounds * (1 if load.request_rate else plan.test_params.concurrent_requests))
        for number in range(rounds):
            first, end = (total * part // rounds for part in (number, number + 1))
            if load.request_rate:
                spec = self._rate_spec(load.request_rate, end - first, load.ramp_to, turn=number, turns=rounds)
            else:
                spec = replace(self._spec(end - first), duration_s=load.duration / rounds)
            spec = replace(spec, first_prompt=first * plan.workload.turns)
            # A B, B A, A B: drift over time affects both servers alike.
            for target in targets if number % 2 == 0 else targets[::-1]:
                await self._measure(target, spec, prompts, counter)

    def _spec(self, count: int, prompts: tuple[Prompt, ...] = ()) -> StageSpec:
        plan, load = self._plan, self._plan.load
        if plan.workload.trace:
            times = tuple(prompt.at_s or 0.0 for prompt in prompts)
            seconds = times[-1] if times else 0.0
            return StageSpec("replay", None, len(times) / seconds if seconds else 0.0, times, len(times), 0)
        if load.request_rate:
            return self._rate_spec(load.request_rate, count, load.ramp_to)
        return self._concurrency_spec(plan.test_params.concurrent_requests, count)

    def _concurrency_spec(self, concurrency: int, count: int) -> StageSpec:
        warmup, duration_s = self._plan.test_params.warmup_requests, self._plan.load.duration
        return StageSpec(f"{concurrency} at a time", concurrency, None, None, count, warmup, duration_s)

    def _rate_spec(self, rate: float, count: int, ramp_to: float = 0.0, *, turn: int = 0, turns: int = 1) -> StageSpec:
        load, params = self._plan.load, self._plan.test_params
        warmup = params.warmup_requests
        length = load.duration / turns + warmup / rate if load.duration else 0.0
        seed = params.seed + turn  # other gaps in every turn, the same for both servers
        times = schedule(rate, load.burstiness, seed, count=count + warmup, duration_s=length, ramp_to=ramp_to)
        if len(times) <= warmup and turns > 1:
            times = schedule(rate, load.burstiness, seed, count=1 + warmup, ramp_to=ramp_to)
        if len(times) <= warmup:
            raise ConfigError("No request is due within --duration at this rate; give a longer one.")
        name = f"{rate:g} to {ramp_to:g} requests/s" if ramp_to else f"{rate:g} requests/s"
        return StageSpec(name, None, rate, times, max(len(times) - warmup, 0), warmup, max_in_flight=load.max_in_flight)

    async def _sweep(self, target: Target, prompts: tuple[Prompt, ...], count: int, counter: TokenCounter) -> None:
        load, done = self._plan.load, list[Level]()
        given = list(load.sweep_levels)
        first = 1.0
        if load.sweep == "rate" and not given:
            first = await self._single_rate(target, prompts, counter)
        while True:
            if load.sweep_levels:
                level = given.pop(0) if given else None
            else:
                level = next_rate(done, first) if load.sweep == "rate" else next_concurrency(done)
            if level is None:
                return
            if load.sweep == "rate":
                # Some answers must end while requests are still sent, or it cannot be told whether the server keeps up.
                seconds = max(_LEVEL_S, _LEVEL_ANSWERS * 0.5 / first)
                spec = self._rate_spec(level, max(count, math.ceil(level * seconds)))
            else:
                concurrency = max(int(level), 1)
                # A level is only reached if there are enough requests for it.
                spec = self._concurrency_spec(concurrency, count if load.duration else max(count, 3 * concurrency))
            index = await self._measure(target, spec, prompts, counter)
            if self._is_interrupted:
                return
            figures = stage_figures(self._partial(), index)
            done.append(Level(level, speed(figures), kept_up(figures)))

    async def _single_rate(self, target: Target, prompts: tuple[Prompt, ...], counter: TokenCounter) -> float:
        """Returns where a sweep of rates begins: half of the rate of one request at a time, measured and discarded."""
        spec = replace(self._concurrency_spec(1, min(3, len(prompts))), warmup=1, duration_s=0.0)
        index = await self._measure(target, spec, prompts, counter)
        if self._is_interrupted:
            return 1.0
        rate = stage_figures(self._partial(), index).requests_per_s
        collected = self._collected
        del collected.stages[index:], collected.lag[index:]
        collected.reasons = []
        collected.records = [record for record in collected.records if record.stage != index]
        return max(float(f"{rate / 2:.2g}"), 0.01) if rate else 1.0

    def _partial(self) -> RunResult:
        collected = self._collected
        return RunResult("", {}, {}, tuple(collected.stages), tuple(collected.records))

    async def _measure(
        self, target: Target, spec: StageSpec, prompts: tuple[Prompt, ...], counter: TokenCounter
    ) -> int:
        index = len(self._collected.stages)
        if self._is_interrupted:
            return index
        stage = StageRun(self._plan, target, spec, prompts, index, self.origin_s, len(self._collected.records))
        self._stage = stage
        watch = LagWatch()
        watch.start()
        ticker = asyncio.create_task(self._report(stage))
        try:
            await stage.run()
        finally:
            ticker.cancel()
            await asyncio.gather(ticker, return_exceptions=True)
            self._stage = None
        if self._on_progress:
            self._on_progress(stage.progress())
        is_capped = spec.max_in_flight > 0
        records = stage.records()
        lags = [] if is_capped else [late for record in records if (late := record.send_lag_s) is not None]
        lag = await watch.stop(lags, sum(len(record.chunk_times_s) for record in records))
        records = await stage.counted(records, counter)
        self._collected.records += records
        self._collected.stages.append(stage.stage(records))
        self._collected.lag.append(lag)
        self._collected.reasons += lag_reasons(spec.name, lag, _typical_s(records), self._language)
        if any(_NO_FILES in record.failure_detail for record in records):
            self._collected.reasons.append(self._words["no_files"].format(stage=spec.name))
        return index

    async def _report(self, stage: StageRun) -> None:
        while self._on_progress is not None:
            self._on_progress(stage.progress())
            await asyncio.sleep(_PROGRESS_S)

    def _note_sources(self) -> None:
        answered = [record for record in self._collected.records if record.is_ok and not record.is_warmup]
        for source in ("tokenizer", "server", "none"):
            if count := sum(record.token_source == source for record in answered):
                self._collected.notes.append(self._words[f"note_{source}"].format(count=count))


def _typical_s(records: list[RequestRecord]) -> float | None:
    answered = [record for record in records if record.is_ok]
    times = sorted(
        definitions.e2e_s(record) if (first := definitions.ttft_s(record)) is None else first for record in answered
    )
    return times[len(times) // 2] if times else None
