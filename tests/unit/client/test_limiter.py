"""Adaptive limits: slow growth, quick retreat, always between the bounds."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.client.fake_clock import FakeClock
from vllm_mxext.client.limiter import AdaptiveLimiter, LimiterConfig
from vllm_mxext.errors import ConfigError

pytestmark = pytest.mark.promise("CLIENT-13")


def limiter_of(max_limit: int = 10) -> tuple[AdaptiveLimiter, FakeClock]:
    clock = FakeClock()
    return AdaptiveLimiter(LimiterConfig(max_limit=max_limit), clock), clock


def fill(limiter: AdaptiveLimiter) -> int:
    while limiter.try_acquire():
        pass
    return limiter.in_flight


def finish_all(limiter: AdaptiveLimiter, *, was_throttled: bool = False, failed: bool = False) -> None:
    for _ in range(limiter.in_flight):
        limiter.release(duration_s=1.0, was_throttled=was_throttled, failed=failed)


def test_as_many_calls_as_configured_go_at_once_from_the_beginning():
    limiter, _ = limiter_of(10)
    assert fill(limiter) == 10
    assert limiter.is_full


def test_a_burst_of_refusals_halves_the_limit_once_and_later_ones_again():
    limiter, clock = limiter_of(16)
    fill(limiter)
    clock.tick(1.0)
    finish_all(limiter, was_throttled=True)
    assert limiter.limit == 8
    fill(limiter)
    clock.tick(1.0)
    finish_all(limiter, was_throttled=True)
    assert limiter.limit == 4


def test_it_never_goes_below_one():
    limiter, clock = limiter_of(3)
    for _ in range(5):
        fill(limiter)
        clock.tick(1.0)
        finish_all(limiter, was_throttled=True)
    assert limiter.limit == 1
    assert limiter.try_acquire()


def test_it_grows_by_about_one_for_each_round_of_successes():
    limiter, clock = limiter_of(32)
    fill(limiter)
    clock.tick(1.0)
    finish_all(limiter, was_throttled=True)
    limits = [limiter.limit]
    for _ in range(20):
        fill(limiter)
        clock.tick(1.0)
        for _ in range(limiter.in_flight):
            limiter.release(duration_s=1.0, was_throttled=False, failed=False)
            limiter.try_acquire()
        limits.append(limiter.limit)
        while limiter.in_flight:
            limiter.release(duration_s=1.0, was_throttled=False, failed=True)
    steps = [after - before for before, after in pairwise(limits)]
    assert all(0 <= step <= 2 for step in steps)
    assert limits[0] == 16
    assert limits[-1] == 32, "It comes back to where it was."


def test_successes_with_little_under_way_do_not_raise_it():
    limiter, clock = limiter_of(10)
    fill(limiter)
    clock.tick(1.0)
    finish_all(limiter, was_throttled=True)
    for _ in range(100):
        assert limiter.try_acquire()
        limiter.release(duration_s=1.0, was_throttled=False, failed=False)
    assert limiter.limit == 5


def test_failures_that_are_no_refusals_leave_it_alone():
    limiter, _ = limiter_of(10)
    fill(limiter)
    finish_all(limiter, failed=True)
    assert limiter.limit == 10


@pytest.mark.parametrize(
    "config", [{"max_limit": 0}, {"min_limit": 0}, {"max_limit": 2, "min_limit": 3}, {"backoff": 1.0}]
)
def test_bounds_that_cannot_work_are_refused(config: dict[str, int]):
    with pytest.raises(ConfigError):
        LimiterConfig(**config)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    bounds=st.tuples(st.integers(1, 8), st.integers(0, 40)),
    events=st.lists(st.tuples(st.sampled_from(["take", "good", "bad", "throttled"]), st.floats(0, 10)), max_size=200),
)
def test_limit_and_calls_under_way_keep_to_the_bounds(bounds: tuple[int, int], events: list[tuple[str, float]]):
    low, high = bounds[0], bounds[0] + bounds[1]
    clock = FakeClock()
    limiter = AdaptiveLimiter(LimiterConfig(max_limit=high, min_limit=low), clock)
    num_taken = 0
    for event, seconds in events:
        before = limiter.limit
        clock.tick(seconds)
        if event == "take":
            has_room = num_taken < limiter.limit
            assert limiter.try_acquire() == has_room
            num_taken += has_room
        elif num_taken:
            limiter.release(duration_s=seconds, was_throttled=event == "throttled", failed=event == "bad")
            num_taken -= 1
            assert limiter.limit <= before + 1
            assert event == "good" or limiter.limit <= before
            assert event == "throttled" or limiter.limit >= before
        assert limiter.in_flight == num_taken <= high
        assert low <= limiter.limit <= high


def test_a_refusal_that_says_how_long_stops_everybody_for_so_long():
    limiter, clock = limiter_of()
    limiter.try_acquire()
    limiter.release(duration_s=1.0, was_throttled=True, failed=True, pause_s=10.0)
    clock.tick(9.9)
    assert limiter.is_paused
    assert not limiter.try_acquire()
    clock.tick(1.2)  # up to a tenth longer than asked
    assert limiter.try_acquire()


def test_a_pause_has_an_end_whatever_is_asked_for():
    limiter, clock = limiter_of()
    limiter.try_acquire()
    limiter.release(duration_s=1.0, was_throttled=True, failed=True, pause_s=1e9)
    clock.tick(LimiterConfig().max_pause_s)
    assert limiter.try_acquire()


@pytest.mark.parametrize("pause_s", [-1.0, float("inf"), float("nan")])
def test_a_longest_pause_that_means_nothing_is_refused(pause_s: float):
    with pytest.raises(ConfigError, match="max_pause_s"):
        LimiterConfig(max_pause_s=pause_s)
