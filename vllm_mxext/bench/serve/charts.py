"""The charts of a report and their data: load levels, the timeline, distributions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from vllm_mxext.bench.serve import definitions
from vllm_mxext.bench.serve.labels import LABELS
from vllm_mxext.bench.serve.report_data import DISTRIBUTIONS, Report, level_name, named_values, number, seconds
from vllm_mxext.bench.serve.result import RequestRecord
from vllm_mxext.bench.serve.svg import Axes, Mark, Series, histogram, line_chart

_MAX_BUCKETS = 120
_TOKENS_PER_BUCKET = 20
_WATCHED = {"num_requests_running": "running", "num_requests_waiting": "waiting"}
"""Part of the name of a server's series -> its name in the chart."""

_WIDE = 8
"""From this ratio of the highest level to the lowest on, the axis is logarithmic."""


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart with its heading."""

    title: str
    svg: str


def load_charts(report: Report) -> list[Chart]:
    """Returns charts of latency, tokens and goodput against the load; none without a sweep."""
    if not report.is_sweep:
        return []
    words = LABELS[report.language]
    levels = sorted(report.stages, key=lambda one: one.stage.level)
    values = [named_values(one) for one in levels]
    has_rates = levels[0].stage.rate is not None
    loads = [one.stage.level for one in levels]
    load_label = words["rate"] if has_rates else words["concurrency"]
    is_log = loads[-1] >= _WIDE * loads[0] > 0
    marks = [Mark(report.figures.stage.level, words["knee"])] if report.knee_index is not None else []

    def line(name: str, key: str, xs: Iterable[float]) -> Series:
        pairs = zip(xs, (one[key] for one in values), strict=True)
        return Series(name, tuple((x, y) for x, y in pairs if y is not None))

    def drawn(title: str, axes: Axes, series: list[Series], marks: list[Mark]) -> list[Chart]:
        full = [one for one in series if one.points]
        return [Chart(title, line_chart(axes, full, marks))] if full else []

    charts = drawn(
        words["tokens_chart"],
        Axes(words["tokens_chart"], load_label, words["tokens_rate"], tuple(loads), is_log),
        [line(words["tokens_rate"], "output_throughput", loads)],
        marks,
    )
    rates = loads if has_rates else [one["request_throughput"] or 0.0 for one in values]
    for name in ("ttft", "tpot", "e2e"):
        title = f"{words[name]}: {words['rate_chart']}"
        series = [line(label, f"{name}_{key}", rates) for label, key in (("P50", "median"), ("P99", "p99"))]
        charts += drawn(title, Axes(title, words["rate"], words["latency"]), series, [])
    if report.slo:
        series = [
            line(words["offered"], "request_throughput", loads),
            line(words["good"], "goodput", loads),
        ]
        axes = Axes(words["goodput_chart"], load_label, words["rate"], tuple(loads), is_log)
        charts += drawn(f"{words['goodput_chart']} ({report.slo})", axes, series, marks)
    return charts


def timeline_charts(report: Report) -> list[Chart]:
    """Returns tokens per second, requests in flight and the server's own gauges over the time of the run."""
    words, result = LABELS[report.language], report.result
    records = [record for record in result.records if record.is_ok]
    end = max((record.ended_s for record in records), default=0.0)
    if end <= 0:
        return []
    total = sum(record.output_tokens or 0 for record in records)
    # With few tokens in each bucket, the rate would jump up and down.
    buckets = min(_MAX_BUCKETS, max(6, total // _TOKENS_PER_BUCKET))
    width = end / buckets
    tokens = [0.0] * buckets
    for record in records:
        for at, amount in definitions.token_arrivals(record):
            tokens[min(buckets - 1, max(0, int(at / width)))] += amount / width
    flight = _mean_in_flight(result.records, end)
    # A single stage without a warm-up needs no marks.
    marked = len(result.stages) > 1 or any(record.is_warmup for record in result.records)
    marks = (
        [
            Mark(one.measured_s, one.server if report.is_comparison else level_name(one, report.language))
            for one in result.stages
        ]
        if marked
        else []
    )
    time = words["time"]
    points = tuple((index * width, amount) for index, amount in enumerate([*tokens, 0.0]))
    charts = [
        Chart(
            f"{words['timeline']}: {words['tokens_rate']}",
            line_chart(
                Axes(words["timeline"], time, words["tokens_rate"]),
                [Series(words["tokens_rate"], points, "area")],
                marks,
            ),
        ),
        Chart(
            f"{words['timeline']}: {words['concurrency']}",
            line_chart(
                Axes(words["timeline"], time, words["concurrency"]),
                [Series(words["in_flight"], flight, "area")],
                marks,
            ),
        ),
    ]
    return charts + _server_charts(report)


def _mean_in_flight(records: Sequence[RequestRecord], end_s: float) -> tuple[tuple[float, float], ...]:
    """Returns the mean over equal intervals, which hides the short gaps between one request and the next."""
    width = end_s / _MAX_BUCKETS
    busy_s = [0.0] * _MAX_BUCKETS
    for record in records:
        first, last = (min(_MAX_BUCKETS - 1, max(0, int(at / width))) for at in (record.sent_s, record.ended_s))
        for index in range(first, last + 1):
            begin = index * width
            busy_s[index] += max(0.0, min(record.ended_s, begin + width) - max(record.sent_s, begin))
    return tuple((index * width, seconds / width) for index, seconds in enumerate([*busy_s, 0.0]))


def distribution_charts(report: Report) -> list[Chart]:
    """Returns histograms of TTFT, TPOT, E2E and tokens per second of a request at the main level."""
    words, samples, values = LABELS[report.language], report.samples, report.values
    charts = []
    for name in DISTRIBUTIONS:
        if not samples[name]:
            continue
        is_speed = name == "throughput"
        # The slow tail of speeds is on the left, where none of these percentiles is.
        points = (("P50", "median"),) if is_speed else (("P50", "median"), ("P95", "p95"), ("P99", "p99"))
        marks = [
            Mark(value, f"{label} {number(value) if is_speed else seconds(value)}")
            for label, key in points
            if (value := values[f"{name}_{key}"]) is not None
        ]
        svg = histogram(
            Axes(words[name], words["tokens_rate" if is_speed else "seconds"], words["requests_axis"]),
            samples[name],
            marks,
        )
        charts.append(Chart(words[name], svg))
    return charts


def _server_charts(report: Report) -> list[Chart]:
    words = LABELS[report.language]
    series = []
    for part, name in _WATCHED.items():
        points = tuple(
            (sample.at_s, sum(value for key, value in sample.values.items() if part in key))
            for sample in report.result.metrics
            if sample.at_s >= 0 and any(part in key for key in sample.values)
        )
        if len(points) > 1:
            series.append(Series(name, points, "step"))
    if not series:
        return []
    axes = Axes(words["server_metrics"], words["time"], words["requests_axis"])
    return [Chart(words["server_metrics"], line_chart(axes, series))]
