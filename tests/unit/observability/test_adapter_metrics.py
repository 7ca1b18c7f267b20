"""Figures per adapter: vLLM's line, counters, tiers; and that they go with their adapter."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from vllm_mxext.observability.metrics import PrometheusMetrics
from vllm_mxext.observability.reading import Counter, Gauge, read_metrics
from vllm_mxext.observability.stats import FinishedRequest
from vllm_mxext.outputs import RequestMetrics

pytestmark = pytest.mark.promise("LORA-API-4")


@dataclass
class Adapter:
    """An adapter as it stands."""

    name: str
    tier: str = "slot"
    num_bytes: int = 100
    num_running: int = 0
    num_waiting: int = 0


class Server:
    """Metrics over a list of adapters."""

    def __init__(self, *adapters: Adapter) -> None:
        self.adapters = list(adapters)
        self.metrics = PrometheusMetrics("m", 100)
        self.metrics.watch_adapters(4, lambda: self.adapters)

    def finish(self, adapter: str | None) -> None:
        times = RequestMetrics(0.0, finished_s=1.0)
        self.metrics.record_finished(FinishedRequest(["stop", "stop"], times, 10, [2, 3], adapter=adapter))

    def figures(self, name: str, label: str) -> dict[str, float]:
        found = [one for one in read_metrics(self.metrics.registry) if one.name == f"vllm:{name}"]
        return {one.labels[label]: one.value for one in found if isinstance(one, (Counter, Gauge))}


def test_requests_and_tokens_are_counted_per_adapter() -> None:
    server = Server(Adapter("a"), Adapter("b"))
    for adapter in ("a", "a", "b", None):
        server.finish(adapter)
    assert server.figures("lora_requests", "lora_name") == {"a": 2, "b": 1}
    assert server.figures("lora_prompt_tokens", "lora_name") == {"a": 20, "b": 10}
    assert server.figures("lora_generation_tokens", "lora_name") == {"a": 10, "b": 5}


def test_the_counters_of_an_adapter_go_with_it() -> None:
    server = Server(Adapter("a"), Adapter("b"))
    server.finish("a")
    server.finish("b")
    del server.adapters[0]
    server.finish("a")  # a request that outlived its adapter
    assert server.figures("lora_requests", "lora_name") == {"b": 1}


def test_unloaded_names_do_not_pile_up_when_nobody_looks() -> None:
    server = Server()
    for number in range(1000):
        server.adapters = [Adapter(str(number))]
        server.finish(str(number))
    adapters = server.metrics._adapters
    assert adapters is not None
    assert len(adapters._totals) <= 2


def test_adapters_and_their_bytes_are_counted_per_tier() -> None:
    server = Server(Adapter("a"), Adapter("b", num_bytes=50), Adapter("c", "disk", 0))
    assert server.figures("lora_adapters", "tier") == {"slot": 2, "host": 0, "disk": 1}
    assert server.figures("lora_adapter_bytes", "tier") == {"slot": 150, "host": 0, "disk": 0}


def test_vllms_line_names_running_and_waiting_adapters_once() -> None:
    server = Server(Adapter("a", num_running=1, num_waiting=1), Adapter("b", num_running=2), Adapter("c"))
    (line,) = [
        line
        for line in server.metrics.render()[0].decode().splitlines()
        if line.startswith("vllm:lora_reque") and "_info{" in line
    ]
    labels, _, value = line.rpartition(" ")
    assert labels == 'vllm:lora_requests_info{max_lora="4",running_lora_adapters="a,b",waiting_lora_adapters="a"}'
    assert float(value) > 1_600_000_000
    server.adapters[0].num_running = 0
    text = server.metrics.render()[0].decode()
    assert text.count("vllm:lora_requests_info{") == 1
