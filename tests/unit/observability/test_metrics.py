"""Prometheus figures: the names, labels and buckets that dashboards for vLLM read."""

from __future__ import annotations

import re
from typing import get_args

import pytest
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families

from vllm_mxext.observability.metrics import TTFT_BUCKETS_S, PrometheusMetrics, token_count_buckets
from vllm_mxext.observability.stats import FinishedRequest, StepStats
from vllm_mxext.outputs import FinishReasonName, RequestMetrics

pytestmark = pytest.mark.promise("OPS-3")

NAMES = """
vllm:num_requests_running vllm:num_requests_waiting vllm:kv_cache_usage_perc vllm:gpu_cache_usage_perc
vllm:prefix_cache_queries_total vllm:prefix_cache_hits_total vllm:num_preemptions_total
vllm:prompt_tokens_total vllm:generation_tokens_total vllm:request_success_total vllm:iteration_tokens_total_count
vllm:time_to_first_token_seconds_bucket vllm:inter_token_latency_seconds_bucket
vllm:time_per_output_token_seconds_bucket vllm:request_time_per_output_token_seconds_bucket
vllm:e2e_request_latency_seconds_bucket vllm:request_queue_time_seconds_sum vllm:request_inference_time_seconds_sum
vllm:request_prefill_time_seconds_sum vllm:request_decode_time_seconds_sum vllm:request_prompt_tokens_bucket
vllm:request_generation_tokens_bucket vllm:request_max_num_generation_tokens_bucket vllm:request_params_n_bucket
vllm:request_params_max_tokens_bucket
vllm:spec_decode_num_drafts_total vllm:spec_decode_num_draft_tokens_total vllm:spec_decode_num_accepted_tokens_total
""".split()  # noqa: SIM905 - a list of names reads best as text


@pytest.fixture
def metrics() -> PrometheusMetrics:
    return PrometheusMetrics("tiny", 1000)


def figures(metrics: PrometheusMetrics) -> dict[str, float]:
    """Sample name with its labels besides model and engine -> value."""
    result = {}
    for family in text_string_to_metric_families(metrics.render()[0].decode()):
        for sample in family.samples:
            labels = {k: v for k, v in sample.labels.items() if k not in ("model_name", "engine")}
            result[sample.name + (str(labels) if labels else "")] = sample.value
    return result


@pytest.mark.parametrize("name", NAMES)
def test_every_promised_name_is_there_from_the_start_with_model_and_engine(metrics, name):
    lines = [line for line in metrics.render()[0].decode().splitlines() if re.match(re.escape(name) + r"\{", line)]

    assert lines
    assert all('model_name="tiny"' in line and 'engine="0"' in line for line in lines)


def test_each_server_has_its_own_figures_and_the_global_registry_none(metrics):
    metrics.record_step(StepStats(num_running=3))

    assert figures(PrometheusMetrics("tiny", 1000))["vllm:num_requests_running"] == 0
    assert not any(name.startswith("vllm:") for name in REGISTRY._names_to_collectors)


def test_steps_set_gauges_and_add_to_counters(metrics):
    metrics.record_step(StepStats(2, 5, 0.25, 40, 1, prefix_cache_queries=100, prefix_cache_hits=60))
    metrics.record_step(StepStats(1, 0, 0.5, 2, 0, prefix_cache_queries=10, prefix_cache_hits=0))

    seen = figures(metrics)
    assert seen["vllm:num_requests_running"] == 1
    assert seen["vllm:num_requests_waiting"] == 0
    assert seen["vllm:kv_cache_usage_perc"] == seen["vllm:gpu_cache_usage_perc"] == 0.5
    assert seen["vllm:num_preemptions_total"] == 1
    assert (seen["vllm:prefix_cache_queries_total"], seen["vllm:prefix_cache_hits_total"]) == (110, 60)
    assert (seen["vllm:iteration_tokens_total_count"], seen["vllm:iteration_tokens_total_sum"]) == (2, 42)


def test_an_idle_report_is_no_iteration(metrics):
    metrics.record_step(StepStats())

    assert figures(metrics)["vllm:iteration_tokens_total_count"] == 0


def test_tokens_are_counted_and_their_gaps_observed_under_both_names(metrics):
    metrics.record_first_token(7, 0.03)
    metrics.record_next_tokens(2, [0.02])

    seen = figures(metrics)
    assert (seen["vllm:prompt_tokens_total"], seen["vllm:generation_tokens_total"]) == (7, 3)
    assert (seen["vllm:time_to_first_token_seconds_count"], seen["vllm:time_to_first_token_seconds_sum"]) == (1, 0.03)
    for name in ("vllm:inter_token_latency_seconds", "vllm:time_per_output_token_seconds"):
        assert (seen[f"{name}_count"], seen[f"{name}_sum"]) == (1, 0.02)
        assert seen[name + "_bucket{'le': '0.025'}"] == 1
        assert seen[name + "_bucket{'le': '0.01'}"] == 0


def test_a_finished_request_fills_every_time_and_size(metrics):
    times = RequestMetrics(arrival_s=10.0, first_scheduled_s=11.0, first_token_s=13.0, finished_s=19.0)
    metrics.record_finished(FinishedRequest(["stop", "length"], times, 30, [4, 7], max_tokens=8))

    seen = figures(metrics)
    assert seen["vllm:request_success_total{'finished_reason': 'stop'}"] == 1
    assert seen["vllm:request_success_total{'finished_reason': 'length'}"] == 1
    assert seen["vllm:request_success_total{'finished_reason': 'abort'}"] == 0
    sums = {
        "e2e_request_latency_seconds": 9, "request_queue_time_seconds": 1, "request_inference_time_seconds": 8,
        "request_prefill_time_seconds": 2, "request_decode_time_seconds": 6,
        "request_time_per_output_token_seconds": 1, "request_prompt_tokens": 30, "request_generation_tokens": 11,
        "request_max_num_generation_tokens": 7, "request_params_n": 2, "request_params_max_tokens": 8,
    }  # fmt: skip
    assert {name: seen[f"vllm:{name}_sum"] for name in sums} == sums
    assert seen["vllm:request_generation_tokens_count"] == 2


@pytest.mark.parametrize("reason", get_args(FinishReasonName))
def test_every_way_to_end_is_counted(metrics, reason):
    metrics.record_finished(FinishedRequest([reason], RequestMetrics(1.0, finished_s=2.0), 5, [0]))

    assert figures(metrics)[f"vllm:request_success_total{{'finished_reason': '{reason}'}}"] == 1


@pytest.mark.parametrize(
    ("times", "missing"),
    [
        (RequestMetrics(1.0, finished_s=2.0), "request_queue_time_seconds"),
        (RequestMetrics(1.0, 1.5, finished_s=2.0), "request_decode_time_seconds"),
        (RequestMetrics(1.0, 1.5, 1.6), "e2e_request_latency_seconds"),
    ],
    ids=["never scheduled", "no token", "no end"],
)
def test_times_that_never_came_are_not_observed(metrics, times, missing):
    metrics.record_finished(FinishedRequest(["abort"], times, 5, [0]))

    seen = figures(metrics)
    assert seen[f"vllm:{missing}_count"] == 0
    assert seen["vllm:request_success_total{'finished_reason': 'abort'}"] == 1


def test_a_single_token_has_no_time_per_output_token(metrics):
    metrics.record_finished(FinishedRequest(["stop"], RequestMetrics(1.0, 1.5, 1.6, 1.6), 5, [1]))

    assert figures(metrics)["vllm:request_time_per_output_token_seconds_count"] == 0


def test_rejections_are_counted_by_reason(metrics):
    metrics.record_rejection("queue_full")
    metrics.record_rejection("queue_full")

    assert figures(metrics)["vllm:admission_rejections_total{'reason': 'queue_full'}"] == 2


def test_the_last_cache_settings_become_labels(metrics):
    metrics.record_cache_config({"block_size": 16, "num_gpu_blocks": 9})
    metrics.record_cache_config({"block_size": 16, "num_gpu_blocks": 10})

    info = {name: value for name, value in figures(metrics).items() if name.startswith("vllm:cache_config_info")}
    assert info == {"vllm:cache_config_info{'block_size': '16', 'num_gpu_blocks': '10'}": 1}


def test_buckets_are_the_promised_ones():
    assert TTFT_BUCKETS_S[:5] == (0.001, 0.005, 0.01, 0.02, 0.04)
    assert TTFT_BUCKETS_S[-1] == 2560
    assert token_count_buckets(256) == (1, 2, 5, 10, 20, 50, 100, 200)
    assert token_count_buckets(0) == (1,)


@pytest.mark.promise("SPEC-6")
def test_drafts_are_counted_with_their_places(metrics):
    metrics.record_step(StepStats(num_drafts=2, num_draft_tokens=7, num_accepted_per_position=[2, 1, 0, 0]))
    metrics.record_step(StepStats(num_drafts=1, num_draft_tokens=4, num_accepted_per_position=[1, 1, 1, 0]))
    metrics.record_step(StepStats())

    counted = {name.removeprefix("vllm:spec_decode_num_"): value for name, value in figures(metrics).items()}
    assert counted["drafts_total"] == 3
    assert counted["draft_tokens_total"] == 11
    assert counted["accepted_tokens_total"] == 6
    by_place = [counted[f"accepted_tokens_per_pos_total{{'position': '{place}'}}"] for place in range(4)]
    assert by_place == [3, 2, 1, 0]
