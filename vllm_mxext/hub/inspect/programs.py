"""Running the vendors' programs: no shell, a time limit, and no output instead of an exception."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence

Runner = Callable[[Sequence[str]], str | None]
"""Runs a program and returns what it printed; None if it is missing, fails to start or takes too long."""

_TIMEOUT_S = 5.0


def run_program(command: Sequence[str]) -> str | None:
    """Runs a program; its exit status does not matter, since these programs also print what they do know."""
    try:
        result = subprocess.run(
            command, capture_output=True, check=False, timeout=_TIMEOUT_S, stdin=subprocess.DEVNULL
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.decode("utf-8", "replace")
