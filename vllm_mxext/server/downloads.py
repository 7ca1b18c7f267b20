"""`Downloads`: what a server remembers of the download of its model, for health checks, routes and metrics."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from threading import Lock
from typing import Any

from vllm_mxext.hub.progress import Phase, Progress


class Downloads:
    """Listens to a download, from any thread.

    Args:
        now: monotonic time in seconds.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._lock = Lock()
        self._progress: Progress | None = None
        self._phase_began_s = 0.0
        self._seconds: dict[str, float] = {}

    @property
    def progress(self) -> Progress | None:
        """The last thing heard; None if nothing has been downloaded."""
        return self._progress

    @property
    def phase_seconds(self) -> dict[str, float]:
        """Phases that have ended and how long each took."""
        with self._lock:
            return dict(self._seconds)

    def listen(self, progress: Progress) -> None:
        """Takes news."""
        with self._lock:
            before, self._progress = self._progress, progress
            if before is None:
                self._phase_began_s = self._now()
            elif before.phase is not progress.phase:
                self._end_phase(before.phase)

    def _end_phase(self, phase: Phase) -> None:
        now_s = self._now()
        self._seconds[phase.value] = self._seconds.get(phase.value, 0.0) + now_s - self._phase_began_s
        self._phase_began_s = now_s

    def listing(self) -> dict[str, Any]:
        """Returns the body of `/v1/hub/downloads`."""
        progress = self._progress
        if progress is None:
            return {"object": "list", "data": []}
        seconds = self.phase_seconds
        entry = {**asdict(progress), "fraction": progress.fraction, "phase_seconds": seconds}
        return {"object": "list", "data": [entry]}
