"""`ReadingMeter`: how far the reading of stored files is, as events that come a few times a second."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from vllm_mxext.hub.progress import Listener, Phase, Progress
from vllm_mxext.hub.store.snapshot import Snapshot

_EVENT_S = 0.25


class ReadingMeter:
    """Counts what was read; used from several threads.

    Args:
        name: of the model, for events.
        sizes: of the files that will be read.
        listener: gets events.
        monotonic: seconds.
        detail: one short phrase for events.
    """

    def __init__(
        self,
        name: str,
        sizes: Sequence[int],
        listener: Listener,
        monotonic: Callable[[], float] = time.monotonic,
        detail: str = "",
    ) -> None:
        self._name, self._listener, self._monotonic, self._detail = name, listener, monotonic, detail
        self._total, self._num_files = sum(sizes), len(sizes)
        self._done = self._num_done = 0
        self._start_s = self._last_s = monotonic()
        self._lock = threading.Lock()

    def add(self, num_bytes: int) -> None:
        """Counts bytes."""
        with self._lock:
            self._done += num_bytes
            now_s = self._monotonic()
            if now_s - self._last_s >= _EVENT_S:
                self._last_s = now_s
                self._tell(now_s)

    def finish(self) -> None:
        """Counts a file; the last one makes an event."""
        with self._lock:
            self._num_done += 1
            if self._num_done == self._num_files:
                self._tell(self._monotonic())

    def _tell(self, now_s: float) -> None:
        rate = self._done / max(now_s - self._start_s, 1e-6)
        self._listener(
            Progress(
                self._name,
                Phase.VERIFYING,
                self._done,
                self._total,
                self._num_done,
                self._num_files,
                rate_bytes_s=rate,
                eta_s=(self._total - self._done) / rate if rate else None,
                detail=self._detail,
            )
        )


def label(snapshots: Sequence[Snapshot]) -> str:
    """Returns the name of the only model, or how many there are."""
    names = {one.name for one in snapshots}
    return names.pop() if len(names) == 1 else f"{len(names)} models"
