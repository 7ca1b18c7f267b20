"""Figures as Python objects, for programs that use the engine without a server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry
from prometheus_client import Metric as MetricFamily


@dataclass(frozen=True, slots=True)
class Metric:
    """One figure.

    Attributes:
        name: as at `/metrics`.
        labels: name -> value.
    """

    name: str
    labels: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Counter(Metric):
    """A figure that only grows.

    Attributes:
        value: its sum so far.
    """

    value: float


@dataclass(frozen=True, slots=True)
class Gauge(Metric):
    """A figure that goes up and down.

    Attributes:
        value: what it is now.
    """

    value: float


@dataclass(frozen=True, slots=True)
class Histogram(Metric):
    """A distribution.

    Attributes:
        count: observations.
        sum: their sum.
        buckets: upper bound -> observations up to it.
    """

    count: float
    sum: float
    buckets: Mapping[str, float]


def read_metrics(registry: CollectorRegistry) -> list[Metric]:
    """Returns every figure of a registry, one object per set of labels."""
    found: list[Metric] = []
    for family in registry.collect():
        if family.type == "histogram":
            found += _histograms(family)
            continue
        for sample in family.samples:
            if sample.name.endswith("_created"):
                continue
            kind = Counter if family.type == "counter" else Gauge
            found.append(kind(family.name, dict(sample.labels), sample.value))
    return found


def _histograms(family: MetricFamily) -> list[Metric]:
    counts: dict[tuple[tuple[str, str], ...], dict[str, float]] = {}
    buckets: dict[tuple[tuple[str, str], ...], dict[str, float]] = {}
    for sample in family.samples:
        labels = tuple((key, value) for key, value in sample.labels.items() if key != "le")
        if sample.name.endswith("_bucket"):
            buckets.setdefault(labels, {})[sample.labels["le"]] = sample.value
        else:
            counts.setdefault(labels, {})[sample.name.removeprefix(f"{family.name}_")] = sample.value
    return [
        Histogram(family.name, dict(labels), values["count"], values["sum"], buckets.get(labels, {}))
        for labels, values in counts.items()
    ]
