"""`Progress`: how far a download is, as plain data for bars, logs, JSON events, metrics and health checks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum


class Phase(str, Enum):
    """What is being done."""

    CHOOSING = "choosing"
    LISTING = "listing"
    DOWNLOADING = "downloading"
    VERIFYING = "verifying"
    PUBLISHING = "publishing"
    DONE = "done"


@dataclass(frozen=True, slots=True)
class Progress:
    """One moment of a download.

    Attributes:
        model: name of the model.
        phase: what is being done.
        done_bytes: verified or received, what was there before included.
        total_bytes: of all files; 0 while not known.
        num_files_done: files that are whole.
        num_files: files in all.
        rate_bytes_s: bytes per second, over the last seconds.
        eta_s: seconds left at this rate; None while not known.
        detail: one short phrase, for example the source or a retry.
    """

    model: str
    phase: Phase
    done_bytes: int = 0
    total_bytes: int = 0
    num_files_done: int = 0
    num_files: int = 0
    rate_bytes_s: float = 0.0
    eta_s: float | None = None
    detail: str = ""

    @property
    def fraction(self) -> float:
        """0 to 1."""
        if self.phase is Phase.DONE:
            return 1.0
        return min(1.0, self.done_bytes / self.total_bytes) if self.total_bytes else 0.0


Listener = Callable[[Progress], None]
"""Told about progress, at most some times a second, from any thread; must be quick."""


def ignore(progress: Progress) -> None:
    """Listens to nothing."""
    del progress
