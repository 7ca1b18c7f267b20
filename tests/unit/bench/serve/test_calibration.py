"""The whole tester beside a mock server in a process of its own: figures, and Ctrl-C."""

from __future__ import annotations

import os
import signal
from dataclasses import replace

import pytest

from tests.bench_servers.calibration import SCENARIOS, Scenario, calibrate, mock_process
from tests.bench_servers.mock_server import Behaviour
from vllm_mxext.bench.serve.plan_reading import plan_from_mapping
from vllm_mxext.bench.serve.runner import run_plan


@pytest.mark.promise("PERF-12")
def test_figures_are_those_of_the_server_s_own_records() -> None:
    small = replace(SCENARIOS[1], count=16, sections={"test_params": {"max_tokens": 20, "concurrent_requests": 4}})
    rows = {str(figure): (true, median) for _, figure, true, median, *_ in calibrate(small)}
    own, *times = rows
    assert own == "event's time (ms)"
    assert times == ["sent to received (ms)", "TTFT (ms)", "TPOT (ms)", "E2E (ms)", "chunk gap (ms)", "output tokens/s"]
    assert all(float(str(rows[name][0])) > 0 for name in times[1:])


@pytest.mark.skipif(not os.environ.get("VLLM_MXEXT_TEST_LONG"), reason="VLLM_MXEXT_TEST_LONG=1 runs it: half a minute")
@pytest.mark.promise("PERF-12")
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_every_load_of_the_calibration_is_measured_well(scenario: Scenario) -> None:
    for _, name, true, median, *_ in list(calibrate(scenario))[2:]:
        allowed = 0.3 if name in ("TTFT (ms)", "E2E (ms)") else 0.1
        assert abs(float(str(median))) < allowed * float(str(true)), name


@pytest.mark.promise("PERF-13")
def test_ctrl_c_ends_a_run_with_what_had_come() -> None:
    with mock_process(Behaviour(failures=dict.fromkeys(range(2, 10), "stall"))) as url:

        def ctrl_c(progress: object) -> None:
            if getattr(progress, "num_done", 0) == 2 and getattr(progress, "num_in_flight", 0):
                os.kill(os.getpid(), signal.SIGINT)

        plan = plan_from_mapping({"server": {"url": url, "model": "m"}, "test_params": {"max_tokens": 2}})
        result = run_plan(plan, ctrl_c)
    assert result.is_interrupted
    assert [record.failure for record in result.records] == ["", "", "cancelled"]
