"""Figures over repeated or many measurements: median, percentiles, spread."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Summary:
    """What is reported of a set of measurements, in their unit."""

    median: float
    mean: float
    p95: float
    p99: float
    minimum: float
    maximum: float
    count: int

    def as_dict(self, digits: int = 4) -> dict[str, float]:
        """Returns rounded figures for JSON."""
        return {name: round(getattr(self, name), digits) for name in self.__slots__}


def summarize(values: Sequence[float]) -> Summary:
    """Summarises at least one measurement."""
    ordered = sorted(values)
    return Summary(
        median=percentile(ordered, 50),
        mean=sum(ordered) / len(ordered),
        p95=percentile(ordered, 95),
        p99=percentile(ordered, 99),
        minimum=ordered[0],
        maximum=ordered[-1],
        count=len(ordered),
    )


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Returns a percentile of ascending values, interpolated linearly between the two nearest."""
    position = (len(ordered) - 1) * percent / 100
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)
