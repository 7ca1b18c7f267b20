"""Routing: load, weights, affinity, fallbacks, pins, and endpoints that are broken."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.client.fake_clock import FakeClock
from vllm_mxext.client.breaker import BreakerConfig, CircuitBreaker
from vllm_mxext.client.call import Call
from vllm_mxext.client.errors import CircuitOpenError, ClientError
from vllm_mxext.client.limiter import AdaptiveLimiter, LimiterConfig
from vllm_mxext.client.router import Endpoint, Lease, Router, RouterConfig
from vllm_mxext.errors import ConfigError

pytestmark = pytest.mark.promise("CLIENT-15")


class World:
    """A clock, a router and endpoints."""

    def __init__(self, *names: str, max_limit: int = 10, weights: dict[str, float] | None = None) -> None:
        self.clock = FakeClock(chance=0.0)
        self.num_changes = 0
        self.router = Router(RouterConfig(overload_tokens=1000.0), self.clock, self.changed)
        self.endpoints = [self.endpoint(name, max_limit, (weights or {}).get(name, 1.0)) for name in names]

    def endpoint(self, name: str, max_limit: int, weight: float) -> Endpoint:
        return Endpoint(
            id=name,
            url=f"http://{name}",
            breaker=CircuitBreaker(BreakerConfig(reset_timeout_s=30.0), self.clock),
            limiter=AdaptiveLimiter(LimiterConfig(max_limit=max_limit), self.clock),
            weight=weight,
            is_fallback=name.startswith("fallback"),
        )

    def __getitem__(self, name: str) -> Endpoint:
        return next(one for one in self.endpoints if one.id == name)

    def changed(self, _: str) -> None:
        self.num_changes += 1

    def choose(self, *, avoid: tuple[str, ...] = (), **call: object) -> Lease | None:
        return self.router.choose(Call("/v1/completions", **call), self.endpoints, avoid=avoid)  # type: ignore[arg-type]

    def chosen(self, *, avoid: tuple[str, ...] = (), **call: object) -> str:
        lease = self.choose(avoid=avoid, **call)
        assert lease is not None
        return lease.endpoint.id

    def once(self, *, avoid: tuple[str, ...] = (), **call: object) -> str:
        lease = self.choose(avoid=avoid, **call)
        assert lease is not None
        with lease:
            lease.finish(True)
        return lease.endpoint.id

    def break_down(self, *names: str) -> None:
        for name in names:
            while self[name].breaker.state == "CLOSED":
                permit = self[name].breaker.allows()
                assert permit is not None
                self[name].breaker.record(permit, False)


def test_a_call_goes_where_the_fewest_tokens_are_outstanding():
    world = World("a", "b")
    assert world.chosen(num_tokens=1000) == "a"
    assert [world.chosen(num_tokens=400) for _ in range(3)] == ["b", "b", "b"]
    assert world.chosen(num_tokens=400) == "a"


def test_under_load_tokens_are_outstanding_in_proportion_to_weights():
    world = World("a", "b", max_limit=1000, weights={"a": 3.0})
    for _ in range(400):
        world.choose(num_tokens=100)
    assert (world["a"].outstanding_tokens, world["b"].outstanding_tokens) == (30_000, 10_000)


def test_idle_endpoints_are_drawn_by_weight():
    world = World("a", "b", weights={"a": 3.0})
    drawn: Counter[str] = Counter()
    for step in range(100):
        world.clock.chances = step / 100
        drawn[world.once()] += 1
    assert drawn == {"a": 75, "b": 25}


def test_equal_affinity_means_equal_endpoint_and_different_ones_spread():
    world = World("a", "b", "c")
    homes = {f"session {number}": world.once(affinity=f"session {number}") for number in range(300)}
    assert all(world.once(affinity=session) == home for session, home in homes.items())
    assert min(Counter(homes.values()).values()) > 60


def test_affinities_spread_by_weight():
    world = World("a", "b", weights={"a": 3.0})
    homes = Counter(world.once(affinity=f"session {number}") for number in range(1000))
    assert 700 < homes["a"] < 800


def test_when_an_endpoint_goes_only_its_own_calls_move():
    world = World("a", "b", "c")
    before = {f"s{number}": world.once(affinity=f"s{number}") for number in range(200)}
    world.endpoints.remove(world["b"])
    after = {session: world.once(affinity=session) for session in before}
    assert all(after[session] == home for session, home in before.items() if home != "b")


def test_affinity_gives_way_when_the_preferred_endpoint_is_overloaded_full_or_broken():
    world = World("a", "b", max_limit=3)
    home = world.once(affinity="x")
    other = next(one.id for one in world.endpoints if one.id != home)
    assert world.chosen(affinity="x", num_tokens=900) == home
    assert world.chosen(affinity="x", num_tokens=900) == home, "A little imbalance is worth a warm cache."
    assert world.chosen(affinity="x", num_tokens=900) == other
    full = World("a", "b", max_limit=2)
    assert [full.chosen(affinity="x") for _ in range(4)] == [home, home, other, other]
    broken = World("a", "b")
    broken.break_down(home)
    assert broken.chosen(affinity="x") == other


def test_calls_wait_when_every_endpoint_is_busy_and_are_told_when_one_is_not():
    world = World("a", "b", max_limit=1)
    leases = [world.choose(), world.choose()]
    assert world.choose() is None
    assert leases[0] is not None
    leases[0].finish(True)
    assert world.num_changes == 1
    assert world.choose() is not None


def test_fallbacks_are_asked_only_while_every_other_endpoint_is_broken():
    world = World("a", "b", "fallback", max_limit=1)
    world.break_down("a")
    lease = world.choose()
    assert lease is not None
    assert lease.endpoint.id == "b"
    assert world.choose() is None, "A busy endpoint is waited for."
    lease.finish(True)
    world.break_down("b")
    assert world.once() == "fallback"
    world.clock.tick(30.0)
    assert world.once() in ("a", "b")


def test_while_an_endpoint_has_asked_for_a_pause_others_are_asked_and_fallbacks_too():
    world = World("a", "b", "fallback")
    for paused, others in (("a", {"b"}), ("b", {"fallback"})):
        lease = world.choose(endpoint_id=paused)
        assert lease is not None
        lease.finish(None, was_throttled=True, pause_s=10.0)
        assert {world.once() for _ in range(5)} == others
    lease = world.choose()
    assert lease is not None
    lease.finish(None, was_throttled=True, pause_s=10.0)
    assert world.choose() is None  # all have: calls wait
    world.clock.tick(11.0)
    assert world.once() in ("a", "b")


def test_an_endpoint_that_has_just_failed_with_a_call_is_avoided_if_another_can_be_asked():
    world = World("a", "b", "fallback")
    assert world.once(avoid=("a",)) == "b"
    assert world.once(avoid=("a", "b")) == "fallback"
    assert world.once(avoid=("a", "b", "fallback")) == "a"
    world.break_down("b", "fallback")
    assert world.once(avoid=("a",)) == "a"


def test_a_pinned_call_goes_to_its_endpoint_or_nowhere():
    world = World("a", "fallback")
    assert world.once(endpoint_id="fallback") == "fallback"
    world.break_down("fallback")
    with pytest.raises(CircuitOpenError, match="fallback"):
        world.choose(endpoint_id="fallback")


def test_an_unknown_pin_is_refused_with_those_that_exist():
    with pytest.raises(ClientError, match="no endpoint 'c'; those known are: 'a', 'b'"):
        World("a", "b").choose(endpoint_id="c")
    with pytest.raises(ClientError, match="no endpoint; those known are: none"):
        World().choose()


def test_a_lone_broken_endpoint_is_refused_at_once_and_found_again_soon_after_it_is_back():
    world = World("a")
    world.break_down("a")
    with pytest.raises(CircuitOpenError) as refusal:
        world.choose()
    assert refusal.value.retry_after_s == pytest.approx(1.0)
    for _ in range(20):
        world.clock.tick(1.0)
        probe = world.choose()
        assert probe is not None, "Once a second one is let through."
        with pytest.raises(CircuitOpenError):
            world.choose()
        probe.finish(False)
        with pytest.raises(CircuitOpenError):
            world.choose()
    world.clock.tick(1.0)
    assert world.once() == "a"
    assert world["a"].breaker.state == "HALF-OPEN"
    assert world.once() == "a"
    assert world["a"].breaker.state == "CLOSED"


def test_when_everything_is_broken_one_probe_at_a_time_goes_round():
    world = World("a", "b", "c")
    world.break_down("a", "b", "c")
    probed = set()
    for _ in range(3):
        world.clock.tick(1.0)
        probe = world.choose()
        assert probe is not None
        with pytest.raises(CircuitOpenError):
            world.choose()
        probe.finish(False)
        probed.add(probe.endpoint.id)
    assert probed == {"a", "b", "c"}


def test_while_a_half_open_endpoint_is_probed_other_calls_wait_for_the_news():
    world = World("a")
    world.break_down("a")
    world.clock.tick(30.0)
    probe = world.choose()
    assert probe is not None
    assert world.choose() is None
    probe.finish(False)
    with pytest.raises(CircuitOpenError):
        world.choose()


def test_a_cancelled_attempt_gives_everything_back():
    world = World("a", max_limit=1)
    world.break_down("a")
    world.clock.tick(30.0)
    lease = world.choose(num_tokens=50)
    assert lease is not None
    with pytest.raises(asyncio.CancelledError), lease:
        raise asyncio.CancelledError
    endpoint = world["a"]
    assert (endpoint.outstanding_tokens, endpoint.limiter.in_flight, endpoint.breaker.num_probes) == (0, 0, 0)
    assert endpoint.breaker.state == "HALF-OPEN"
    assert world.num_changes == 1


def test_a_lease_is_given_back_once():
    world = World("a", max_limit=4)
    lease, other = world.choose(), world.choose()
    assert lease is not None
    assert other is not None
    lease.finish(None, was_throttled=True)
    lease.finish(False, was_throttled=True)
    assert (world["a"].limiter.in_flight, world["a"].limiter.limit, world["a"].breaker.failure_count) == (1, 2, 0)


def test_calls_that_nobody_will_end_are_forgotten_but_not_what_is_known_of_the_endpoint():
    world = World("a", max_limit=1)
    world.break_down("a")
    world.clock.tick(30.0)
    lost = world.choose(num_tokens=50)
    assert lost is not None
    assert world.choose() is None
    world["a"].abandon()
    assert world["a"].breaker.state == "HALF-OPEN"
    lease = world.choose(num_tokens=7)
    assert lease is not None
    lost.finish(False)
    endpoint = world["a"]
    assert (endpoint.outstanding_tokens, endpoint.limiter.in_flight, endpoint.breaker.num_probes) == (7, 1, 1)
    lease.finish(True)
    assert world.once() == "a"
    assert endpoint.breaker.state == "CLOSED"


def test_abandoned_calls_leave_an_open_endpoint_open_for_as_long_as_before():
    world = World("a")
    world.break_down("a")
    retry_at_s = world["a"].breaker.retry_at_s()
    world["a"].abandon()
    assert (world["a"].breaker.state, world["a"].breaker.retry_at_s()) == ("OPEN", retry_at_s)


def test_the_key_of_an_endpoint_is_not_in_its_text():
    world = World("a")
    world["a"].api_key = "sk-secret"
    assert "sk-secret" not in repr(world["a"])


@pytest.mark.parametrize("weight", [0.0, -1.0, float("inf"), float("nan")])
def test_a_weight_that_means_nothing_is_refused(weight: float):
    with pytest.raises(ConfigError, match="weight of endpoint 'a'"):
        World("a", weights={"a": weight})


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    loads=st.lists(st.integers(0, 5000), min_size=1, max_size=6),
    num_tokens=st.integers(0, 3000),
    affinity=st.text(max_size=5),
    chance=st.floats(0, 1, exclude_max=True),
)
def test_any_call_finds_an_endpoint_that_is_not_overloaded(
    loads: list[int], num_tokens: int, affinity: str, chance: float
):
    world = World(*(f"e{number}" for number in range(len(loads))))
    world.clock.chances = chance
    for endpoint, load in zip(world.endpoints, loads, strict=True):
        endpoint.outstanding_tokens = load
    before = dict(zip((one.id for one in world.endpoints), loads, strict=True))
    chosen = before[world.chosen(num_tokens=num_tokens, affinity=affinity)]
    if affinity:
        assert chosen <= max(min(loads) + 1000, min(loads) * 1.5)
    else:
        assert chosen == min(loads)
