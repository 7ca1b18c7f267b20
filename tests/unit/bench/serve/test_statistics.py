"""Statistics: figures of stages made by hand, whose values are known."""

from __future__ import annotations

from dataclasses import replace

import pytest

from vllm_mxext.bench.serve.result import RequestRecord, RunResult, Stage
from vllm_mxext.bench.serve.slo import Slo
from vllm_mxext.bench.serve.statistics import run_figures, stage_figures


def record(number: int, sent: float, seconds: float, **changes: object) -> RequestRecord:
    """Ten tokens, the first after a tenth of the time."""
    times = tuple(sent + seconds * (0.1 + 0.1 * part) for part in range(10))
    base = RequestRecord(f"req_{number}", 0, False, None, sent, sent + seconds, sent, times)
    return replace(base, output_tokens=10, prompt_tokens=5, token_source="usage", **changes)  # type: ignore[arg-type]


def result(*records: RequestRecord, concurrency: int | None = 2, rate: float | None = None) -> RunResult:
    stage = Stage("s", "A", concurrency, rate, 0.0, min(item.sent_s for item in records if not item.is_warmup), 99.0)
    return RunResult("", {"server": {"model": "m"}}, {}, (stage,), records)


def steady_load(rounds: int) -> list[RequestRecord]:
    return [record(2 * turn + lane, turn + 0.5 * lane, 1.0) for turn in range(rounds) for lane in (0, 1)]


@pytest.mark.promise("PERF-3")
def test_throughput_is_tokens_over_the_measured_time() -> None:
    figures = stage_figures(result(*steady_load(4)), 0)
    assert (figures.num_ok, figures.output_tokens, figures.prompt_tokens) == (8, 80, 40)
    assert figures.duration_s == 4.5
    assert figures.output_tokens_per_s == pytest.approx(80 / 4.5)
    assert figures.total_tokens_per_s == pytest.approx(120 / 4.5)
    assert figures.peak_in_flight == 2


@pytest.mark.promise("PERF-5")
def test_warm_up_is_in_no_figure_but_its_tokens_are_in_the_steady_window() -> None:
    records = steady_load(6)
    warm = [replace(item, is_warmup=True) for item in records[:3]] + records[3:]
    figures = stage_figures(result(*warm), 0)
    assert figures.num_requests == 9
    assert figures.steady is not None
    assert (figures.steady.started_s, figures.steady.ended_s) == (1.5, 5.5)
    # Two lanes of ten tokens per second, full all the time: 20, however the run began and ended.
    assert figures.steady.output_tokens_per_s == pytest.approx(20, rel=0.05)


def test_there_is_no_steady_window_in_one_batch() -> None:
    assert stage_figures(result(record(0, 0.0, 1.0), record(1, 0.0, 1.0)), 0).steady is None


@pytest.mark.promise("PERF-6")
def test_failures_are_counted_by_kind_and_do_not_touch_latencies() -> None:
    failed = record(9, 1.0, 50.0, failure="timeout", failure_detail="late")
    figures = stage_figures(result(*steady_load(2), failed), 0)
    assert (figures.num_requests, figures.num_ok, figures.failures) == (5, 4, {"timeout": 1})
    assert figures.latencies.e2e is not None
    assert figures.latencies.e2e.maximum == pytest.approx(1.0)
    assert figures.duration_s == 51.0


def test_only_failures_give_no_latencies() -> None:
    figures = stage_figures(result(record(0, 0.0, 1.0, failure="connect")), 0)
    assert figures.latencies.ttft is None
    assert figures.output_tokens_per_s == 0


@pytest.mark.promise("PERF-3")
def test_with_a_schedule_both_latencies_are_there() -> None:
    late = [record(number, number + 1.0, 1.0, scheduled_s=float(number)) for number in range(4)]
    figures = stage_figures(result(*late, concurrency=None, rate=1.0), 0)
    assert figures.latencies.e2e is not None
    assert figures.from_sending is not None
    assert figures.from_sending.e2e is not None
    assert figures.send_lag is not None
    assert figures.latencies.e2e.median == pytest.approx(2.0)
    assert figures.from_sending.e2e.median == pytest.approx(1.0)
    assert figures.send_lag.median == pytest.approx(1.0)


@pytest.mark.promise("PERF-7")
def test_goodput_counts_answers_within_every_limit() -> None:
    records = [*steady_load(2), record(8, 1.0, 3.0), record(9, 1.0, 0.5, failure="timeout")]
    goodput = stage_figures(result(*records), 0, Slo(ttft_s=0.2, tpot_s=0.2, percentile=60)).goodput
    assert goodput is not None
    assert (goodput.num_good, goodput.share, goodput.is_met) == (4, 4 / 6, True)
    assert goodput.requests_per_s == pytest.approx(4 / 4.0)


def test_a_limit_of_the_first_token_applies_to_the_whole_answer_without_streaming() -> None:
    whole = record(0, 0.0, 1.0, chunk_times_s=())
    goodput = stage_figures(result(whole), 0, Slo(ttft_s=0.5)).goodput
    assert goodput is not None
    assert goodput.num_good == 0


def test_a_limit_per_token_is_not_kept_by_what_nobody_measured() -> None:
    whole, streamed = record(0, 0.0, 1.0, chunk_times_s=()), record(1, 0.0, 1.0)
    records = [whole, replace(streamed, output_tokens=None), replace(streamed, output_tokens=1)]
    goodput = stage_figures(result(*records), 0, Slo(tpot_s=0.1)).goodput
    assert goodput is not None
    assert goodput.num_good == 1
    wider = stage_figures(result(*records), 0, Slo(tpot_s=0.12)).goodput
    assert wider is not None
    assert wider.num_good == 2


def test_the_plan_of_a_run_says_its_limits_and_definitions() -> None:
    run = replace(
        result(*steady_load(2)),
        plan={"server": {"model": "m"}, "slo": {"e2e_ms": 900}, "test_params": {"compat": "vllm"}},
    )
    (figures,) = run_figures(run)
    assert figures.goodput is not None
    assert (figures.goodput.num_good, figures.goodput.slo.e2e_s) == (0, 0.9)
