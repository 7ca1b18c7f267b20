"""The knee of a sweep: the load from which on more load brings no more throughput."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

from vllm_mxext.bench.serve.statistics import StageFigures

_KEPT_UP = 0.95
_NEAR = 0.9


@dataclass(frozen=True, slots=True)
class Knee:
    """Where the server was saturated.

    Attributes:
        index: index of the level; of the nearest one if the knee lies outside the sweep.
        place: `found`; `above`: even the highest level did not saturate the server; `below`: even the lowest did.
    """

    index: int
    place: Literal["found", "above", "below"]


def find_knee(figures: Sequence[StageFigures]) -> Knee | None:
    """Returns the knee of a sweep; None without answers or with a single level.

    For concurrency: the lowest level whose tokens per second are close to the median over it and all higher levels.
    The best level would be a poor reference: with few requests it is the luckiest one. For rates: the highest one that
    the server kept up with, as it did with all lower ones.
    """
    if len(figures) < 2 or not any(figure.num_ok for figure in figures):
        return None
    order = sorted(range(len(figures)), key=lambda index: figures[index].stage.level)
    if figures[0].stage.rate is not None:
        kept = 0
        while kept < len(order) and kept_up(figures[order[kept]]):
            kept += 1
        place: Literal["found", "above", "below"] = "below" if kept == 0 else "found" if kept < len(order) else "above"
        return Knee(order[max(kept - 1, 0)], place)
    speeds = [speed(figures[index]) for index in order]
    at = next(at for at, one in enumerate(speeds) if one >= _NEAR * median(speeds[at:]))
    return Knee(order[at], "found" if at < len(order) - 1 else "above")


def speed(figure: StageFigures) -> float:
    """Returns output tokens per second, or answers if tokens are unknown; of the steady window if there is one."""
    steady = figure.steady
    if steady is not None:
        return steady.output_tokens_per_s or steady.requests_per_s
    return figure.output_tokens_per_s or figure.requests_per_s


def kept_up(figure: StageFigures) -> bool:
    """Returns whether answers came as fast as requests were sent, for a stage with a rate."""
    if figure.num_ok < _KEPT_UP * figure.num_requests:
        return False
    if figure.steady is None:
        return True  # nothing was answered while requests were sent, so it cannot be told
    seconds = figure.steady.ended_s - figure.steady.started_s
    # One answer more or less is noise.
    return figure.steady.requests_per_s * seconds + 1 >= _KEPT_UP * figure.steady.num_requests
