"""Every documented name of the client: what it takes, with which defaults, and what its figures are called."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest

from vllm_mxext import client as package
from vllm_mxext.client.vllm_client import VllmClient

pytestmark = pytest.mark.promise("CLIENT-10")

CLIENT = {
    "run_inference": "model_id=None inputs='' parameters=None priority=1",
    "stream_generation": "model_id=None inputs='' parameters=None priority=1",
    "get_metrics": "reset=False",
    "get_stats": "endpoint_id=None",
    "make_request_with_endpoint": "endpoint_id data model=None parameters=None priority=1",
    "load_lora": "lora_name lora_path fields",
    "unload_lora": "lora_name",
    "list_loras": "",
    "chat_with_lora": "lora_name messages parameters",
}
FUNCTIONS = {
    "create_vllm_endpoint_handler": "endpoint_url model='default'",
    "create_vllm_endpoint_handler_with_params": "endpoint_url model='default' parameters=None",
    "format_request_with_params": "handler inputs parameters",
    "format_structured_request": "handler request",
    "process_batch": "endpoint_url inputs model='default'",
    "process_batch_with_params": "endpoint_url inputs model='default' parameters=None",
    "process_batch_with_metrics": "endpoint_url inputs model='default' parameters=None",
    "get_model_info": "endpoint_url model='default'",
    "get_model_statistics": "endpoint_url model='default'",
    "optimize_model": "endpoint_url model='default' optimization_type='balanced'",
}
STATE = {
    "circuit_state": "CLOSED",
    "failure_count": 0,
    "queue_enabled": True,
    "current_requests": 0,
    "recent_requests": [],
    "batch_enabled": True,
    "max_batch_size": 8,
    "batch_timeout": 0.1,
    "max_concurrent_requests": 10,
}


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> VllmClient:
    for name in ("VLLM_MAX_CONCURRENT", "VLLM_BATCH_SIZE", "VLLM_BATCH_TIMEOUT"):
        monkeypatch.delenv(name, raising=False)
    return VllmClient("key", "http://127.0.0.1:9", max_retries=3, max_concurrent_requests=10, failure_threshold=5)


def taken(function: Callable[..., Any]) -> str:
    parameters = [one for one in inspect.signature(function).parameters.values() if one.name != "self"]
    return " ".join(
        one.name if one.default is inspect.Parameter.empty else f"{one.name}={one.default!r}" for one in parameters
    )


def test_methods_and_functions_take_what_is_documented() -> None:
    assert {name: taken(getattr(VllmClient, name)) for name in CLIENT} == CLIENT
    assert {name: taken(getattr(package, name)) for name in FUNCTIONS} == FUNCTIONS
    assert taken(VllmClient).startswith("api_key=None base_url=None")
    assert taken(package.VllmMxextClient).startswith("base_url='http://0.0.0.0:8000'")


def test_attributes_have_the_documented_values_before_the_first_call(client: VllmClient) -> None:
    assert {name: getattr(client, name) for name in STATE} == STATE
    assert len(client.request_queue) == 0


def test_figures_have_their_documented_names_before_the_first_call(client: VllmClient) -> None:
    metrics = client.get_metrics()
    assert metrics.keys() >= {"requests", "retries", "tokens", "latency", "batches", "models", "endpoints"}
    assert metrics["requests"].keys() >= {"total", "succeeded", "failed", "success_rate"}
    assert metrics["latency"].keys() == {"queue_s", "ttft_s", "tpot_s", "e2e_s"}
    assert metrics["latency"]["e2e_s"].keys() >= {"min", "max", "avg", "p50", "p95", "p99"}
    assert metrics["batches"].keys() >= {"count", "items"}
    assert client.get_stats("main").keys() >= {"circuit_state", "failure_count", "current_requests", "limit"}
