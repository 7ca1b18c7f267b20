"""Monitoring during a run: the client's own lag, and the servers' `/metrics`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from vllm_mxext.bench.metrics import percentile
from vllm_mxext.bench.serve.labels import LABELS, Language
from vllm_mxext.bench.serve.result import ClientLag, MetricsSample
from vllm_mxext.bench.serve.wire import Wire, WireError

_TICK_S = 0.01
_SCRAPE_S = 1.0
_MAX_SAMPLES = 600
_FREE_LAG_S = 0.005
_SHARE = 0.1
_MAX_CPU = 0.9


class LagWatch:
    """Measures how late the event loop wakes up, and how much CPU time this process uses."""

    def __init__(self) -> None:
        self._delays: list[float] = []
        self._started_s = self._cpu_s = 0.0
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Starts measuring."""
        self._started_s, self._cpu_s = time.monotonic(), time.process_time()
        self._task = asyncio.create_task(self._watch())

    async def stop(self, send_lags_s: Sequence[float], num_chunks: int) -> ClientLag:
        """Stops and returns what was measured.

        Args:
            send_lags_s: how late requests with a schedule were sent.
            num_chunks: events read meanwhile.
        """
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        seconds = max(time.monotonic() - self._started_s, 1e-9)
        delays, lags = sorted(self._delays) or [0.0], sorted(send_lags_s)
        return ClientLag(
            loop_delay_p50_s=percentile(delays, 50),
            loop_delay_p99_s=percentile(delays, 99),
            loop_delay_max_s=delays[-1],
            send_lag_p99_s=percentile(lags, 99) if lags else None,
            send_lag_max_s=lags[-1] if lags else None,
            cpu_share=(time.process_time() - self._cpu_s) / seconds,
            chunks_per_s=num_chunks / seconds,
        )

    async def _watch(self) -> None:
        while True:
            due = time.monotonic() + _TICK_S
            await asyncio.sleep(_TICK_S)
            self._delays.append(max(time.monotonic() - due, 0.0))


def lag_reasons(stage: str, lag: ClientLag, typical_s: float | None, language: Language = "en") -> list[str]:
    """Returns why the client was the bottleneck of a stage; empty if it was not.

    Args:
        stage: its name.
        lag: what was measured.
        typical_s: median TTFT, or E2E without streaming; None without answers.
        language: of the sentences.
    """
    limit = max(_FREE_LAG_S, _SHARE * (typical_s or 0.0))
    words, reasons = LABELS[language], []
    for name, late in (("late", lag.loop_delay_p99_s), ("late_sending", lag.send_lag_p99_s)):
        if late is not None and late > limit:
            reasons.append(words[name].format(stage=stage, late=late * 1000, limit=limit * 1000))
    if lag.cpu_share > _MAX_CPU:
        reasons.append(words["busy"].format(stage=stage, share=lag.cpu_share))
    return reasons


class Scraper:
    """Scrapes a server's `/metrics` periodically; a server without them is not asked again.

    Args:
        wire: connections to the server.
        server: its label.
        origin_s: monotonic seconds when the run began.
    """

    def __init__(self, wire: Wire, server: str, origin_s: float) -> None:
        self._wire = wire
        self._server = server
        self._origin_s = origin_s
        self._pages: list[tuple[float, bytes]] = []
        self._interval_s = _SCRAPE_S
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Scrapes once and, if that works, goes on in the background."""
        if await self._scrape():
            self._task = asyncio.create_task(self._go_on())

    async def stop(self) -> tuple[MetricsSample, ...]:
        """Scrapes a last time and returns all samples."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            await self._scrape()
        # Parsed only now: it takes milliseconds, during which no event would be timestamped.
        return tuple(MetricsSample(at, self._server, parse_metrics(page)) for at, page in self._pages)

    async def _go_on(self) -> None:
        while True:
            await asyncio.sleep(self._interval_s)
            await self._scrape()
            if len(self._pages) > _MAX_SAMPLES:
                self._pages = self._pages[::2]
                self._interval_s *= 2

    async def _scrape(self) -> bool:
        try:
            exchange = await self._wire.send("GET", "/metrics", timeout_s=5.0)
        except WireError:
            return False
        if exchange.status != 200:
            return False
        self._pages.append((exchange.ended_s - self._origin_s, bytes(exchange.body)))
        return True


def parse_metrics(page: bytes) -> dict[str, float]:
    """Returns the series of a page in Prometheus' text format, without histogram buckets and creation times."""
    values = {}
    for line in page.decode("utf-8", "replace").split("\n"):
        series, _, number = line.rstrip().rpartition(" ")
        name = series.partition("{")[0]
        if not series or line.startswith("#") or name.endswith(("_bucket", "_created")):
            continue
        try:
            values[series] = float(number)
        except ValueError:
            continue
    return values
