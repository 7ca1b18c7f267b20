"""Workloads, figures and reports of the bench code."""

from __future__ import annotations

import json

import pytest

from vllm_mxext.bench.metrics import percentile, summarize
from vllm_mxext.bench.report import format_table, json_line
from vllm_mxext.bench.workload import Workload
from vllm_mxext.errors import ConfigError


def test_a_workload_is_read_as_it_is_written() -> None:
    workload = Workload.parse("8x(128->64)")
    assert workload == Workload(8, 128, 64)
    assert Workload.parse(str(workload)) == workload
    assert Workload.parse(" 8 x (128 -> 64) ") == workload


@pytest.mark.parametrize(
    "text", ["", "8", "8x128->64", "0x(1->1)", "1x(1->0)", "1x(1->1)x", "2x(0+1->1)", "2x(1+->1)", "2x(1+2+3->1)"]
)
def test_other_forms_of_a_workload_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="8x"):
        Workload.parse(text)


def test_equal_seeds_give_equal_prompts_from_the_alphabet() -> None:
    workload = Workload(3, 5, 1)
    prompts = workload.prompts(range(10, 20), seed=1)
    assert prompts == workload.prompts(range(10, 20), seed=1) != workload.prompts(range(10, 20), seed=2)
    assert [len(prompt) for prompt in prompts] == [5, 5, 5]
    assert {token for prompt in prompts for token in prompt} <= set(range(10, 20))


def test_prompts_may_have_a_common_beginning() -> None:
    workload = Workload.parse("3x(20+5->7)")
    assert workload == Workload(3, 25, 7, shared_len=20)
    assert str(workload) == "3x(20+5->7)"
    first, *others = workload.prompts(range(1000), seed=0)
    assert all(prompt[:20] == first[:20] and prompt[20:] != first[20:] for prompt in others)
    assert {len(prompt) for prompt in (first, *others)} == {25}
    assert (workload.num_positions, Workload(3, 25, 7).num_positions) == (20 + 3 * 12, 3 * 32)


@pytest.mark.parametrize(("percent", "expected"), [(0, 1.0), (50, 2.5), (100, 4.0), (95, 3.85)])
def test_percentiles_are_interpolated(percent: float, expected: float) -> None:
    assert percentile([1.0, 2.0, 3.0, 4.0], percent) == pytest.approx(expected)


def test_a_summary_has_median_mean_and_spread() -> None:
    summary = summarize([3.0, 1.0, 2.0, 10.0])
    assert (summary.median, summary.mean, summary.minimum, summary.maximum, summary.count) == (2.5, 4.0, 1.0, 10.0, 4)


def test_tables_are_aligned() -> None:
    assert format_table(("name", "x"), [("a", 1.23456), ("long name", 12345.6)]).splitlines() == [
        "name       x",
        "---------  -----",
        "a          1.235",
        "long name  12346",
    ]


def test_the_last_line_says_what_ran_where() -> None:
    entry = json.loads(json_line("demo", {"seed": 1}, {"seconds": 2}))
    assert entry["benchmark"] == "demo"
    assert {"commit", "versions", "hardware", "config", "results"} < set(entry)
