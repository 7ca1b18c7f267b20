"""The knee lies where the server is full, also with few requests, or is said not to be there."""

from __future__ import annotations

import heapq
import random
from collections.abc import Mapping
from dataclasses import replace

import pytest

from tests.unit.bench.serve.made_results import record, result
from vllm_mxext.bench.serve.knee import Knee, find_knee
from vllm_mxext.bench.serve.result import Stage
from vllm_mxext.bench.serve.statistics import StageFigures, stage_figures


def levels(speeds: Mapping[float, float]) -> list[StageFigures]:
    """Levels of concurrency with these tokens per second and no steady window."""
    base = stage_figures(result([record(0)]), 0)
    return [
        replace(base, stage=Stage("s", "A", int(level), None, 0.0, 0.0, 1.0), output_tokens_per_s=speed, steady=None)
        for level, speed in speeds.items()
    ]


def rates(shares: Mapping[float, float]) -> list[StageFigures]:
    """Levels of rates of whose twenty requests this share was answered in the steady window."""
    base = stage_figures(result([record(number, 0.6 * number) for number in range(20)]), 0)
    assert base.steady is not None
    steady = replace(base.steady, num_requests=20, started_s=0.0, ended_s=1.0)
    return [
        replace(
            base,
            stage=Stage("s", "A", None, level, 0.0, 0.0, 1.0),
            steady=replace(steady, requests_per_s=20 * share),
        )
        for level, share in shares.items()
    ]


def server_with_places(places: int, level: int, count: int, seed: int) -> StageFigures:
    """A level as it would be measured: answers of various lengths, and a server now faster, now slower."""
    draw = random.Random(seed)
    number, pace = max(count, 3 * level), draw.gauss(0.02, 0.001)
    place, ready, records = [0.0] * places, [0.0] * level, []
    for _ in range(number):
        sent = heapq.heappop(ready)
        begin = max(sent, heapq.heappop(place))
        tokens, gap = draw.randint(10, 30), pace * draw.gauss(1, 0.1)
        times = tuple(begin + gap * (at + 1) for at in range(tokens))
        made = record(len(records), sent, ended_s=times[-1], chunk_times_s=times, output_tokens=tokens)
        records.append(made)
        heapq.heappush(place, times[-1])
        heapq.heappush(ready, times[-1])
    return stage_figures(result(records, stages=[Stage("s", "A", level, None, 0.0, 0.0, 1.0)]), 0)


@pytest.mark.promise("PERF-14")
@pytest.mark.parametrize("count", [10, 40])
def test_few_requests_do_not_move_the_knee_up(count: int) -> None:
    steps = (1, 2, 4, 8, 16, 32, 64)
    found = [
        find_knee([server_with_places(8, level, count, 100 * seed + level) for level in steps]) for seed in range(20)
    ]
    places = [steps[knee.index] for knee in found if knee is not None]
    assert places.count(8) >= 17
    assert set(places) <= {4, 8, 16}


def test_a_lucky_level_beyond_it_is_no_knee() -> None:
    assert find_knee(levels({1: 10.0, 2: 20.0, 4: 38.0, 8: 39.0, 16: 42.0})) == Knee(2, "found")


@pytest.mark.promise("PERF-14")
@pytest.mark.parametrize("speeds", [{1: 10.0, 2: 20.0, 4: 40.0}, {1: 10.0, 4: 30.0}])
def test_a_sweep_that_did_not_fill_the_server_has_not_reached_the_knee(speeds: dict[float, float]) -> None:
    assert find_knee(levels(speeds)) == Knee(len(speeds) - 1, "above")


def test_the_knee_of_rates_is_the_last_one_kept_up_with_in_whatever_order_they_were_measured() -> None:
    assert find_knee(rates({1: 1.0, 2: 1.0, 8: 0.5, 4: 1.0})) == Knee(3, "found")


@pytest.mark.promise("PERF-14")
def test_rates_that_were_all_or_none_too_much_have_no_knee_among_them() -> None:
    assert find_knee(rates({1: 1.0, 2: 1.0})) == Knee(1, "above")
    assert find_knee(rates({2: 0.5, 1: 0.5})) == Knee(1, "below")


def test_one_stage_has_no_knee() -> None:
    assert find_knee(levels({1: 10.0})) is None
