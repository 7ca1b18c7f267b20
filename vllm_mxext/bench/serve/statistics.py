"""From the records of a run to its figures: distributions, throughput, steady window, goodput."""

from __future__ import annotations

import dataclasses
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from vllm_mxext.bench.metrics import Summary, summarize
from vllm_mxext.bench.serve import definitions
from vllm_mxext.bench.serve.plan_reading import limits, plan_from_mapping
from vllm_mxext.bench.serve.result import RequestRecord, RunResult, Stage
from vllm_mxext.bench.serve.slo import Slo, is_good

_MIN_STEADY = 3
"""Requests that a steady window needs at least."""


@dataclass(frozen=True, slots=True)
class Latencies:
    """Distributions over requests or gaps, in seconds; None where nothing could be measured."""

    ttft: Summary | None
    tpot: Summary | None
    e2e: Summary | None
    chunk_gap: Summary | None
    token_gap: Summary | None


@dataclass(frozen=True, slots=True)
class Goodput:
    """Answers within the objectives.

    Attributes:
        slo: the objectives.
        num_good: answers within all limits.
        share: their share of all measured requests, failed ones included.
        requests_per_s: good answers per second.
        is_met: whether the share is at least the required percentile.
    """

    slo: Slo
    num_good: int
    share: float
    requests_per_s: float
    is_met: bool


@dataclass(frozen=True, slots=True)
class SteadyFigures:
    """Figures of the steady window; times are seconds since the run began.

    Attributes:
        started_s: its begin.
        ended_s: its end.
        num_requests: requests sent in it that were answered.
        requests_per_s: answers that ended in it, per second.
        output_tokens_per_s: tokens that arrived in it, per second.
        latencies: of the requests sent in it.
    """

    started_s: float
    ended_s: float
    num_requests: int
    requests_per_s: float
    output_tokens_per_s: float
    latencies: Latencies


@dataclass(frozen=True, slots=True)
class StageFigures:
    """All figures of one stage.

    Attributes:
        stage: what was measured.
        num_requests: measured requests, failed ones included.
        num_ok: those that were answered.
        failures: kind of failure -> number of requests.
        token_sources: what counted the output tokens -> number of answers.
        prompt_tokens: sum over all answers; None if the server does not say.
        cached_tokens: those of them that came from the server's cache; None if it does not say.
        output_tokens: sum over all answers.
        duration_s: how long was measured.
        requests_per_s: answers per second.
        output_tokens_per_s: output tokens per second.
        total_tokens_per_s: prompt and output tokens per second; None if the prompt tokens are unknown.
        mean_in_flight: average number of requests in flight while measuring.
        peak_in_flight: largest number of requests in flight.
        latencies: the headline figures; with a schedule, from the scheduled times.
        from_sending: the same from the times of sending; None without a schedule.
        throughput: output tokens per second of single requests.
        send_lag: how late requests with a schedule were sent; None without one.
        goodput: None without objectives.
        steady: None if there was no steady window.
    """

    stage: Stage
    num_requests: int
    num_ok: int
    failures: Mapping[str, int]
    token_sources: Mapping[str, int]
    prompt_tokens: int | None
    cached_tokens: int | None
    output_tokens: int
    duration_s: float
    requests_per_s: float
    output_tokens_per_s: float
    total_tokens_per_s: float | None
    mean_in_flight: float
    peak_in_flight: int
    latencies: Latencies
    from_sending: Latencies | None
    throughput: Summary | None
    send_lag: Summary | None
    goodput: Goodput | None
    steady: SteadyFigures | None


def run_figures(result: RunResult) -> tuple[StageFigures, ...]:
    """Returns the figures of every stage, by the limits and definitions of the run's own plan."""
    plan = plan_from_mapping(result.settings)
    slo, compat = limits(plan), plan.test_params.compat
    return tuple(stage_figures(result, index, slo, compat) for index in range(len(result.stages)))


def stage_figures(result: RunResult, index: int, slo: Slo | None = None, compat: str = "own") -> StageFigures:
    """Returns the figures of one stage.

    Args:
        result: the run.
        index: of the stage.
        slo: limits for goodput.
        compat: whose definitions: own, vllm or guidellm.
    """
    stage, records = result.stages[index], result.of_stage(index)
    everyone = tuple(record for record in result.records if record.stage == index)
    answered = [record for record in records if record.is_ok]
    begin = _begin(stage, records, everyone, compat)
    ended = max((record.ended_s for record in records), default=begin)
    duration = max(ended - begin, 0.0)
    output_tokens = sum(record.output_tokens or 0 for record in answered)
    said = [record.prompt_tokens for record in answered if record.prompt_tokens is not None]
    prompt_tokens = sum(said) if len(said) == len(answered) else None
    cached = [record.cached_tokens for record in answered if record.cached_tokens is not None]
    has_schedule = compat == "own" and any(record.scheduled_s is not None for record in records)
    unscheduled = [dataclasses.replace(record, scheduled_s=None) for record in answered] if has_schedule else []
    return StageFigures(
        stage=stage,
        num_requests=len(records),
        num_ok=len(answered),
        failures=dict(Counter(record.failure for record in records if record.failure)),
        token_sources=dict(Counter(record.token_source for record in answered)),
        prompt_tokens=prompt_tokens,
        cached_tokens=sum(cached) if cached else None,
        output_tokens=output_tokens,
        duration_s=duration,
        requests_per_s=_per_second(len(answered), duration),
        output_tokens_per_s=_per_second(output_tokens, duration),
        total_tokens_per_s=None if prompt_tokens is None else _per_second(prompt_tokens + output_tokens, duration),
        mean_in_flight=_per_second(_overlap_s(everyone, begin, ended), duration),
        peak_in_flight=_peak(everyone),
        latencies=latencies(answered, compat),
        from_sending=latencies(unscheduled, compat) if has_schedule else None,
        throughput=_summary(definitions.throughput(record) for record in answered),
        send_lag=_summary(record.send_lag_s for record in records),
        goodput=_goodput(records, slo, duration, compat) if slo else None,
        steady=_steady(stage, everyone, compat),
    )


def latencies(answered: Sequence[RequestRecord], compat: str = "own") -> Latencies:
    """Returns the distributions over answered requests."""
    if compat == "guidellm":
        return _weighted_latencies(answered)
    return Latencies(
        ttft=_summary(definitions.ttft_s(record, compat) for record in answered),
        tpot=_summary(definitions.tpot_s(record, compat) for record in answered),
        e2e=_summary(definitions.e2e_s(record, compat) for record in answered),
        chunk_gap=_summary(gap for record in answered for gap in definitions.chunk_gaps_s(record, compat)),
        token_gap=_summary(gap for record in answered for gap in definitions.token_gaps_s(record, compat)),
    )


def _summary(values: Iterable[float | None]) -> Summary | None:
    known = [value for value in values if value is not None]
    return summarize(known) if known else None


def _weighted_latencies(answered: Sequence[RequestRecord]) -> Latencies:
    """Returns guidellm's distributions, in which long answers weigh more."""

    def weighed(
        values: Callable[[RequestRecord, str], float | None], weight: Callable[[int], int] = lambda _: 1
    ) -> Summary | None:
        pairs = ((values(record, "guidellm"), weight(record.output_tokens or 0)) for record in answered)
        return _weighted_summary((value, weight) for value, weight in pairs if value is not None)

    def token_gap(record: RequestRecord, compat: str) -> float | None:
        return next(iter(definitions.token_gaps_s(record, compat)), None)

    return Latencies(
        ttft=weighed(definitions.ttft_s),
        tpot=weighed(definitions.tpot_s, lambda tokens: tokens),
        e2e=weighed(definitions.e2e_s),
        chunk_gap=_weighted_summary((gap, 1) for record in answered for gap in definitions.chunk_gaps_s(record)),
        token_gap=weighed(token_gap, lambda tokens: tokens - 1),
    )


def _weighted_summary(pairs: Iterable[tuple[float, int]]) -> Summary | None:
    weights: defaultdict[float, int] = defaultdict(int)
    for value, weight in pairs:
        weights[value] += weight
    if not weights:
        return None
    total, ordered = sum(weights.values()), sorted(weights)
    # Summed in guidellm's order, so that rounding picks the same value where a share falls between two.
    shares = list(accumulate(weights[value] / total for value in ordered))

    def at(share: float) -> float:
        return ordered[min(bisect_left(shares, share), len(ordered) - 1)]

    mean = sum(value * weights[value] for value in ordered) / total
    return Summary(at(0.5), mean, at(0.95), at(0.99), ordered[0], ordered[-1], total)


def _begin(stage: Stage, measured: Sequence[RequestRecord], everyone: Sequence[RequestRecord], compat: str) -> float:
    """Returns when measuring began; vLLM and guidellm define it differently, but only for runs without a warm-up."""
    if compat == "own" or len(measured) < len(everyone) or not measured:
        return stage.measured_s
    if compat == "vllm":
        return stage.started_s
    return min(record.sent_s if record.written_s is None else record.written_s for record in measured)


def _per_second(amount: float, seconds: float) -> float:
    return amount / seconds if seconds > 0 else 0.0


def _goodput(records: Sequence[RequestRecord], slo: Slo, duration: float, compat: str) -> Goodput:
    judged = [verdict for record in records if (verdict := is_good(record, slo, compat)) is not None]
    num_good = sum(judged)
    share = num_good / len(judged) if judged else 0.0
    return Goodput(slo, num_good, share, _per_second(num_good, duration), share * 100 >= slo.percentile)


def _overlap_s(records: Iterable[RequestRecord], begin: float, end: float) -> float:
    return sum(max(min(record.ended_s, end) - max(record.sent_s, begin), 0.0) for record in records)


def _peak(records: Iterable[RequestRecord]) -> int:
    # Of an end and a beginning at the same time, the end comes first: the connection was free.
    changes = sorted([(record.sent_s, 1) for record in records] + [(record.ended_s, -1) for record in records])
    current = peak = 0
    for _, change in changes:
        current += change
        peak = max(peak, current)
    return peak


def _steady(stage: Stage, everyone: Sequence[RequestRecord], compat: str) -> SteadyFigures | None:
    if not everyone:
        return None
    sent = sorted(record.sent_s for record in everyone)
    if stage.concurrency is not None:
        full = sent[min(stage.concurrency, len(sent)) - 1]
    else:
        full = min(record.ended_s for record in everyone)
    begin, end = max(stage.measured_s, full), sent[-1]
    inside = [record for record in everyone if record.is_ok and begin <= record.sent_s < end]
    if end <= begin or len(inside) < _MIN_STEADY:
        return None
    arrivals = (arrival for record in everyone if record.is_ok for arrival in definitions.token_arrivals(record))
    tokens = sum(count for at, count in arrivals if begin <= at < end)
    ended = sum(record.is_ok and begin <= record.ended_s < end for record in everyone)
    return SteadyFigures(
        begin,
        end,
        len(inside),
        _per_second(ended, end - begin),
        _per_second(tokens, end - begin),
        latencies(inside, compat),
    )
