"""`DownloadMetrics`: how far the download of the served model is, and, after it, what it came to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import Enum
from typing import Protocol

from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

_PREFIX = "vllm_mxext:hub_download_"


class DownloadFigures(Protocol):
    """How a download stands."""

    @property
    def model(self) -> str:
        """What is downloaded."""
        ...

    @property
    def phase(self) -> Enum:
        """What is being done."""
        ...

    @property
    def done_bytes(self) -> int:
        """Bytes that are there."""
        ...

    @property
    def total_bytes(self) -> int:
        """Bytes of all files; 0 while not known."""
        ...

    @property
    def num_files_done(self) -> int:
        """Files that are whole."""
        ...

    @property
    def num_files(self) -> int:
        """Files in all."""
        ...

    @property
    def rate_bytes_s(self) -> float:
        """Bytes per second."""
        ...


class DownloadMetrics(Collector):
    """Reads the download when it is asked.

    Args:
        read: returns how it stands; None if nothing has been downloaded.
    """

    def __init__(self, read: Callable[[], DownloadFigures | None]) -> None:
        self._read = read

    def collect(self) -> Iterator[Metric]:
        """Yields the figures as they are now; none if nothing has been downloaded."""
        now = self._read()
        if now is None:
            return
        for name, text, value in (
            ("bytes", "Bytes of the model's files that are there.", now.done_bytes),
            ("size_bytes", "Bytes of all files of the model; 0 while not known.", now.total_bytes),
            ("files", "Files of the model that are whole.", now.num_files_done),
            ("size_files", "Files of the model.", now.num_files),
            ("bytes_per_second", "Speed of the download over the last seconds.", now.rate_bytes_s),
        ):
            yield _gauge(name, text, {"model_name": now.model}, value)
        yield _gauge(
            "phase", "What the download is doing: 1 at the label's phase.",
            {"model_name": now.model, "phase": now.phase.value}, 1,
        )  # fmt: skip


def _gauge(name: str, text: str, labels: dict[str, str], value: float) -> Metric:
    family = GaugeMetricFamily(_PREFIX + name, text, labels=tuple(labels))
    family.add_metric(tuple(labels.values()), value)
    return family
