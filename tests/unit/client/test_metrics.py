"""The client's figures: exact counts, percentiles within their error, bounded memory, Prometheus' format."""

from __future__ import annotations

import math
import threading
import tracemalloc

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from vllm_mxext.client.metrics import CallRecord, ClientMetrics
from vllm_mxext.client.sketch import RELATIVE_ERROR, Sketch

pytestmark = pytest.mark.promise("CLIENT-17")


def call(outcome: str = "success", **fields: object) -> CallRecord:
    values = {"model": "m", "endpoint_id": "e", "priority": 1, "duration_s": 1.0, **fields}
    return CallRecord(outcome=outcome, **values)  # type: ignore[arg-type]


def recorded(*calls: CallRecord) -> ClientMetrics:
    metrics = ClientMetrics()
    for one in calls:
        metrics.record(one)
    return metrics


def test_counts_tokens_and_retries_are_exact():
    figures = recorded(
        call(num_prompt_tokens=10, num_output_tokens=5, num_attempts=3),
        call(num_prompt_tokens=1, num_output_tokens=2),
        call("ServerError", num_attempts=2),
        call("QueueFullError", num_attempts=0),
    ).snapshot()
    assert figures["requests"] == {
        "total": 4,
        "succeeded": 2,
        "failed": 2,
        "success_rate": 0.5,
        "by_outcome": {"success": 2, "ServerError": 1, "QueueFullError": 1},
    }
    assert figures["retries"] == 3
    assert figures["tokens"] == {"prompt": 11, "output": 7}


def test_latency_has_least_greatest_mean_and_percentiles():
    latency = recorded(*(call(duration_s=number / 100) for number in range(1, 101))).snapshot()["latency"]["e2e_s"]
    assert (latency["count"], latency["min"], latency["max"]) == (100, 0.01, 1.0)
    assert latency["avg"] == pytest.approx(0.505)
    assert latency["p50"] == pytest.approx(0.50, rel=RELATIVE_ERROR)
    assert latency["p99"] == pytest.approx(0.99, rel=RELATIVE_ERROR)


def test_time_per_output_token_is_over_those_after_the_first_and_absent_if_there_is_none():
    latency = recorded(
        call(ttft_s=0.2, decode_s=0.8, num_output_tokens=5), call(ttft_s=0.1, decode_s=0.0, num_output_tokens=1)
    ).snapshot()["latency"]
    assert (latency["tpot_s"]["count"], latency["tpot_s"]["avg"]) == (1, pytest.approx(0.2))
    assert latency["ttft_s"]["count"] == 2


def test_what_is_not_known_is_none_rather_than_zero():
    latency = recorded(call("ServerError")).snapshot()["latency"]
    assert latency["e2e_s"] == {"count": 0, "min": None, "max": None, "avg": None} | dict.fromkeys(
        ("p50", "p90", "p95", "p99")
    )
    assert ClientMetrics().snapshot()["requests"]["success_rate"] is None


def test_figures_are_told_apart_by_model_endpoint_and_priority():
    figures = recorded(
        call(model="a", endpoint_id="x", priority=0),
        call(model="a", endpoint_id="y", priority=2),
        call("ServerError", model="b", endpoint_id="y", priority=2),
    ).snapshot()
    assert {name: part["requests"]["total"] for name, part in figures["models"].items()} == {"a": 2, "b": 1}
    assert {name: part["requests"]["failed"] for name, part in figures["endpoints"].items()} == {"x": 0, "y": 1}
    assert {name: part["requests"]["total"] for name, part in figures["priorities"].items()} == {"0": 1, "2": 2}


def test_batches_are_counted():
    metrics = ClientMetrics()
    for size in (8, 4):
        metrics.record_batch(size)
    assert metrics.snapshot()["batches"] == {"count": 2, "items": 12, "avg_size": 6.0, "max_size": 8}


def test_a_reset_begins_anew_and_every_call_is_in_one_snapshot():
    metrics = ClientMetrics()
    seen = 0
    done = threading.Event()

    def record() -> None:
        for _ in range(3000):
            metrics.record(call())
        done.set()

    thread = threading.Thread(target=record)
    thread.start()
    while not done.is_set():
        seen += metrics.snapshot(reset=True)["requests"]["total"]
    thread.join()
    seen += metrics.snapshot(reset=True)["requests"]["total"]
    assert seen == 3000
    assert metrics.snapshot()["requests"]["total"] == 0
    assert metrics.recent == []


def test_only_the_newest_calls_are_kept():
    metrics = recorded(*(call(request_id=str(number)) for number in range(1500)))
    assert [metrics.recent[0].request_id, metrics.recent[-1].request_id] == ["500", "1499"]


def test_memory_is_bounded_whatever_names_and_numbers_of_calls_come():
    def odd(number: int, model: str, endpoint: str) -> CallRecord:
        return call(
            f"outcome {number % 50}",
            model=model,
            endpoint_id=endpoint,
            priority=number % 3,
            queue_s=1e-9,
            ttft_s=1e9,
            decode_s=number * 1e-4,
            num_output_tokens=number,
            request_id="z" * 10_000,
        )

    tracemalloc.start()
    try:
        metrics = recorded(*(odd(number, f"m{number % 31}", f"e{number % 29}") for number in range(1000)))
        for number in range(2000):
            metrics.record(odd(number, f"{number}" + "y" * 1000, f"new {number}"))
        size, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    figures = metrics.snapshot()
    assert size < 10_000_000
    assert figures["requests"]["total"] == 3000
    assert len(figures["models"]) <= 33
    assert len(figures["endpoints"]) <= 33
    assert len(figures["requests"]["by_outcome"]) == 32, "Success is one of those that are told apart."
    assert figures["models"]["other"]["requests"]["total"] > 1900


def test_prometheus_reads_the_text_and_finds_the_same_figures():
    metrics = recorded(
        call(model='a "quoted"\nname\\', duration_s=0.3, queue_s=0.0, ttft_s=0.1, num_output_tokens=4, num_attempts=2),
        call(model="b", duration_s=20_000.0),
        call("ServerError", model="b"),
    )
    metrics.record_batch(3)
    families = {family.name: family for family in text_string_to_metric_families(metrics.prometheus())}
    requests = {
        (sample.labels["model"], sample.labels["outcome"]): sample.value
        for sample in families["vllm_mxext_client_requests"].samples
    }
    assert requests == {('a "quoted"\nname\\', "success"): 1.0, ("b", "success"): 1.0, ("b", "ServerError"): 1.0}
    assert sum(sample.value for sample in families["vllm_mxext_client_retries"].samples) == 1
    assert sum(sample.value for sample in families["vllm_mxext_client_output_tokens"].samples) == 4
    assert families["vllm_mxext_client_batched_items"].samples[0].value == 3
    e2e = families["vllm_mxext_client_e2e_seconds"]
    buckets = {
        float(sample.labels["le"]): sample.value
        for sample in e2e.samples
        if sample.name.endswith("_bucket") and sample.labels["model"] != "b"
    }
    assert (buckets[0.25], buckets[0.5], buckets[math.inf]) == (0.0, 1.0, 1.0)
    assert "vllm_mxext_client_ttft_seconds" in families
    assert not families["vllm_mxext_client_tpot_seconds"].samples


def test_a_histograms_buckets_never_fall():
    metrics = recorded(*(call(duration_s=10 ** (number / 50)) for number in range(-250, 250)))
    e2e = next(
        family
        for family in text_string_to_metric_families(metrics.prometheus())
        if family.name == "vllm_mxext_client_e2e_seconds"
    )
    values = [sample.value for sample in e2e.samples if sample.name.endswith("_bucket")]
    assert values == sorted(values)
    assert values[-1] == 500


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    values=st.lists(st.floats(1e-4, 1e4), min_size=1, max_size=200),
    share=st.floats(0, 1),
    cut=st.integers(0, 200),
)
def test_a_quantile_is_within_one_percent_however_values_are_divided_among_merged_sketches(
    values: list[float], share: float, cut: int
):
    merged = Sketch()
    for part in (values[:cut], values[cut:]):
        sketch = Sketch()
        for value in part:
            sketch.add(value)
        merged.merge(sketch)
    true = sorted(values)[max(1, math.ceil(share * len(values))) - 1]
    assert merged.quantile(share) == pytest.approx(true, rel=RELATIVE_ERROR * 1.000001)
    assert (merged.count, merged.minimum, merged.maximum) == (len(values), min(values), max(values))
    assert merged.total == pytest.approx(sum(values))


def test_values_beyond_the_range_keep_their_extremes_and_nonsense_is_left_out():
    sketch = Sketch()
    for value in (0.0, 1e9, -1.0, math.nan, math.inf):
        sketch.add(value)
    assert (sketch.count, sketch.minimum, sketch.maximum) == (2, 0.0, 1e9)
    assert 0 <= sketch.quantile(0.0) <= 1e-4
    with pytest.raises(ValueError, match="no values"):
        Sketch().quantile(0.5)
