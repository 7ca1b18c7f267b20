"""`Timeline`: which weights a name may have meant at a moment, as someone knows who loads and unloads over HTTP."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass


@dataclass
class _Window:
    """What a name may have meant, from the moment it was asked for until another meaning was confirmed."""

    variant: str | None
    start_s: float
    end_s: float = math.inf


class Timeline:
    """Meanings of names; None is that there is no such name."""

    def __init__(self) -> None:
        self._windows: dict[str, list[_Window]] = {}

    def ask(self, name: str, variant: str | None) -> None:
        """Notes that the server is going to be asked for this meaning: it may hold from now on."""
        windows = self._windows.setdefault(name, [_Window(None, -math.inf)])
        windows.append(_Window(variant, time.monotonic()))

    def confirm(self, name: str) -> None:
        """Notes that the server has answered: whatever the name meant before, it means no more."""
        now_s = time.monotonic()
        for window in self._windows[name][:-1]:
            window.end_s = min(window.end_s, now_s)

    def meant(self, name: str, start_s: float, end_s: float) -> set[str | None]:
        """Returns what the name may have meant at some moment between two."""
        windows = self._windows.get(name, [_Window(None, -math.inf)])
        return {window.variant for window in windows if window.start_s <= end_s and window.end_s >= start_s}
