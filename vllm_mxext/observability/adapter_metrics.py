"""`AdapterMetrics`: the figures of LoRA adapters; those of one that is unloaded go with it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from vllm_mxext.observability.stats import FinishedRequest

TIERS = ("slot", "host", "disk")


class AdapterFigures(Protocol):
    """How an adapter stands."""

    @property
    def name(self) -> str:
        """What requests call it."""
        ...

    @property
    def tier(self) -> str:
        """One of `TIERS`."""
        ...

    @property
    def num_bytes(self) -> int:
        """Memory it takes."""
        ...

    @property
    def num_running(self) -> int:
        """Running requests that use it."""
        ...

    @property
    def num_waiting(self) -> int:
        """Queued requests that are going to."""
        ...


@dataclass(slots=True)
class _Total:
    num_requests: int = 0
    num_prompt_tokens: int = 0
    num_generation_tokens: int = 0


class AdapterMetrics(Collector):
    """Reads adapters when it is asked, and counts their requests meanwhile.

    Args:
        labels: labels of every figure and their values, but for vLLM's own, which has none of them.
        max_loras: adapter slots.
        read: returns the adapters that are loaded now.
        now: Unix time.
    """

    def __init__(
        self,
        labels: Mapping[str, str],
        max_loras: int,
        read: Callable[[], Sequence[AdapterFigures]],
        now: Callable[[], float] = time.time,
    ) -> None:
        self._labels = labels
        self._max_loras = max_loras
        self._read = read
        self._now = now
        self._totals: dict[str, _Total] = {}

    def record_finished(self, request: FinishedRequest) -> None:
        """Takes a request with an adapter at its end."""
        if request.adapter is None:
            return
        if request.adapter not in self._totals:
            self._forget_unloaded(self._read())
        total = self._totals.setdefault(request.adapter, _Total())
        total.num_requests += 1
        total.num_prompt_tokens += request.num_prompt_tokens
        total.num_generation_tokens += sum(request.num_generation_tokens)

    def collect(self) -> Iterator[Metric]:
        """Yields the figures as they are now."""
        adapters = self._read()
        self._forget_unloaded(adapters)
        yield self._requests_info(adapters)
        by_tier = {tier: [one for one in adapters if one.tier == tier] for tier in TIERS}
        yield self._gauge("lora_adapters", "Loaded adapters.", {tier: len(found) for tier, found in by_tier.items()})
        sizes = {tier: sum(one.num_bytes for one in found) for tier, found in by_tier.items()}
        yield self._gauge("lora_adapter_bytes", "Host memory that adapters take.", sizes)
        totals = self._totals.items()
        yield self._counter(
            "lora_requests", "Ended requests of an adapter.", {name: total.num_requests for name, total in totals}
        )
        yield self._counter(
            "lora_prompt_tokens", "Their prompt tokens.", {name: total.num_prompt_tokens for name, total in totals}
        )
        yield self._counter(
            "lora_generation_tokens", "Their output tokens.",
            {name: total.num_generation_tokens for name, total in totals},
        )  # fmt: skip

    def _forget_unloaded(self, adapters: Sequence[AdapterFigures]) -> None:
        loaded = {one.name for one in adapters}
        self._totals = {name: total for name, total in self._totals.items() if name in loaded}

    def _requests_info(self, adapters: Iterable[AdapterFigures]) -> Metric:
        """A figure of vLLM's: the time at which its labels were true."""
        waiting = ",".join(one.name for one in adapters if one.num_waiting)
        running = ",".join(one.name for one in adapters if one.num_running)
        family = GaugeMetricFamily(
            "vllm:lora_requests_info", "Running stats on lora requests.",
            labels=("max_lora", "waiting_lora_adapters", "running_lora_adapters"),
        )  # fmt: skip
        family.add_metric((str(self._max_loras), waiting, running), self._now())
        return family

    def _gauge(self, name: str, text: str, values: Mapping[str, float]) -> Metric:
        return self._filled(GaugeMetricFamily(f"vllm:{name}", text, labels=(*self._labels, "tier")), values)

    def _counter(self, name: str, text: str, values: Mapping[str, float]) -> Metric:
        return self._filled(CounterMetricFamily(f"vllm:{name}", text, labels=(*self._labels, "lora_name")), values)

    def _filled(self, family: GaugeMetricFamily | CounterMetricFamily, values: Mapping[str, float]) -> Metric:
        for label, value in values.items():
            family.add_metric((*self._labels.values(), label), value)
        return family
