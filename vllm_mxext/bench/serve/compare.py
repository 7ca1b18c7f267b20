"""Compares two servers or two runs: ratios of figures with bootstrap intervals, and a verdict for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Literal

from vllm_mxext.bench.serve.result import ClientLag, RequestRecord, RunResult
from vllm_mxext.bench.serve.statistics import bootstrap_change
from vllm_mxext.errors import ConfigError

LOWER_IS_BETTER = {"ttft": True, "tpot": True, "e2e": True, "throughput": False}
"""Figures that are compared, by their medians over requests."""

MIN_SAMPLES = 8
"""With fewer requests an interval says nothing."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """One figure of two sides.

    Attributes:
        figure: name in the log.
        first: median of the first side.
        second: median of the second side.
        ratio: second over first.
        low: lower end of the 95 % interval of the ratio.
        high: upper end.
        lower_is_better: for the verdict.
    """

    figure: str
    first: float
    second: float
    ratio: float
    low: float
    high: float
    lower_is_better: bool

    @property
    def verdict(self) -> Literal["better", "worse", "same"]:
        """What the second side is; `same` if the interval has 1 in it: no difference was seen."""
        if self.low <= 1.0 <= self.high:
            return "same"
        return "better" if (self.ratio < 1.0) == self.lower_is_better else "worse"

    def is_regression(self, tolerance: float) -> bool:
        """Whether the second side is worse by more than `tolerance` (a share), beyond the doubt of the interval."""
        nearest = self.low if self.lower_is_better else self.high
        limit = 1.0 + tolerance if self.lower_is_better else 1.0 - tolerance
        return nearest > limit if self.lower_is_better else nearest < limit

    def sentence(self, first: str, second: str) -> str:
        """Returns the verdict in words, with the names of the sides."""
        name = self.figure.upper() if self.lower_is_better else "throughput per request"
        interval = f"ratio {self.ratio:.3f}, 95 % interval {self.low:.3f} to {self.high:.3f}"
        if self.verdict == "same":
            return f"{name}: no difference seen between {first} and {second} ({interval})."
        word = "faster" if self.verdict == "better" else "slower"
        return f"{name}: {second} is {word} than {first} by {abs(self.ratio - 1) * 100:.1f} % ({interval})."


def compare(
    first: Mapping[str, Sequence[float]], second: Mapping[str, Sequence[float]], *, seed: int = 0
) -> tuple[Comparison, ...]:
    """Compares medians: percentile bootstrap over the requests of each side.

    Args:
        first: figure -> its values, one per request.
        second: the same of the other side.
        seed: of the resampling; equal seeds give equal intervals.

    Raises:
        ConfigError: no figure has enough values on both sides.
    """
    compared = []
    for figure, lower_is_better in LOWER_IS_BETTER.items():
        before, after = first.get(figure, ()), second.get(figure, ())
        if min(len(before), len(after)) < MIN_SAMPLES or min(*before, *after) <= 0:
            continue
        change = bootstrap_change(before, after, seed=seed)
        compared.append(
            Comparison(
                figure,
                median(before),
                median(after),
                1 + change.estimate,
                1 + change.low,
                1 + change.high,
                lower_is_better,
            )
        )
    if not compared:
        raise ConfigError(
            f"A comparison needs at least {MIN_SAMPLES} good answers of each side; ask for more with --num-requests."
        )
    return tuple(compared)


def check_comparable(first: RunResult, second: RunResult) -> None:
    """Refuses runs whose figures must not be used.

    Raises:
        ConfigError: one of them is invalid.
    """
    for result, name in ((first, "The first run"), (second, "The second run")):
        if not result.is_valid:
            raise ConfigError(f"{name} is not a valid measurement, so nothing is compared: {result.invalid_reasons[0]}")


def differences(first: RunResult, second: RunResult) -> tuple[str, ...]:
    """Returns sentences about what was not the same in two runs besides the server, for the reader to judge."""
    found = []
    for section in ("test_params", "workload", "load"):
        one, other = first.plan.get(section, {}), second.plan.get(section, {})
        found += [
            f"{section}.{key} was {one.get(key)} in the first run and {other.get(key)} in the second."
            for key in sorted({*one, *other})
            if one.get(key) != other.get(key)
        ]
    return tuple(found)


def joined_turns(result: RunResult) -> RunResult:
    """Returns the run with all turns of a server laid end to end as one stage; without turns, the run itself.

    The figures of a side are then over all its answers; the time in which the other side was measured is not in them.
    """
    servers = list(dict.fromkeys(stage.server for stage in result.stages))
    if len(servers) < 2:
        return result
    stages, records, lag = [], [], []
    for number, server in enumerate(servers):
        turns = [index for index, stage in enumerate(result.stages) if stage.server == server]
        first = result.stages[turns[0]]
        now = first.measured_s
        for index in turns:
            stage = result.stages[index]
            moved = now - stage.measured_s
            records += [_moved(one, moved, number) for one in result.records if one.stage == index]
            now = max((one.ended_s for one in result.of_stage(index)), default=stage.measured_s) + moved
        stages.append(replace(first, ended_s=now))
        # The worst turn speaks for the side.
        lag += sorted((result.lag[index] for index in turns if index < len(result.lag)), key=_lateness)[-1:]
    return replace(result, stages=tuple(stages), records=tuple(records), lag=tuple(lag))


def _moved(record: RequestRecord, by_s: float, stage: int) -> RequestRecord:
    def moved(at: float | None) -> float | None:
        return None if at is None else at + by_s

    return replace(
        record,
        stage=stage,
        scheduled_s=moved(record.scheduled_s),
        sent_s=record.sent_s + by_s,
        ended_s=record.ended_s + by_s,
        written_s=moved(record.written_s),
        chunk_times_s=tuple(at + by_s for at in record.chunk_times_s),
        empty_times_s=tuple(at + by_s for at in record.empty_times_s),
    )


def _lateness(lag: ClientLag) -> float:
    return lag.loop_delay_p99_s
