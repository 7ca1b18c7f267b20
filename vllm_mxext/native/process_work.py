"""Whether a process works that says nothing."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path


def is_at_work(process_id: int) -> bool:
    """Whether a thread of a process computes, or waits for a processor or a disk; False where the system does not tell.

    Threads that wait for each other or for a message are not at work, nor is a process that was stopped.
    """
    states = []
    for stat in Path(f"/proc/{process_id}/task").glob("*/stat"):
        with suppress(OSError):  # it has just ended
            states.append(stat.read_text(errors="replace").rpartition(")")[2].split()[0])
    return "R" in states or "D" in states
