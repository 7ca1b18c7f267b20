"""When requests start: schedules as pure functions of rate, number and seed, and the levels of a sweep."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_MAX_CONCURRENCY = 1024
_MAX_LEVELS = 14
_GAIN = 1.05
"""More throughput by less than this factor, twice in a row, is saturation."""

_BISECTIONS = 2


def arrivals(rate: float, burstiness: float, seed: int) -> Iterator[float]:
    """Yields arrival times in seconds without end: a renewal process with gamma gaps of mean `1 / rate`.

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
        rate: arrivals per second; where a ramp begins.
        burstiness: see `arrivals`.
        seed: equal seeds give equal times.
        count: how many; with a duration it does not matter.
        duration_s: all before this time; 0 = by count.
        ramp_to: the rate grows evenly to this; 0 = it stays.
    """
    if not ramp_to:
        return _taken(arrivals(rate, burstiness, seed), count, duration_s)
    # A process of rate 1 in the time that the ramp's integral makes of it (time rescaling).
    length = duration_s or 2 * count / (rate + ramp_to)
    growth = (ramp_to - rate) / length

    def rescaled() -> Iterator[float]:
        for at in arrivals(1.0, burstiness, seed):
            root = rate * rate + 2 * growth * at
            if root < 0:  # a falling ramp has no more arrivals than its integral
                return
            yield at / rate if growth == 0 else (math.sqrt(root) - rate) / growth

    return _taken(rescaled(), count, duration_s)


@dataclass(frozen=True, slots=True)
class Level:
    """A level of a sweep that has been measured.

    Attributes:
        load: requests in flight, or per second.
        throughput: output tokens per second, or answers per second.
        is_kept_up: answers came as fast as requests were sent.
    """

    load: float
    throughput: float
    is_kept_up: bool


def next_concurrency(done: Sequence[Level]) -> float | None:
    """Returns the next number of requests in flight: doubled until throughput stays; None at the end."""
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
        first: where to begin.
    """
    if not done:
        return first
    kept = [level.load for level in done if level.is_kept_up]
    missed = [level.load for level in done if not level.is_kept_up]
    if len(done) >= _MAX_LEVELS or not kept:
        return None
    if not missed:
        return max(kept) * 2
    if (
        len(done)
        > sum(level.load <= min(missed) and _is_doubled(level.load, first) for level in done) + _BISECTIONS - 1
    ):
        return None
    return (max(load for load in kept if load < min(missed)) + min(missed)) / 2


def _is_doubled(load: float, first: float) -> bool:
    return math.log2(load / first).is_integer()


def _taken(times: Iterator[float], count: int, duration_s: float) -> tuple[float, ...]:
    taken: list[float] = []
    for at in times:
        if (duration_s and at >= duration_s) or (not duration_s and len(taken) >= count):
            break
        taken.append(at)
    return tuple(taken)
