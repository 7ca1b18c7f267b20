"""`metrics` of a response: the times of its request, where the server reports them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.api.refusals import CHAT
from vllm_mxext.config.server import ServerConfig
from vllm_mxext.outputs import RequestMetrics
from vllm_mxext.server.openai.request_metrics import metrics_report

pytestmark = pytest.mark.promise("API-12")

NAMES = {"time_to_first_token_ms", "generation_time_ms", "queue_time_ms", "mean_itl_ms", "tokens_per_second"}
REQUESTS = {"/v1/chat/completions": CHAT, "/v1/completions": {"prompt": "hello"}}
paths = pytest.mark.parametrize("path", REQUESTS)


def test_times_are_told_from_the_schedule_on() -> None:
    metrics = RequestMetrics(arrival_s=10.0, first_scheduled_s=10.5, first_token_s=11.0, finished_s=13.0)
    assert metrics_report(metrics, 5, 0) == {
        "time_to_first_token_ms": 500.0,
        "generation_time_ms": 2000.0,
        "queue_time_ms": 500.0,
        "mean_itl_ms": 500.0,
        "tokens_per_second": 2.0,
    }


@pytest.mark.parametrize(
    "metrics", [None, RequestMetrics(1.0), RequestMetrics(1.0, first_scheduled_s=2.0, finished_s=3.0)], ids=str
)
def test_a_request_without_a_token_has_no_times(metrics: RequestMetrics | None) -> None:
    assert metrics_report(metrics, 0, 0) is None


def test_one_token_has_no_latency_between_tokens() -> None:
    report = metrics_report(RequestMetrics(1.0, first_scheduled_s=1.0, first_token_s=2.0, finished_s=2.0), 1, 0)
    assert report is not None
    assert (report["mean_itl_ms"], report["generation_time_ms"], report["tokens_per_second"]) == (None, 0.0, 1.0)


def test_drafts_are_told_of_step_by_step() -> None:
    drafts = {(3, 0): 39, (3, 1): 1, (2, 2): 3}
    metrics = RequestMetrics(1.0, first_scheduled_s=1.0, first_token_s=2.0, finished_s=2.0, drafts=drafts)
    report = metrics_report(metrics, 50, 3)
    assert report is not None
    assert report["speculative_decoding"] == {
        "mean_acceptance_length": 1 + 7 / 43,
        "draft_acceptance_rate": 7 / 126,
        "acceptance_histogram": [39, 1, 3, 0],
        "acceptance_histogram_by_draft_length": {"2": [0, 0, 3], "3": [39, 1, 0, 0]},
        "num_spec_steps": 43,
        "num_accepted_draft_tokens": 7,
        "num_draft_tokens": 126,
        "num_spec_tokens": 3,
    }
    undrafted = metrics_report(RequestMetrics(1.0, first_scheduled_s=1.0, first_token_s=2.0), 1, 2)
    assert undrafted is not None
    assert undrafted["speculative_decoding"]["acceptance_histogram"] == [0, 0, 0]
    assert undrafted["speculative_decoding"]["mean_acceptance_length"] is None


async def answer(server: Any, path: str, **fields: Any) -> dict[str, Any]:
    response = await server.http.post(path, json=REQUESTS[path] | fields)
    assert response.status_code == 200, response.text
    return response.json()


@paths
async def test_times_come_where_the_server_reports_them_and_nowhere_else(serve, path):
    reporting, silent = await serve(config=ServerConfig(reports_metrics=True)), await serve()
    metrics = (await answer(reporting, path))["metrics"]
    assert metrics.keys() == NAMES
    assert all(value is not None and value >= 0 for value in metrics.values())
    assert "metrics" not in await answer(silent, path)


@paths
async def test_times_of_several_samples_are_nobodys(serve, path):
    server = await serve(config=ServerConfig(reports_metrics=True))
    assert (await answer(server, path, n=2))["metrics"] is None
    if path == "/v1/completions":
        assert (await answer(server, path, prompt=["a", "b"]))["metrics"] is None
    else:
        assert (await answer(server, path, use_beam_search=True, n=2))["metrics"] is None


@paths
async def test_a_stream_tells_the_times_with_its_usage(serve, path):
    server = await serve(config=ServerConfig(reports_metrics=True))
    lines = await server.stream_events(path, REQUESTS[path] | {"stream_options": {"include_usage": True}})
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]
    assert chunks[-1]["metrics"].keys() == NAMES
    assert not any("metrics" in chunk for chunk in chunks[:-1])
