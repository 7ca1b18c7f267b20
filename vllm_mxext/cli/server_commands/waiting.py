"""`Waiting`: shows the progress of a start: one changing line on a terminal, a new line per step elsewhere."""

from __future__ import annotations

import shutil
import sys
from types import TracebackType
from typing import TextIO

from vllm_mxext.cli.server_commands.answer import duration
from vllm_mxext.registry.starting import Progress

_FRAMES = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
_FRAMES_PER_S = 10
_PLAIN_EVERY_S = 10.0
_CLEAR = "\r\x1b[K"


class Waiting:
    """Shows progress on standard error; a context manager that clears its line at the end.

    Args:
        name: the server's.
        is_silent: show nothing.
        out: where to write; standard error by default.
    """

    def __init__(self, name: str, *, is_silent: bool, out: TextIO | None = None) -> None:
        self._name = name
        self._out = sys.stderr if out is None else out
        self._is_silent = is_silent
        self._is_terminal = self._out.isatty()
        self._phase: str | None = None
        self._next_s = 0.0

    def __enter__(self) -> Waiting:
        """Returns itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Clears the line."""
        if self._is_terminal and self._phase is not None:
            self._write(_CLEAR)

    def report(self, progress: Progress) -> None:
        """Shows how far the start has come."""
        if self._is_silent:
            return
        phase = progress.phase or "starting"
        shown = f"{self._name}: {phase}, {duration(progress.seconds)}"
        if self._is_terminal:
            frame = _FRAMES[int(progress.seconds * _FRAMES_PER_S) % len(_FRAMES)]
            line = f"{frame} {shown}  {progress.last_line}".replace("\t", " ")
            printable = "".join(one for one in line if one.isprintable())  # a log may hold codes of its own
            self._write(_CLEAR + printable[: max(20, shutil.get_terminal_size().columns - 1)])
        elif phase != self._phase or progress.seconds >= self._next_s:
            self._next_s = progress.seconds + _PLAIN_EVERY_S
            self._write(f"{shown}\n")
        self._phase = phase

    def _write(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()
