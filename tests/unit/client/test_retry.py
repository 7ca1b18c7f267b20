"""Retries: how long they wait, how often they happen, what servers ask for."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from email.utils import format_datetime

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.client.fake_clock import FakeClock
from vllm_mxext.backoff import retry_after_s
from vllm_mxext.client.retry import BudgetConfig, RetryBudget, RetryPolicy

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    num_retries=st.integers(0, 2000),
    asked_s=st.none() | st.floats(0, 120),
    chance=st.floats(0, 1, exclude_max=True),
    factor=st.floats(1, 100),
)
@pytest.mark.promise("CLIENT-1")
def test_a_wait_is_at_least_what_the_server_asks_and_at_most_the_bound_more(
    num_retries: int, asked_s: float | None, chance: float, factor: float
) -> None:
    policy = RetryPolicy(max_retries=5000, factor=factor)
    wait_s = policy.wait_s(num_retries, asked_s, chance)
    assert wait_s is not None
    least_s = asked_s or 0.0
    assert least_s <= wait_s <= least_s + min(8.0, policy.bound_s(num_retries)) + 1e-9


def test_bounds_double_up_to_the_longest() -> None:
    assert [RetryPolicy().bound_s(number) for number in range(6)] == [0.5, 1.0, 2.0, 4.0, 8.0, 8.0]


def test_retries_end_with_their_number_and_with_a_server_that_asks_for_too_much() -> None:
    policy = RetryPolicy(max_retries=2, max_retry_after_s=60.0)
    assert policy.wait_s(1, None, 0.5) is not None
    assert policy.wait_s(2, None, 0.5) is None
    assert policy.wait_s(0, 60.1, 0.5) is None


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    steps=st.lists(st.tuples(st.sampled_from(["call", "retry", "wait"]), st.floats(0, 5)), max_size=200),
    share=st.floats(0, 1),
    per_second=st.floats(0, 2),
    reserve=st.floats(0, 20),
)
@pytest.mark.promise("CLIENT-5")
def test_a_budget_never_gives_more_than_its_share(
    steps: list[tuple[str, float]], share: float, per_second: float, reserve: float
) -> None:
    clock = FakeClock()
    budget = RetryBudget(BudgetConfig(share, per_second, reserve), clock)
    num_calls, num_retries, elapsed_s = 0, 0, 0.0
    for what, seconds in steps:
        if what == "call":
            budget.earn()
            num_calls += 1
        elif what == "retry":
            num_retries += budget.spend()
        else:
            clock.tick(seconds)
            elapsed_s += seconds
        assert num_retries <= reserve + share * num_calls + per_second * elapsed_s + 1e-6


def test_a_budget_fills_again_up_to_its_reserve() -> None:
    clock = FakeClock()
    budget = RetryBudget(BudgetConfig(share=0.5, per_second=0.0, reserve=2.0), clock)
    assert [budget.spend() for _ in range(3)] == [True, True, False]
    budget.earn()
    budget.earn()
    assert [budget.spend() for _ in range(2)] == [True, False]


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": " 1.5 "}, 1.5),
        ({"retry-after-ms": "250", "retry-after": "7"}, 0.25),
        ({"retry-after-ms": "soon", "retry-after": "7"}, 7.0),
        ({"retry-after": format_datetime(NOW + timedelta(seconds=9), usegmt=True)}, 9.0),
        ({"retry-after": format_datetime(NOW - timedelta(seconds=9), usegmt=True)}, 0.0),
        ({"retry-after": "Fri Jan  2 03:04:15 2026"}, 10.0),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "tomorrow"}, None),
        ({"retry-after": ""}, None),
    ],
)
@pytest.mark.promise("CLIENT-1")
def test_what_a_server_asks_for_is_read_in_every_form(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after_s(headers, NOW) == seconds


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.text(max_size=40))
def test_a_malformed_header_never_fails(text: str) -> None:
    seconds = retry_after_s({"retry-after": text, "retry-after-ms": text}, NOW)
    assert seconds is None or seconds >= 0
