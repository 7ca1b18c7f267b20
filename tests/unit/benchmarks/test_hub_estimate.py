"""The hub's memory estimate against a whole server."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hub_estimate import CASES, estimate, measure


@pytest.mark.promise("HUB-EST-2")
@pytest.mark.e2e
@pytest.mark.slow
def test_a_server_holds_what_was_estimated(tmp_path: Path) -> None:
    case = next(case for case in CASES if case.name == "middle")
    case = replace(case, flags={**case.flags, "kv-cache-memory-bytes": "64MiB"})  # sooner full
    expected = estimate(case)
    held = measure(case, tmp_path, round(expected.num_requests * expected.max_model_len))
    assert expected.device_total + expected.host == pytest.approx(held, rel=0.1)
