"""When requests start: schedules as pure functions of rate, number and seed, and the levels of a sweep."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_MAX_CONCURRENCY = 1024
_MAX_LEVELS = 14
_GAIN = 1.05
"""If throughput grows by less than this factor twice in a row, the server is saturated."""

_NEAR = 1.3
"""A sweep of rates ends when the lowest rate that was too high is within this factor of the highest that was not."""


def arrivals(rate: float, burstiness: float, seed: int) -> Iterator[float]:
    """Yields arrival times in seconds, endlessly: a renewal process with gamma-distributed gaps of mean `1 / rate`.

    Args:
        rate: arrivals per second.
        burstiness: shape of the gamma distribution: 1 is a Poisson process, below 1 in bursts, infinity constant.
        seed: equal seeds give equal times.
    """
    generator = random.Random(seed)
    number, at = 0, 0.0
    while True:
        if math.isinf(burstiness):
            yield number / rate
            number += 1
        else:
            at += generator.gammavariate(burstiness, 1 / (rate * burstiness))
            yield at


def schedule(
    rate: float, burstiness: float, seed: int, *, count: int = 0, duration_s: float = 0.0, ramp_to: float = 0.0
) -> tuple[float, ...]:
    """Returns arrival times in seconds, ascending.

    Args:
        rate: arrivals per second, at the beginning of a ramp.
        burstiness: see `arrivals`.
        seed: equal seeds give equal times.
        count: how many; ignored with a duration.
        duration_s: return all before this time; 0 = return `count`.
        ramp_to: the rate grows linearly to this; 0 = it is constant.
    """
    if not ramp_to:
        return _taken(arrivals(rate, burstiness, seed), count, duration_s)
    # Time rescaling: a process of rate 1, mapped through the inverse of the ramp's integral; after the ramp, its last
    # rate.
    length = duration_s or 2 * count / (rate + ramp_to)
    total = (rate + ramp_to) / 2 * length

    def rescaled() -> Iterator[float]:
        for at in arrivals(1.0, burstiness, seed):
            if at < total:
                yield 2 * at / (rate + math.sqrt(rate * rate + 2 * (ramp_to - rate) / length * at))
            else:
                yield length + (at - total) / ramp_to

    return _taken(rescaled(), count, duration_s)


@dataclass(frozen=True, slots=True)
class Level:
    """A measured level of a sweep.

    Attributes:
        load: requests in flight, or per second.
        throughput: output tokens per second, or answers per second.
        has_kept_up: answers came as fast as requests were sent.
    """

    load: float
    throughput: float
    has_kept_up: bool


def next_concurrency(done: Sequence[Level]) -> float | None:
    """Returns the next number of requests in flight: doubled until throughput stops growing; None at the end."""
    if not done:
        return 1
    if len(done) >= 3:
        best = max(level.throughput for level in done[:-2])
        if all(level.throughput < _GAIN * best for level in done[-2:]):
            return None
    following = done[-1].load * 2
    return following if following <= _MAX_CONCURRENCY and done[-1].throughput > 0 else None


def next_rate(done: Sequence[Level], first: float) -> float | None:
    """Returns the next rate: doubled until the server does not keep up, then halfway between; None at the end.

    Args:
        done: levels so far.
        first: the first rate.
    """
    if not done:
        return first
    kept = [level.load for level in done if level.has_kept_up]
    missed = [level.load for level in done if not level.has_kept_up]
    if len(done) >= _MAX_LEVELS or not kept:
        return None
    if not missed:
        return max(kept) * 2
    best, worst = max(kept), min(missed)
    return None if worst / best <= _NEAR else (best + worst) / 2


def _taken(times: Iterator[float], count: int, duration_s: float) -> tuple[float, ...]:
    taken: list[float] = []
    for at in times:
        if (duration_s and at >= duration_s) or (not duration_s and len(taken) >= count):
            break
        taken.append(at)
    return tuple(taken)
