"""Ctrl-C that waits for the end of an engine step."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType


class DeferredInterrupt:
    """Holds SIGINT back until `check()`, so that it never lands in the middle of an engine step.

    The second SIGINT is not held back. Only Python's own handler in the main thread is replaced; where a program has
    chosen another one, or runs elsewhere, nothing changes.
    """

    def __init__(self) -> None:
        self._is_pending = False
        self._is_installed = False

    def __enter__(self) -> DeferredInterrupt:
        is_main = threading.current_thread() is threading.main_thread()
        if is_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._note)
            self._is_installed = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._is_installed:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if kind is None:
            self.check()

    def check(self) -> None:
        """Raises KeyboardInterrupt if SIGINT has come."""
        if self._is_pending:
            self._is_pending = False
            raise KeyboardInterrupt

    def _note(self, signum: int, frame: FrameType | None) -> None:
        is_second, self._is_pending = self._is_pending, not self._is_pending
        if is_second:
            signal.default_int_handler(signum, frame)
