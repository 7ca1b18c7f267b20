"""`display()`: progress for people and programs: a bar on a terminal, a line now and then elsewhere, or JSON lines."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, TextIO

from vllm_mxext.config.memory_plan import format_bytes
from vllm_mxext.hub.progress import Listener, Phase, Progress
from vllm_mxext.logger import init_logger

logger = init_logger(__name__)

LINE_S = 10.0
"""Seconds between two lines of a log."""


@contextmanager
def display(
    stream: TextIO | None = None, *, as_json: bool = False, monotonic: Callable[[], float] = time.monotonic
) -> Iterator[Listener]:
    """Shows what the listener is told, in the way that fits.

    Args:
        stream: where bars and JSON lines go; default: the standard error stream.
        as_json: one JSON object per event, for programs.
        monotonic: clock in seconds.
    """
    stream = sys.stderr if stream is None else stream
    shown: _Bar | _Lines | _Json
    if as_json:
        shown = _Json(stream)
    elif stream.isatty():
        shown = _Bar(stream)
    else:
        shown = _Lines(monotonic)
    lock = threading.Lock()

    def listen(progress: Progress) -> None:
        with lock:
            shown.tell(progress)

    try:
        yield listen
    finally:
        shown.close()


def line(progress: Progress) -> str:
    """Returns one moment as a line for people: `downloading org/model: 12%, 1.20 GiB of 9.80 GiB, 1:18 left`."""
    parts = [f"{progress.phase.value} {progress.model}"]
    if progress.total_bytes:
        parts[0] += f": {progress.fraction:.0%}"
        parts.append(f"{format_bytes(progress.done_bytes)} of {format_bytes(progress.total_bytes)}")
    if progress.num_files:
        parts.append(f"{progress.num_files_done} of {progress.num_files} files")
    if progress.rate_bytes_s:
        parts.append(f"{format_bytes(int(progress.rate_bytes_s))}/s")
    if progress.eta_s is not None and progress.phase is Phase.DOWNLOADING:
        parts.append(f"{_duration(progress.eta_s)} left")
    return ", ".join(parts) + (f" ({progress.detail})" if progress.detail else "")


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class _Json:
    """One line of JSON per event; ETA and rate as numbers, the phase as a word."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def tell(self, progress: Progress) -> None:
        event = {**asdict(progress), "phase": progress.phase.value, "fraction": round(progress.fraction, 4)}
        print(json.dumps(event), file=self._stream, flush=True)

    def close(self) -> None:
        """Nothing is open."""


class _Lines:
    """A line of the log when the phase changes, and every ten seconds."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._last: tuple[Phase, str] | None = None
        self._next_s = 0.0

    def tell(self, progress: Progress) -> None:
        now, about = self._monotonic(), (progress.phase, progress.model)
        if about != self._last or now >= self._next_s:
            self._last, self._next_s = about, now + LINE_S
            logger.info("%s", line(progress))

    def close(self) -> None:
        """Nothing is open."""


class _Bar:
    """A bar of bytes; what is done meanwhile is said beside it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._bar: Any = None

    def tell(self, progress: Progress) -> None:
        if self._bar is None:
            from tqdm import tqdm  # noqa: PLC0415 - only terminals need it

            self._bar = tqdm(
                desc=progress.model,
                unit="iB",
                unit_scale=True,
                unit_divisor=1024,
                file=self._stream,
                dynamic_ncols=True,
                initial=progress.done_bytes,
                leave=True,
            )
        self._bar.total = progress.total_bytes or None
        self._bar.n = progress.done_bytes
        if progress.phase is Phase.DOWNLOADING:
            text = f"{progress.num_files_done}/{progress.num_files} files"
        else:
            text = progress.phase.value
        self._bar.set_postfix_str(f"{text}, {progress.detail}" if progress.detail else text, refresh=False)
        self._bar.refresh()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
