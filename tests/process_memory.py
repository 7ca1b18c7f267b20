"""`anonymous_bytes()`: memory of this process that nobody but it decides about, counted page by page."""

from __future__ import annotations

from pathlib import Path

import pytest

_ROLLUP = Path("/proc/self/smaps_rollup")

counts_memory = pytest.mark.skipif(not _ROLLUP.exists(), reason="counts memory in Linux's /proc")


def anonymous_bytes() -> int:
    """Returns what is in use now, without pages of files: the system drops and reads those as it likes.

    The counters of `/proc/self/statm` are not exact either: each core adds to them in lots.
    """
    lines = _ROLLUP.read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Anonymous:"))
