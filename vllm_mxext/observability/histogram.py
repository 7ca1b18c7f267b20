"""`Histogram`: a Prometheus histogram that is cheap to observe, for figures that arise at every token."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate

from prometheus_client.metrics_core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString


class Histogram(Collector):
    """Counts values by bucket, under one set of labels.

    Takes no lock: for one thread that observes, beside any that collect.

    Args:
        names: under which it is exported.
        text: what it says.
        labels: their values by name.
        buckets: upper bounds, ascending, without the infinite one.
    """

    def __init__(self, names: Sequence[str], text: str, labels: Mapping[str, str], buckets: Sequence[float]) -> None:
        self._names = names
        self._text = text
        self._labels = labels
        self._bounds = tuple(buckets)
        self._counts = [0] * (len(buckets) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Counts a value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def collect(self) -> Iterator[Metric]:
        """Yields the figures, once under each name."""
        totals = list(accumulate(self._counts))
        bounds = (*map(floatToGoString, self._bounds), "+Inf")
        for name in self._names:
            family = HistogramMetricFamily(name, self._text, labels=list(self._labels))
            family.add_metric(list(self._labels.values()), list(zip(bounds, totals, strict=True)), self._sum)
            yield family
