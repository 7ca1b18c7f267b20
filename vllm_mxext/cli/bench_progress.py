"""Runs a plan and shows its progress: one changing line on a terminal, a new line every 10 s elsewhere."""

from __future__ import annotations

import shutil
import sys
import time
import unicodedata
from collections.abc import Callable
from typing import TextIO

from vllm_mxext.bench.serve.labels import LABELS, Language, language_of
from vllm_mxext.bench.serve.plan import Plan
from vllm_mxext.bench.serve.result import RunResult
from vllm_mxext.bench.serve.stage_run import Progress

_ERASE_LINE = "\r\x1b[2K"
_EVERY_S = 10.0


def measure(plan: Plan) -> RunResult:
    """Runs a plan and shows its progress; after Ctrl-C the result holds what was measured so far.

    Raises:
        ConfigError: prompts, addresses or a tokenizer are wrong.
    """
    from vllm_mxext.bench.serve.runner import run_plan  # noqa: PLC0415 - not needed for help and comparisons

    line = ProgressLine(sys.stderr, language=language_of(plan.output.language))
    try:
        return run_plan(plan, line.show)
    finally:
        line.close()


class ProgressLine:
    """Writes progress to a stream.

    Args:
        stream: where to; a terminal gets one line that changes.
        now: returns monotonic seconds.
        language: language of the text.
    """

    def __init__(self, stream: TextIO, now: Callable[[], float] = time.monotonic, language: Language = "en") -> None:
        self._stream = stream
        self._language: Language = language
        self._is_terminal = stream.isatty()
        self._now = now
        self._last_s = now()

    def show(self, progress: Progress) -> None:
        """Shows how far a stage has come."""
        if self._is_terminal:
            text = progress_text(progress, self._language)
            self._stream.write(_ERASE_LINE + fitting(text, shutil.get_terminal_size().columns - 1))
        elif self._now() - self._last_s < _EVERY_S:
            return
        else:
            self._last_s = self._now()
            self._stream.write(progress_text(progress, self._language) + "\n")
        self._stream.flush()

    def close(self) -> None:
        """Clears the line on a terminal."""
        if self._is_terminal:
            self._stream.write(_ERASE_LINE)
            self._stream.flush()


def fitting(text: str, cells: int) -> str:
    """Returns as much of a line as a terminal shows in so many cells; a longer one would stay when it is erased."""
    for end, letter in enumerate(text):
        cells -= 2 if unicodedata.east_asian_width(letter) in "WF" else 1
        if cells < 0:
            return text[:end]
    return text


def progress_text(progress: Progress, language: Language = "en") -> str:
    """Returns one line with the current figures."""
    words = LABELS[language]
    planned = "" if progress.num_planned is None else f"/{progress.num_planned}"
    parts = [
        f"{progress.server}: {progress.stage}",
        words["done"].format(count=f"{progress.num_done}{planned}"),
        words["n_in_flight"].format(count=progress.num_in_flight),
        f"{progress.chunks_per_s:.0f} chunks/s",
        "TTFT n/a" if progress.ttft_s is None else f"TTFT {progress.ttft_s:.3f}s",
        f"{progress.elapsed_s:.0f} s",
    ]
    if progress.num_failed:
        parts.insert(2, words["n_failed"].format(count=progress.num_failed))
    if progress.is_warmup:
        parts.append(words["is_warmup"])
    return ", ".join(parts)
