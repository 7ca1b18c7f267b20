"""`ClientMetrics`: metrics of the client's calls in bounded memory, as a dictionary and as Prometheus text."""

from __future__ import annotations

import copy
import os
import threading
import weakref
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from vllm_mxext.client.sketch import RELATIVE_ERROR, Sketch

if TYPE_CHECKING:
    from prometheus_client import Metric

SUCCESS = "success"
OTHER = "other"
"""Label of all models, endpoints or outcomes beyond the number of labels that are kept apart."""

DURATIONS = {
    "queue_s": "Seconds in the client's queue.",
    "ttft_s": "Seconds from sending to the first token.",
    "tpot_s": "Seconds per output token after the first.",
    "e2e_s": "Seconds of a successful call in all.",
}
"""What is measured, and what it says."""

_MAX_RECENT = 1000
_MAX_LABELS = 32
"""Most models, endpoints and outcomes, each, that are kept apart."""

_MAX_SERIES = 256
"""Most combinations of model, endpoint and priority that are kept apart; each takes up to 30 kB."""

_MAX_LABEL_CHARS = 200
_PERCENTILES = (50, 90, 95, 99)
_BOUNDS_S = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0,
)  # fmt: skip
"""Of Prometheus' buckets."""


@dataclass(frozen=True, slots=True)
class CallRecord:
    """How one call went; no prompt and no answer.

    Attributes:
        model: that was asked for.
        endpoint_id: who was asked last; empty if nobody was.
        priority: 0 high, 1 normal, 2 low.
        outcome: `success`, or the class of the error.
        duration_s: of the call in all.
        queue_s: in the client's queue; None if it did not come so far.
        ttft_s: from sending the last attempt to its first token; None if that is not known.
        decode_s: from the first token to the last; None if that is not known.
        num_prompt_tokens: as the server counts.
        num_output_tokens: as the server counts.
        num_attempts: tries, hedges included.
        request_id: of the server.
        ended_at_s: Unix time.
    """

    model: str
    endpoint_id: str
    priority: int
    outcome: str
    duration_s: float
    queue_s: float | None = None
    ttft_s: float | None = None
    decode_s: float | None = None
    num_prompt_tokens: int = 0
    num_output_tokens: int = 0
    num_attempts: int = 1
    request_id: str = ""
    ended_at_s: float = 0.0

    @property
    def tpot_s(self) -> float | None:
        """Seconds per output token after the first; None if there is no second one."""
        if self.decode_s is None or self.num_output_tokens < 2:
            return None
        return self.decode_s / (self.num_output_tokens - 1)

    @property
    def e2e_s(self) -> float | None:
        """Seconds of the call in all; None if it failed, as failures have durations of their own."""
        return self.duration_s if self.outcome == SUCCESS else None


@dataclass(slots=True)
class _Series:
    """Sums over the calls of one model, endpoint and priority, or of several."""

    outcomes: Counter[str] = field(default_factory=Counter)
    num_retries: int = 0
    num_prompt_tokens: int = 0
    num_output_tokens: int = 0
    durations: dict[str, Sketch] = field(default_factory=dict)

    def add(self, call: CallRecord, outcome: str) -> None:
        self.outcomes[outcome] += 1
        self.num_retries += max(0, call.num_attempts - 1)
        self.num_prompt_tokens += call.num_prompt_tokens
        self.num_output_tokens += call.num_output_tokens
        for name in DURATIONS:
            value = getattr(call, name)
            if value is not None:
                self.durations.setdefault(name, Sketch()).add(value)

    def merge(self, other: _Series) -> None:
        self.outcomes.update(other.outcomes)
        self.num_retries += other.num_retries
        self.num_prompt_tokens += other.num_prompt_tokens
        self.num_output_tokens += other.num_output_tokens
        for name, sketch in other.durations.items():
            self.durations.setdefault(name, Sketch()).merge(sketch)

    def as_dict(self) -> dict[str, Any]:
        total, succeeded = self.outcomes.total(), self.outcomes[SUCCESS]
        return {
            "requests": {
                "total": total,
                "succeeded": succeeded,
                "failed": total - succeeded,
                "success_rate": succeeded / total if total else None,
                "by_outcome": {outcome: count for outcome, count in sorted(self.outcomes.items()) if count},
            },
            "retries": self.num_retries,
            "tokens": {"prompt": self.num_prompt_tokens, "output": self.num_output_tokens},
            "latency": {name: _summary(self.durations.get(name)) for name in DURATIONS},
        }


@dataclass(slots=True)
class _Batches:
    count: int = 0
    num_items: int = 0
    largest: int = 0


_Key = tuple[str, str, int]
"""Model, endpoint, priority."""


_instances: weakref.WeakSet[ClientMetrics] = weakref.WeakSet()


class ClientMetrics:
    """Counts calls by model, endpoint and priority; may be used by several threads.

    Takes at most about 10 MB, whatever happens: the newest calls in a ring, durations as sketches, and only so many
    models, endpoints and outcomes, with `other` for the rest.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        _instances.add(self)
        self._recent: deque[CallRecord] = deque(maxlen=_MAX_RECENT)
        self._forget()

    @property
    def recent(self) -> list[CallRecord]:
        """The newest calls, oldest first."""
        with self._lock:
            return list(self._recent)

    def record(self, call: CallRecord) -> None:
        """Takes how a call went; of names only the beginning is kept."""
        call = replace(
            call,
            model=_label(call.model),
            endpoint_id=_label(call.endpoint_id),
            request_id=_label(call.request_id),
        )
        with self._lock:
            self._recent.append(call)
            model = _known(self._models, call.model)
            endpoint = _known(self._endpoints, call.endpoint_id)
            outcome = _known(self._outcomes, call.outcome)
            key = (model, endpoint, call.priority)
            if key not in self._series and len(self._series) >= _MAX_SERIES:
                key = (OTHER, OTHER, call.priority)
            self._series.setdefault(key, _Series()).add(call, outcome)

    def record_batch(self, num_items: int) -> None:
        """Takes that so many requests were sent as one."""
        with self._lock:
            self._batches.count += 1
            self._batches.num_items += num_items
            self._batches.largest = max(self._batches.largest, num_items)

    def snapshot(self, *, reset: bool = False) -> dict[str, Any]:
        """Returns all figures: in all, and per model, endpoint and priority. Times are seconds, unknown ones None.

        Percentiles are within `quantile_error` (relative), everything else is exact.

        Args:
            reset: begin from nothing, in the same moment, so that every call is in exactly one snapshot.
        """
        series, batches = self._read(reset=reset)
        return {
            **_merged(series.values()).as_dict(),
            "batches": {
                "count": batches.count,
                "items": batches.num_items,
                "avg_size": batches.num_items / batches.count if batches.count else None,
                "max_size": batches.largest,
            },
            "models": _grouped(series, lambda key: key[0]),
            "endpoints": _grouped(series, lambda key: key[1]),
            "priorities": _grouped(series, lambda key: str(key[2])),
            "quantile_error": RELATIVE_ERROR,
        }

    def prometheus(self) -> str:
        """Returns all figures in Prometheus' text format; they begin again at 0 after `snapshot(reset=True)`."""
        from prometheus_client import CollectorRegistry, generate_latest  # noqa: PLC0415 - needed by few callers
        from prometheus_client.registry import Collector  # noqa: PLC0415

        series, batches = self._read(reset=False)

        class Figures(Collector):
            def collect(self) -> Iterator[Metric]:
                return _families(series, batches)

        registry = CollectorRegistry()
        registry.register(Figures())
        return generate_latest(registry).decode()

    def _read(self, *, reset: bool) -> tuple[dict[_Key, _Series], _Batches]:
        with self._lock:
            series, batches = self._series, self._batches
            if not reset:
                return copy.deepcopy(series), copy.copy(batches)
            self._recent.clear()
            self._forget()
            return series, batches

    def unlock(self) -> None:
        """Begins with a new lock: the thread that held the old one has stayed in the process that forked."""
        self._lock = threading.Lock()

    def _forget(self) -> None:
        self._series: dict[_Key, _Series] = {}
        self._batches = _Batches()
        self._models: set[str] = set()
        self._endpoints: set[str] = set()
        self._outcomes: set[str] = {SUCCESS}


def _unlock_all() -> None:
    for one in _instances:
        one.unlock()


os.register_at_fork(after_in_child=_unlock_all)


def _label(name: str) -> str:
    """Returns the beginning of a name, in characters that can be written."""
    return name[:_MAX_LABEL_CHARS].encode("utf-8", "replace").decode()


def _known(labels: set[str], value: str) -> str:
    """Returns a label's value, or `other` if there are too many already."""
    if value not in labels:
        if len(labels) >= _MAX_LABELS:
            return OTHER
        labels.add(value)
    return value


def _merged(parts: Iterable[_Series]) -> _Series:
    merged = _Series()
    for part in parts:
        merged.merge(part)
    return merged


def _grouped(series: Mapping[_Key, _Series], name_of: Callable[[_Key], str]) -> dict[str, dict[str, Any]]:
    names = sorted({name_of(key) for key in series})
    return {name: _merged(part for key, part in series.items() if name_of(key) == name).as_dict() for name in names}


def _summary(sketch: Sketch | None) -> dict[str, float | int | None]:
    if sketch is None or not sketch.count:
        return {"count": 0, "min": None, "max": None, "avg": None, **{f"p{share}": None for share in _PERCENTILES}}
    return {
        "count": sketch.count,
        "min": sketch.minimum,
        "max": sketch.maximum,
        "avg": sketch.total / sketch.count,
        **{f"p{share}": sketch.quantile(share / 100) for share in _PERCENTILES},
    }


def _families(series: Mapping[_Key, _Series], batches: _Batches) -> Iterator[Metric]:
    from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily  # noqa: PLC0415

    prefix, labels = "vllm_mxext_client", ("model", "endpoint", "priority")
    values = {key: (key[0], key[1], str(key[2])) for key in series}

    requests = CounterMetricFamily(f"{prefix}_requests", "Calls that have ended.", labels=(*labels, "outcome"))
    for key, part in series.items():
        for outcome, count in part.outcomes.items():
            requests.add_metric((*values[key], outcome), count)
    yield requests
    for name, text, attribute in (
        ("retries", "Attempts beyond the first of a call.", "num_retries"),
        ("prompt_tokens", "Prompt tokens, as servers count.", "num_prompt_tokens"),
        ("output_tokens", "Output tokens, as servers count.", "num_output_tokens"),
    ):
        counter = CounterMetricFamily(f"{prefix}_{name}", text, labels=labels)
        for key, part in series.items():
            counter.add_metric(values[key], getattr(part, attribute))
        yield counter
    yield CounterMetricFamily(f"{prefix}_batches", "Requests that stood for several.", value=batches.count)
    yield CounterMetricFamily(f"{prefix}_batched_items", "Items of those.", value=batches.num_items)
    for name, text in DURATIONS.items():
        histogram = HistogramMetricFamily(f"{prefix}_{name.removesuffix('_s')}_seconds", text, labels=labels)
        for key, part in series.items():
            if name in part.durations:
                sketch = part.durations[name]
                buckets = [(str(bound), float(sketch.num_up_to(bound))) for bound in _BOUNDS_S]
                histogram.add_metric(values[key], [*buckets, ("+Inf", float(sketch.count))], sketch.total)
        yield histogram
