"""More connections than the system allows are refused before a request is sent."""

from __future__ import annotations

import pytest

from vllm_mxext.bench.serve.file_limit import allow_connections, most_in_flight
from vllm_mxext.bench.serve.plan_reading import plan_from_mapping
from vllm_mxext.errors import ConfigError

resource = pytest.importorskip("resource")


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The limit of a system that lets a process have 1000 files at most, and what was set."""
    set_to = [(100, 1000)]
    monkeypatch.setattr(resource, "getrlimit", lambda _: set_to[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: set_to.append(limits))
    return set_to


@pytest.mark.promise("PERF-12")
def test_the_limit_is_raised_as_far_as_it_may_be(limits: list[tuple[int, int]]) -> None:
    allow_connections(500)
    assert limits[-1] == (1000, 1000)


@pytest.mark.promise("PERF-12")
def test_more_than_that_is_refused_with_a_way_out(limits: list[tuple[int, int]]) -> None:
    with pytest.raises(
        ConfigError, match=r"2,000 requests at once need .* allows 1,000 open files; raise .* ulimit -n"
    ):
        allow_connections(2000)


@pytest.mark.parametrize(
    ("load", "count"),
    [
        ({}, 300),
        ({"request_rate": 5}, 1),
        ({"sweep": "concurrency", "sweep_levels": [1, 700]}, 700),
        ({"sweep": "concurrency"}, 1),
        ({"sweep": "rate"}, 1),
    ],
)
def test_how_many_are_needed_is_known_from_the_plan(load: dict[str, object], count: int) -> None:
    plan = plan_from_mapping({"server": {"model": "m"}, "test_params": {"concurrent_requests": 300}, "load": load})
    assert most_in_flight(plan) == count
