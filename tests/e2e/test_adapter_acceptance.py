"""Short runs of the programs that show what adapters promise, on real servers under traffic."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from tests.docs.readme import ROOT

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


def run(*program: str) -> dict[str, Any]:
    """The results of a program, which must find nothing wrong."""
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])}
    result = subprocess.run(
        [sys.executable, *program], cwd=ROOT, env=environ, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    results: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])["results"]
    return results


@pytest.mark.promise("LORA-4", "LORA-5", "LORA-API-4")
def test_no_answer_is_stale_and_nothing_is_left_while_adapters_come_and_go() -> None:
    outcomes = run("benchmarks/adapter_soak.py", "--cycles", "6", "--big-cycles", "0")["outcomes"]
    assert outcomes["streams open at unloading"] > 0
    assert all(outcomes[f"{name}: right"] > 0 for name in ("base", "live", "guest", "math", "code"))


@pytest.mark.promise("MODEL-3", "LORA-API-1")
def test_the_adapters_that_ship_solve_their_tasks_over_http_while_they_are_loaded() -> None:
    adapters = run("-m", "training.served_accuracy", "--items", "20")["adapters"]
    for score in [score for scores in adapters.values() for score in scores.values()]:
        assert score["base"] <= 0.1, score
        assert score["adapter"] >= 0.75, score
