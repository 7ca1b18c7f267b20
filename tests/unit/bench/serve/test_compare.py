"""Verdicts are claimed where the figures carry them, and nowhere else."""

from __future__ import annotations

import dataclasses
import random

import pytest

from tests.unit.bench.serve.made_results import ten_requests
from vllm_mxext.bench.serve.compare import Comparison, check_comparable, compare, differences
from vllm_mxext.bench.serve.plan import Plan, RequestPlan, ServerPlan
from vllm_mxext.errors import ConfigError


def times(mean: float, seed: int, count: int = 200) -> list[float]:
    draw = random.Random(seed)
    return [draw.gauss(mean, 0.1 * mean) for _ in range(count)]


@pytest.mark.promise("PERF-25")
def test_a_real_difference_is_seen() -> None:
    first = {"ttft": times(0.2, 1), "throughput": times(100, 2)}
    second = {"ttft": times(0.25, 3), "throughput": times(125, 4)}
    ttft, throughput = compare(first, second)
    assert ttft.ratio == pytest.approx(1.25, rel=0.05)
    assert (ttft.verdict, throughput.verdict) == ("worse", "better")
    assert "TTFT: B is slower than A by 2" in ttft.sentence("A", "B")
    assert "throughput per request: B is faster than A by 2" in throughput.sentence("A", "B")


@pytest.mark.promise("PERF-25")
def test_equal_servers_are_seldom_told_apart_and_intervals_hold_the_truth() -> None:
    equal = [compare({"e2e": times(1, seed)}, {"e2e": times(1, seed + 100)})[0] for seed in range(20)]
    assert [one.verdict for one in equal].count("same") >= 17
    slower = [compare({"e2e": times(1, seed)}, {"e2e": times(1.25, seed + 100)})[0] for seed in range(20)]
    assert sum(one.low < 1.25 < one.high for one in slower) >= 17


@pytest.mark.promise("PERF-25")
def test_no_difference_is_said_as_not_seen() -> None:
    (one,) = compare({"tpot": times(0.01, 1)}, {"tpot": times(0.01, 2)})
    assert one.sentence("old", "new").startswith("TPOT: no difference seen between old and new (ratio ")


@pytest.mark.promise("PERF-25")
def test_too_few_answers_give_no_verdict() -> None:
    with pytest.raises(ConfigError, match="at least 8 good answers"):
        compare({"ttft": [0.1] * 7}, {"ttft": [0.2] * 100})


@pytest.mark.promise("PERF-25")
def test_an_invalid_run_is_not_compared() -> None:
    check_comparable(ten_requests(), ten_requests())
    with pytest.raises(ConfigError, match=r"The second run is not a valid measurement.*The client was late"):
        check_comparable(ten_requests(), ten_requests(invalid_reasons=("The client was late.",)))


@pytest.mark.parametrize(
    ("low", "high", "lower_is_better", "expected"),
    [
        (1.06, 1.3, True, True),
        (1.04, 1.3, True, False),
        (0.7, 0.8, True, False),
        (0.7, 0.94, False, True),
        (0.7, 0.96, False, False),
        (1.2, 1.3, False, False),
    ],
)
def test_a_regression_is_worse_by_more_than_the_tolerance_beyond_doubt(
    low: float, high: float, lower_is_better: bool, expected: bool
) -> None:
    one = Comparison("ttft", 1.0, 1.0, (low + high) / 2, low, high, lower_is_better)
    assert one.is_regression(0.05) is expected


def test_what_else_was_different_is_named() -> None:
    changed = Plan(server=ServerPlan(model="m"), test_params=RequestPlan(max_tokens=50))
    assert differences(ten_requests(), ten_requests()) == ()
    assert differences(ten_requests(), dataclasses.replace(ten_requests(), plan=changed.as_dict())) == (
        "test_params.max_tokens was 100 in the first run and 50 in the second.",
    )
