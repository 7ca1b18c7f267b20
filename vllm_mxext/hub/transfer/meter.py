"""`Meter`: what is done of a download and how fast, as events that come at most some times a second."""

from __future__ import annotations

import threading
from collections import deque

from vllm_mxext.hub.progress import Listener, Phase, Progress
from vllm_mxext.hub.transfer.pace import Clock

_EVENT_S = 0.25
_WINDOW_S = 5.0


class Meter:
    """Counts what arrives; used from several threads.

    Args:
        model: name of the model, for events.
        listener: gets them, from the thread that calls `tell()`.
        clock: time.
    """

    def __init__(self, model: str, listener: Listener, clock: Clock) -> None:
        self._model = model
        self._listener = listener
        self._clock = clock
        self._lock = threading.Lock()
        self._num_received = 0
        self._samples: deque[tuple[float, int]] = deque([(clock.monotonic(), 0)])
        self._next_s = clock.monotonic()
        self.detail = ""
        """One short phrase for the next event."""

    def received(self, num_bytes: int) -> None:
        """Counts bytes from the network."""
        with self._lock:
            self._num_received += num_bytes

    @property
    def is_due(self) -> bool:
        """Whether the last event is long enough ago."""
        return self._clock.monotonic() >= self._next_s

    def tell(self, done_bytes: int, total_bytes: int, num_files_done: int, num_files: int) -> None:
        """Sends an event."""
        now = self._clock.monotonic()
        self._next_s = now + _EVENT_S
        rate = self._rate(now)
        left = total_bytes - done_bytes
        self._listener(
            Progress(
                self._model,
                Phase.DOWNLOADING,
                done_bytes,
                total_bytes,
                num_files_done,
                num_files,
                rate_bytes_s=rate,
                eta_s=max(0.0, left / rate) if rate > 0 and total_bytes else None,
                detail=self.detail,
            )
        )

    def _rate(self, now: float) -> float:
        with self._lock:
            self._samples.append((now, self._num_received))
        while len(self._samples) > 2 and self._samples[1][0] <= now - _WINDOW_S:
            self._samples.popleft()
        (start, before), (end, after) = self._samples[0], self._samples[-1]
        return (after - before) / (end - start) if end > start else 0.0
