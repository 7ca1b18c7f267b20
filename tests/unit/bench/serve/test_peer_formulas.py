"""`--compat`: whole stages against the formulas of vLLM and guidellm, written down a second time from their sources."""

from __future__ import annotations

from dataclasses import replace
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_mxext.bench.metrics import Summary
from vllm_mxext.bench.serve.result import RequestRecord, RunResult, Stage
from vllm_mxext.bench.serve.slo import Slo
from vllm_mxext.bench.serve.statistics import StageFigures, stage_figures

pytestmark = pytest.mark.promise("PERF-4")

SLO = Slo(ttft_s=0.2, tpot_s=0.05, e2e_s=2.0)
_delays = st.floats(0.0, 0.5)


@st.composite
def requests(draw: st.DrawFn) -> list[RequestRecord]:
    """Streams whose events with and without text come at any times, several at once as well."""
    records = []
    for number in range(draw(st.integers(1, 12))):
        sent = at = draw(_delays)
        at = written = sent + draw(_delays)
        texts, empty = [], []
        for has_text, delay in draw(st.lists(st.tuples(st.booleans(), st.just(0.0) | _delays), max_size=12)):
            at += delay
            (texts if has_text else empty).append(at)
        at += 0.01
        texts.append(at)
        record = RequestRecord(f"req_{number}", 0, False, None, sent, at + draw(_delays), written, tuple(texts))
        tokens = draw(st.integers(1, 40))
        records.append(replace(record, empty_times_s=tuple(empty), output_tokens=tokens, prompt_tokens=3))
    return records


def figures(records: list[RequestRecord], compat: str) -> StageFigures:
    stage = Stage("s", "A", None, 4.0, 0.0, min(one.sent_s for one in records), 99.0)
    return stage_figures(RunResult("", {}, {}, (stage,), tuple(records)), 0, SLO, compat)


@given(requests())
def test_vllm_s_figures(records: list[RequestRecord]) -> None:
    """serve.py, `calculate_metrics`; endpoint_request_func.py, `async_request_openai_chat_completions`."""
    ttfts, itls, tpots, latencies, good = [], [], [], [], 0
    for record in records:
        choices = sorted(record.chunk_times_s + record.empty_times_s)
        ttft, latency = choices[0] - record.sent_s, choices[-1] - record.sent_s
        tokens = record.output_tokens or 0
        tpot = (latency - ttft) / (tokens - 1) if tokens > 1 else 0.0
        ttfts.append(ttft)
        itls += [choices[index] - choices[index - 1] for index in range(1, len(choices))]
        tpots += [tpot] if tokens > 1 else []
        latencies.append(latency)
        good += ttft <= 0.2 and tpot <= 0.05 and latency <= 2.0
    found = figures(records, "vllm")
    for values, summary in (
        (ttfts, found.latencies.ttft),
        (itls, found.latencies.chunk_gap),
        (tpots, found.latencies.tpot),
        (latencies, found.latencies.e2e),
    ):
        assert (summary is None) == (not values)
        if summary is not None:
            assert (summary.mean, summary.count) == (pytest.approx(fmean(values)), len(values))
    duration = max(record.ended_s for record in records)
    assert found.requests_per_s == pytest.approx(len(records) / duration)
    assert found.goodput is not None
    assert found.goodput.requests_per_s == pytest.approx(good / duration)


def _expect(summary: Summary | None, values: list[tuple[float, int]]) -> None:
    """statistics.py, `DistributionSummary.from_values` and `Percentiles.from_pdf`: every token is a value."""
    spread = sorted(value for value, weight in values for _ in range(weight))
    assert (summary is None) == (not spread)
    if summary is None:
        return
    assert (summary.mean, summary.count) == (pytest.approx(fmean(spread)), len(spread))
    for share, value in ((0.5, summary.median), (0.95, summary.p95), (0.99, summary.p99)):
        # A share that falls on the edge between two values may by rounding be either.
        edge = share * len(spread)
        low, high = spread[max(0, int(edge - 1e-6))], spread[min(len(spread) - 1, int(edge + 1e-6))]
        assert value in (low, high)


@given(requests())
def test_guidellm_s_figures(records: list[RequestRecord]) -> None:
    """request_stats.py, `GenerativeRequestStats`; metrics.py, `GenerativeMetrics`; goodput.py, `is_conforming`."""
    ttfts, itls, tpots, latencies, verdicts = [], [], [], [], []
    for record in records:
        start, first, last = record.written_s or 0.0, record.chunk_times_s[0], record.chunk_times_s[-1]
        tokens = record.output_tokens or 0
        ttfts.append((first - start, 1))
        tpots.append(((last - start) / tokens, tokens))
        latencies.append((record.ended_s - start, 1))
        if tokens > 1:
            itl = (last - first) / (tokens - 1)
            itls.append((itl, tokens - 1))
            verdicts.append(first - start <= 0.2 and itl <= 0.05 and record.ended_s - start <= 2.0)
    found = figures(records, "guidellm")
    _expect(found.latencies.ttft, ttfts)
    _expect(found.latencies.tpot, tpots)
    _expect(found.latencies.token_gap, itls)
    _expect(found.latencies.e2e, latencies)
    duration = max(record.ended_s for record in records) - min(record.written_s or 0.0 for record in records)
    assert found.output_tokens_per_s == pytest.approx(sum(record.output_tokens or 0 for record in records) / duration)
    assert found.goodput is not None
    assert found.goodput.share == (pytest.approx(fmean(verdicts)) if verdicts else 0.0)


def test_a_failure_lowers_the_share_of_good_answers() -> None:
    """metrics.py, `_compile_goodput`: errored requests are determined, those without a measured value are not."""
    good = RequestRecord("req_0", 0, False, None, 0.0, 1.0, 0.0, (0.1, 0.2), output_tokens=2)
    single = replace(good, request_id="req_1", output_tokens=1)
    failed = replace(good, request_id="req_2", failure="timeout")
    goodput = stage_figures(
        RunResult("", {}, {}, (Stage("s", "A", 1, None, 0.0, 0.0, 1.0),), (good, single, failed)),
        0,
        Slo(tpot_s=0.5),
        "guidellm",
    ).goodput
    assert goodput is not None
    assert (goodput.num_good, goodput.share) == (1, 0.5)


def test_warm_up_leaves_measuring_where_it_began() -> None:
    records = [RequestRecord(f"req_{number}", 0, number == 0, None, number, number + 1.0) for number in range(3)]
    for compat in ("own", "vllm", "guidellm"):
        stage = Stage("s", "A", 1, None, 0.0, 1.0, 3.0)
        assert stage_figures(RunResult("", {}, {}, (stage,), tuple(records)), 0, compat=compat).duration_s == 2.0
