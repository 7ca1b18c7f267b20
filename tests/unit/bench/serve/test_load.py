"""Load: schedules are functions of their seed with the rate and the spread they promise; sweeps end."""

from __future__ import annotations

import statistics
from itertools import islice, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_mxext.bench.serve.load import Level, arrivals, next_concurrency, next_rate, schedule


@given(
    st.floats(0.1, 1000), st.floats(0.1, 20), st.integers(0, 5), st.integers(0, 60), st.just(0.0) | st.floats(0.1, 500)
)
def test_schedules_ascend_and_are_the_same_for_a_seed(
    rate: float, burstiness: float, seed: int, count: int, ramp_to: float
) -> None:
    times = schedule(rate, burstiness, seed, count=count, ramp_to=ramp_to)
    assert len(times) == count
    assert all(before <= after for before, after in pairwise(times))
    assert times == schedule(rate, burstiness, seed, count=count, ramp_to=ramp_to)
    assert all(at >= 0 for at in times)


@pytest.mark.promise("PERF-9")
@pytest.mark.parametrize(("burstiness", "spread"), [(1.0, 1.0), (0.25, 2.0), (4.0, 0.5), (float("inf"), 0.0)])
def test_gaps_have_the_rate_and_the_spread_of_their_burstiness(burstiness: float, spread: float) -> None:
    times = [0.0, *islice(arrivals(20.0, burstiness, seed=3), 20_000)]
    gaps = [after - before for before, after in pairwise(times)]
    assert statistics.mean(gaps) == pytest.approx(1 / 20, rel=0.05)
    assert statistics.pstdev(gaps) * 20 == pytest.approx(spread, rel=0.05, abs=0.01)


def test_a_duration_ends_a_schedule() -> None:
    times = schedule(100.0, float("inf"), 0, duration_s=2.0)
    assert len(times) == 200
    assert times[-1] < 2.0


@pytest.mark.promise("PERF-9")
def test_a_ramp_grows_evenly_from_one_rate_to_the_other() -> None:
    times = schedule(10.0, float("inf"), 0, duration_s=10.0, ramp_to=30.0)
    assert len(times) == pytest.approx(200, abs=1)
    counts = [sum(begin <= at < begin + 2 for at in times) for begin in (0, 4, 8)]
    assert counts == pytest.approx([24, 40, 56], abs=1)


def test_a_ramp_may_fall() -> None:
    assert len(schedule(10.0, float("inf"), 0, duration_s=4.0, ramp_to=0.001)) == pytest.approx(20, abs=1)


def test_a_sweep_of_concurrency_ends_when_throughput_stays() -> None:
    def capacity(level: float) -> float:
        return min(level, 6.0) * 10

    done: list[Level] = []
    while (level := next_concurrency(done)) is not None:
        done.append(Level(level, capacity(level), True))
    assert [level.load for level in done] == [1, 2, 4, 8, 16, 32]


def test_a_sweep_of_concurrency_ends_without_answers() -> None:
    assert next_concurrency([Level(1, 0.0, False)]) is None


@given(st.floats(0.01, 1e5), st.floats(0.01, 10))
def test_a_sweep_of_rates_ends_with_the_capacity_between_its_levels(capacity: float, first: float) -> None:
    done: list[Level] = []
    while (level := next_rate(done, first)) is not None:
        done.append(Level(level, level, level <= capacity))
        assert len(done) <= 14
    if any(not level.has_kept_up for level in done) and any(level.has_kept_up for level in done):
        best = max(level.load for level in done if level.has_kept_up)
        worst = min(level.load for level in done if not level.has_kept_up)
        assert best <= capacity < worst
        assert worst / best <= 1.3 or len(done) == 14
