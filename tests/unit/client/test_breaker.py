"""Circuit breakers: what opens them, what is let through, what closes them."""

from __future__ import annotations

import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.client.fake_clock import FakeClock
from vllm_mxext.client.breaker import CLOSED, HALF_OPEN, OPEN, BreakerConfig, CircuitBreaker
from vllm_mxext.errors import ConfigError

pytestmark = pytest.mark.promise("CLIENT-12")


def breaker_of(**config: object) -> tuple[CircuitBreaker, FakeClock]:
    clock = FakeClock(chance=0.0)
    return CircuitBreaker(BreakerConfig(**config), clock), clock  # type: ignore[arg-type]


def call(breaker: CircuitBreaker, success: bool | None, ttft_s: float | None = None) -> None:
    permit = breaker.allows()
    assert permit is not None
    breaker.record(permit, success, ttft_s=ttft_s)


def opened(**config: object) -> tuple[CircuitBreaker, FakeClock]:
    breaker, clock = breaker_of(**config)
    for _ in range(5):
        call(breaker, False)
    assert breaker.state == OPEN
    return breaker, clock


def test_five_failures_in_a_row_open_it():
    breaker, _ = breaker_of()
    for _ in range(4):
        call(breaker, False)
    assert (breaker.state, breaker.failure_count) == (CLOSED, 4)
    call(breaker, False)
    assert (breaker.state, breaker.failure_count) == (OPEN, 5)
    assert breaker.allows() is None
    assert not breaker.is_ready


def test_a_success_ends_the_row():
    breaker, _ = breaker_of()
    for success in (False, False, False, False, True, False, False, False, False):
        call(breaker, success)
    assert (breaker.state, breaker.failure_count) == (CLOSED, 4)


def test_half_of_the_calls_failing_opens_it_once_there_are_enough_of_them():
    breaker, _ = breaker_of(min_calls=10)
    for success in (True, False) * 4 + (True,):
        call(breaker, success)
    assert breaker.state == CLOSED
    call(breaker, False)
    assert breaker.state == OPEN


def test_calls_that_are_long_past_do_not_count_for_the_rate():
    breaker, clock = breaker_of(min_calls=4, window_s=60.0)
    for success in (False, False, True):
        call(breaker, success)
    clock.tick(61.0)
    for success in (True, True, True, False):
        call(breaker, success)
    assert breaker.state == CLOSED


def test_slow_first_tokens_open_it_although_every_call_succeeds():
    breaker, _ = breaker_of(slow_ttft_s=2.0, slow_rate=0.5, min_calls=4)
    for ttft_s in (2.0, 2.1, None):
        call(breaker, True, ttft_s)
    assert breaker.state == CLOSED
    call(breaker, True, 5.0)
    assert breaker.state == OPEN


def test_a_slow_probe_is_a_failed_one():
    breaker, clock = opened(slow_ttft_s=2.0)
    clock.tick(30.0)
    call(breaker, True, 3.0)
    assert breaker.state == OPEN


def test_neutral_outcomes_change_nothing():
    breaker, _ = breaker_of()
    for _ in range(4):
        call(breaker, False)
    call(breaker, None)
    assert (breaker.state, breaker.failure_count) == (CLOSED, 4)


def test_after_the_reset_timeout_probes_decide():
    breaker, clock = opened(reset_timeout_s=30.0, num_probes=2, successes_to_close=2)
    clock.tick(29.9)
    assert breaker.state == OPEN
    assert breaker.allows() is None
    clock.tick(0.1)
    assert breaker.state == HALF_OPEN
    first, second = breaker.allows(), breaker.allows()
    assert first is not None
    assert second is not None
    assert breaker.allows() is None
    breaker.record(first, True)
    assert breaker.state == HALF_OPEN
    breaker.record(second, True)
    assert (breaker.state, breaker.failure_count) == (CLOSED, 0)


def test_a_neutral_probe_gives_its_place_back():
    breaker, clock = opened(num_probes=1)
    clock.tick(30.0)
    for _ in range(5):
        call(breaker, None)
    assert (breaker.state, breaker.num_probes, breaker.is_ready) == (HALF_OPEN, 0, True)


def test_each_round_of_failed_probes_doubles_the_wait_up_to_the_limit():
    breaker, clock = opened(reset_timeout_s=10.0, max_reset_timeout_s=40.0)
    waits = []
    for _ in range(5):
        wait_s = breaker.retry_at_s() - clock.now()
        waits.append(wait_s)
        clock.tick(wait_s)
        call(breaker, False)
    assert waits == [10.0, 20.0, 40.0, 40.0, 40.0]
    clock.tick(40.0)
    call(breaker, True)
    call(breaker, True)
    for _ in range(5):
        call(breaker, False)
    assert breaker.retry_at_s() - clock.now() == 10.0


def test_jitter_only_shortens_the_wait():
    clock = FakeClock(chance=0.999)
    breaker = CircuitBreaker(BreakerConfig(failure_threshold=1, reset_timeout_s=10.0, jitter=0.1), clock)
    call(breaker, False)
    assert 9.0 <= breaker.retry_at_s() - clock.now() < 9.1


def test_what_was_sent_before_it_opened_says_nothing_afterwards():
    breaker, clock = breaker_of(failure_threshold=1, successes_to_close=1)
    late_success, late_failure, culprit = breaker.allows(), breaker.allows(), breaker.allows()
    assert late_success is not None
    assert late_failure is not None
    assert culprit is not None
    breaker.record(culprit, False)
    clock.tick(30.0)
    probe = breaker.allows()
    assert probe is not None
    breaker.record(late_success, True)
    assert breaker.state == HALF_OPEN
    breaker.record(late_failure, False)
    assert (breaker.state, breaker.num_probes) == (HALF_OPEN, 1)
    breaker.record(probe, True)
    assert breaker.state == CLOSED


def test_the_last_endpoint_is_probed_now_and_then_while_open_and_failing_does_not_keep_it_out_longer():
    breaker, clock = opened(reset_timeout_s=30.0, last_probe_interval_s=1.0)
    retry_at_s = breaker.retry_at_s()
    assert breaker.allows(is_last=True) is None
    for _ in range(3):
        clock.tick(1.0)
        assert breaker.allows() is None, "Only if it is the last."
        probe = breaker.allows(is_last=True)
        assert probe is not None
        assert breaker.allows(is_last=True) is None, "One at a time."
        breaker.record(probe, False)
        assert breaker.allows(is_last=True) is None
    assert breaker.retry_at_s() == retry_at_s


def test_an_early_probe_that_says_nothing_does_not_let_the_next_one_through_at_once():
    breaker, clock = opened(last_probe_interval_s=1.0)
    clock.tick(1.0)
    probe = breaker.allows(is_last=True)
    assert probe is not None
    breaker.record(probe, None)
    assert breaker.allows(is_last=True) is None
    clock.tick(1.0)
    assert breaker.allows(is_last=True) is not None


def test_an_early_probe_that_succeeds_makes_it_half_open_before_its_time():
    breaker, clock = opened(successes_to_close=2)
    clock.tick(1.0)
    probe = breaker.allows(is_last=True)
    assert probe is not None
    breaker.record(probe, True)
    assert breaker.state == HALF_OPEN
    call(breaker, True)
    assert breaker.state == CLOSED


def test_it_can_be_reset_by_hand():
    breaker, _ = opened()
    breaker.state = "CLOSED"
    assert (breaker.state, breaker.failure_count) == (CLOSED, 0)
    call(breaker, True)


def test_opened_by_hand_it_lets_nothing_through_until_the_reset_timeout_not_even_as_the_last():
    breaker, clock = breaker_of(reset_timeout_s=30.0)
    breaker.state = "OPEN"
    clock.tick(29.0)
    assert breaker.allows(is_last=True) is None
    clock.tick(1.0)
    assert breaker.state == HALF_OPEN
    assert breaker.allows() is not None


def test_half_open_by_hand_it_takes_probes():
    breaker, _ = breaker_of(num_probes=1)
    breaker.state = "HALF-OPEN"
    assert breaker.allows() is not None
    assert breaker.allows() is None


def test_a_state_that_does_not_exist_is_refused():
    breaker, _ = breaker_of()
    with pytest.raises(ConfigError, match="CLOSED, OPEN or HALF-OPEN, not 'closed'"):
        breaker.state = "closed"
    assert breaker.state == CLOSED


@pytest.mark.parametrize(
    "config",
    [{"failure_threshold": 0}, {"num_probes": 0}, {"failure_rate": 0.0}, {"backoff_factor": 0.5}, {"jitter": 2}],
)
def test_settings_that_cannot_work_are_refused(config: dict[str, float]):
    with pytest.raises(ConfigError):
        BreakerConfig(**config)  # type: ignore[arg-type]


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(failures=st.lists(st.booleans(), max_size=300), window_calls=st.integers(1, 50))
def test_with_rates_alone_it_opens_exactly_when_the_newest_calls_are_bad_enough(
    failures: list[bool], window_calls: int
):
    min_calls = math.ceil(window_calls / 2)
    breaker, _ = breaker_of(failure_threshold=1000, failure_rate=0.6, min_calls=min_calls, window_calls=window_calls)
    for index, is_failure in enumerate(failures):
        call(breaker, not is_failure)
        window = failures[: index + 1][-window_calls:]
        is_bad = len(window) >= min_calls and sum(window) >= 0.6 * len(window)
        assert breaker.state == (OPEN if is_bad else CLOSED)
        if is_bad:
            break
