"""Fuzzed requests beside steady streams: a small share of `benchmarks/fuzz.py`, all of it with TEST_FUZZ_REQUESTS."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "fuzz.py"
NUM_REQUESTS = int(os.environ.get("TEST_FUZZ_REQUESTS", "120"))


@pytest.mark.e2e
@pytest.mark.timeout(900 + NUM_REQUESTS)
@pytest.mark.promise("API-10", "ENG-7")
def test_fuzzed_requests_disturb_no_stream_and_leave_nothing() -> None:
    command = [sys.executable, str(SCRIPT), "--requests", str(NUM_REQUESTS), "--streams", "2", "--concurrency", "4"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.stdout, result.stderr
    report = json.loads(result.stdout.splitlines()[-1])
    # Memory is judged by the full run only: a short one ends before the server's caches have filled.
    problems = [problem for problem in report["results"]["problems"] if "resident memory" not in problem]
    assert not problems
    assert report["results"]["steady_answers"] > 0
