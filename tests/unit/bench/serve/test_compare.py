"""Verdicts are claimed where the figures carry them, and nowhere else."""

from __future__ import annotations

import dataclasses
import math
import random

import pytest

from tests.unit.bench.serve.made_results import record, result, ten_requests
from vllm_mxext.bench.serve.blocks import Block, parts, turns
from vllm_mxext.bench.serve.compare import (
    Comparison,
    bootstrap_ratio,
    check_comparable,
    compare,
    differences,
)
from vllm_mxext.bench.serve.plan import Plan, RequestPlan, ServerPlan
from vllm_mxext.bench.serve.result import RequestRecord, RunResult
from vllm_mxext.bench.serve.statistics import stage_figures
from vllm_mxext.errors import ConfigError


def blocks(figure: str, mean: float, seed: int, count: int = 10) -> list[Block]:
    draw = random.Random(seed)
    return [{figure: draw.gauss(mean, 0.05 * mean)} for _ in range(count)]


@pytest.mark.promise("PERF-25")
def test_a_real_difference_is_seen() -> None:
    (ttft,) = compare(blocks("ttft", 0.2, 1), blocks("ttft", 0.25, 3))
    (speed,) = compare(blocks("throughput", 100, 2), blocks("throughput", 125, 4))
    assert ttft.ratio == pytest.approx(1.25, rel=0.05)
    assert (ttft.verdict, speed.verdict) == ("worse", "better")
    assert "TTFT: B is slower than A by 2" in ttft.sentence("A", "B")
    assert "throughput per request: B is faster than A by 2" in speed.sentence("A", "B")
    assert ttft.sentence("A", "B", "zh").startswith("TTFT：B 比 A 慢 2")


def drifting_turns(draw: random.Random, factor: float, rounds: int, size: int) -> tuple[list[float], list[float]]:
    """Medians of the turns of two servers on a machine that drifts, each turn with a mood of its own."""
    drift = 0.0
    sides: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        drift += draw.gauss(0, 0.05)
        for side, level in zip(sides, (1.0, factor), strict=True):
            mood = draw.gauss(0, 0.08)
            values = sorted(level * math.exp(drift + mood + draw.gauss(0, 0.1)) for _ in range(size))
            side.append(values[size // 2])
    return sides


def sluggish_parts(draw: random.Random, level: float, count: int, size: int) -> list[float]:
    """Medians of the parts of a run whose answers are like the ones before them."""
    state, found = draw.gauss(0, 1), []
    for _ in range(count):
        values = []
        for _ in range(size):
            state = 0.5 * state + math.sqrt(0.75) * draw.gauss(0, 1)
            values.append(level * math.exp(0.1 * state))
        found.append(sorted(values)[size // 2])
    return found


@pytest.mark.promise("PERF-8")
@pytest.mark.parametrize("rounds", [6, 8, 12])
def test_intervals_of_turns_hold_the_truth_as_often_as_they_say(rounds: int) -> None:
    draw, held = random.Random(rounds), 0
    for _ in range(150):
        before, after = drifting_turns(draw, 1.1, rounds, 9)
        interval = bootstrap_ratio(before, after, is_paired=True)
        assert interval is not None
        held += interval.low <= 1.1 <= interval.high
    assert held >= 0.9 * 150


@pytest.mark.promise("PERF-8")
@pytest.mark.parametrize("count", [6, 12])
def test_intervals_of_two_runs_hold_the_truth_although_neighbours_are_alike(count: int) -> None:
    draw, held = random.Random(count), 0
    for _ in range(150):
        interval = bootstrap_ratio(sluggish_parts(draw, 1.0, count, 11), sluggish_parts(draw, 1.1, count, 11))
        assert interval is not None
        held += interval.low <= 1.1 <= interval.high
    assert held >= 0.9 * 150


@pytest.mark.promise("PERF-8")
def test_equal_seeds_give_equal_intervals() -> None:
    values = [1.0, 1.1, 0.9, 1.2, 1.0, 0.8]
    assert bootstrap_ratio(values, values[::-1], seed=3) == bootstrap_ratio(values, values[::-1], seed=3)


@pytest.mark.promise("PERF-25")
def test_no_difference_is_said_as_not_seen() -> None:
    (one,) = compare(blocks("tpot", 0.01, 1), blocks("tpot", 0.01, 2))
    assert one.sentence("old", "new").startswith("TPOT: no difference seen between old and new (ratio ")
    assert one.sentence("旧", "新", "zh").startswith("TPOT：旧 与 新 之间未见差异")


@pytest.mark.promise("PERF-25")
def test_equal_figures_are_the_same_whatever_rounding_does() -> None:
    tenths: list[Block] = [{"ttft": value} for value in (0.1 + 0.2, 0.3, 0.3, 0.3, 0.3, 0.3)]
    (one,) = compare([{"ttft": 0.3}] * 6, tenths)
    assert one.verdict == "same"


@pytest.mark.promise("PERF-25")
def test_too_few_blocks_give_no_verdict() -> None:
    with pytest.raises(ConfigError, match="at least 6 blocks"):
        compare(blocks("ttft", 0.1, 1, 5), blocks("ttft", 0.2, 2, 12))
    with pytest.raises(ConfigError, match="ask for more with --num-requests"):
        compare([{"answered": 0.0}] * 8, [{"answered": 1.0}] * 8)


@pytest.mark.promise("PERF-25")
def test_turns_without_a_figure_on_either_side_are_left_out_of_it() -> None:
    first: list[Block] = [{"ttft": None if number == 0 else 0.2} for number in range(8)]
    second: list[Block] = [{"ttft": None if number == 7 else 0.4} for number in range(8)]
    (one,) = compare(first, second, is_paired=True)
    assert (one.first, one.second, one.verdict) == (pytest.approx(0.2), pytest.approx(0.4), "worse")


def waves(count: int = 24, at_once: int = 4, **changes: object) -> list[RequestRecord]:
    """Requests in waves of `at_once`, each 0.6 s long."""
    return [record(number, 0.6 * (number // at_once), **changes) for number in range(count)]


@pytest.mark.promise("PERF-25")
def test_a_part_of_a_run_has_at_least_as_many_requests_as_were_in_flight() -> None:
    found = parts(result(waves()), 0)
    assert len(found) == 6
    assert [block["e2e"] for block in found] == pytest.approx([0.6] * 6)
    assert len(parts(result(waves(240, 1)), 0)) == 12


@pytest.mark.promise("PERF-25")
def test_the_tokens_per_second_of_the_parts_are_those_of_the_run() -> None:
    run = result(waves())
    speeds = [block["output_throughput"] or 0.0 for block in parts(run, 0)]
    assert sum(speeds) / len(speeds) == pytest.approx(stage_figures(run, 0).output_tokens_per_s)


def test_tokens_that_nobody_counted_are_not_compared() -> None:
    unknown = [record(number, number * 0.6, output_tokens=None, token_source="none") for number in range(12)]
    assert {block["output_throughput"] for block in parts(result(unknown), 0)} == {None}


@pytest.mark.promise("PERF-25")
def test_answers_that_fail_are_a_difference_even_if_the_others_are_as_fast() -> None:
    failing = [
        one if number % 2 else dataclasses.replace(one, failure="http_status") for number, one in enumerate(waves(48))
    ]
    found = {one.figure: one for one in compare(parts(result(waves(48)), 0), parts(result(failing), 0))}
    assert found["answered"].verdict == "worse"
    assert found["answered"].is_regression(0.05)
    assert found["answered"].sentence("A", "B").startswith("share of answered requests: B is worse than A by 50.0 %")
    assert found["ttft"].verdict == "same"


@pytest.mark.promise("PERF-8")
def test_the_turns_of_a_server_are_its_blocks() -> None:
    run = result(
        [record(number, number * 1.0, stage=number) for number in range(4)],
        stages=[
            dataclasses.replace(ten_requests().stages[0], server=name, started_s=float(at), measured_s=float(at))
            for at, name in enumerate("ABBA")
        ],
    )
    assert [block["output_throughput"] for block in turns(run, "A")] == pytest.approx([5 / 0.6] * 2)
    assert len(turns(run, "B")) == 2


@pytest.mark.promise("PERF-25")
def test_an_invalid_run_is_not_compared() -> None:
    check_comparable(ten_requests(), "This run")
    with pytest.raises(ConfigError, match=r"This run is not a valid measurement.*The client was late"):
        check_comparable(ten_requests(invalid_reasons=("The client was late.",)), "This run")


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
    other: RunResult = dataclasses.replace(ten_requests(), plan=changed.as_dict())
    assert differences(ten_requests(), ten_requests()) == ()
    assert differences(ten_requests(), other) == (
        "Not the same test: test_params.max_tokens was 100 in the first run and 50 in the second.",
    )
    assert differences(ten_requests(), other, "zh")[0].startswith("两次测试不相同")
