"""Compares two servers or two runs: ratios of figures with bootstrap confidence intervals over blocks, and verdicts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Literal

from vllm_mxext.bench.serve.blocks import MIN_BLOCKS, Block
from vllm_mxext.bench.serve.labels import LABELS, Language
from vllm_mxext.bench.serve.result import ClientLag, RequestRecord, RunResult
from vllm_mxext.errors import ConfigError

LOWER_IS_BETTER = {
    "ttft": True,
    "tpot": True,
    "e2e": True,
    "throughput": False,
    "output_throughput": False,
    "answered": False,
}
"""Figures that are compared -> whether lower values are better."""

_CONFIDENCE = 0.95
_RESAMPLES = 4000
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Interval:
    """A ratio with its confidence interval.

    Attributes:
        estimate: the ratio of the blocks themselves.
        low: lower end of the interval.
        high: upper end of the interval.
    """

    estimate: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """The comparison of one figure between two sides.

    Attributes:
        figure: its name in the log; `answered` is the share of requests that were answered.
        first: mean over the blocks of the first side.
        second: mean over the blocks of the second side.
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
        """How the second side compares to the first; `same` if the interval contains 1: no significant difference."""
        if self.low <= 1.0 + _ROUNDING and self.high >= 1.0 - _ROUNDING:
            return "same"
        return "better" if (self.ratio < 1.0) == self.lower_is_better else "worse"

    def is_regression(self, tolerance: float) -> bool:
        """Whether the second side is worse by more than `tolerance` (a share) over the whole interval."""
        nearest = self.low if self.lower_is_better else self.high
        limit = 1.0 + tolerance if self.lower_is_better else 1.0 - tolerance
        return nearest > limit if self.lower_is_better else nearest < limit

    def sentence(self, first: str, second: str, language: Language = "en") -> str:
        """Returns the verdict in words, with the names of the sides."""
        words = LABELS[language]
        is_same = self.verdict == "same"
        return words["sentence_same" if is_same else "sentence_differs"].format(
            word=words[self.verdict if self.figure == "answered" else f"speed_{self.verdict}"] if not is_same else "",
            figure=words[f"compared_{self.figure}"],
            first=first,
            second=second,
            percent=abs(self.ratio - 1) * 100,
            ratio=self.ratio,
            low=self.low,
            high=self.high,
        )


def compare(first: Sequence[Block], second: Sequence[Block], *, is_paired: bool = False) -> tuple[Comparison, ...]:
    """Compares means over blocks.

    Args:
        first: blocks of one side.
        second: blocks of the other.
        is_paired: the n-th blocks of both sides were measured under the same conditions, one right after the other.

    Raises:
        ConfigError: no latency or throughput has enough blocks on both sides.
    """
    compared = []
    for figure, lower_is_better in LOWER_IS_BETTER.items():
        before, after = ([block.get(figure) for block in side] for side in (first, second))
        if is_paired:
            # After an interruption one side may have one turn fewer.
            pairs = [(one, other) for one, other in zip(before, after, strict=False) if None not in (one, other)]
            before, after = [one for one, _ in pairs], [other for _, other in pairs]
        known, changed = ([value for value in side if value is not None] for side in (before, after))
        if min(len(known), len(changed)) < MIN_BLOCKS:
            continue
        ratio = bootstrap_ratio(known, changed, is_paired=is_paired)
        if ratio is not None:
            one, other = sum(known) / len(known), sum(changed) / len(changed)
            compared.append(Comparison(figure, one, other, ratio.estimate, ratio.low, ratio.high, lower_is_better))
    if all(one.figure == "answered" for one in compared):
        raise ConfigError(
            f"A comparison needs answers in at least {MIN_BLOCKS} blocks of each side, a block being as many requests "
            "as are in flight at once; ask for more with --num-requests."
        )
    return tuple(compared)


def bootstrap_ratio(
    before: Sequence[float], after: Sequence[float], *, is_paired: bool = False, seed: int = 0
) -> Interval | None:
    """Returns the ratio of the means with its bootstrap interval; None if the first side may be zero.

    Percentiles are widened for few values, so that the interval reaches its nominal coverage: the "expanded percentile"
    interval of T. Hesterberg, What Teachers Should Know About the Bootstrap (2015).

    Args:
        before: one value per block.
        after: the same for the other side.
        is_paired: resample the n-th blocks of both sides together.
        seed: equal seeds give equal intervals.
    """
    import numpy as np  # noqa: PLC0415 - only comparisons need it

    generator = np.random.default_rng(seed)
    first, second = np.asarray(before, dtype=float), np.asarray(after, dtype=float)
    drawn = generator.integers(0, len(first), (_RESAMPLES, len(first)))
    paired = drawn if is_paired else generator.integers(0, len(second), (_RESAMPLES, len(second)))
    base = first[drawn].mean(axis=1)
    if base.min() <= 0:
        return None
    tail = _tail(min(len(first), len(second))) * 100
    low, high = np.percentile(second[paired].mean(axis=1) / base, [tail, 100 - tail])
    return Interval(float(second.mean() / first.mean()), float(low), float(high))


def _tail(count: int) -> float:
    """Returns the share of the resamples that lie beyond each end of the interval, for a mean of `count` values."""
    normal = NormalDist()
    z, degrees = normal.inv_cdf((1 + _CONFIDENCE) / 2), count - 1
    # Student's quantile by its expansion around the normal one: within one percent from five degrees of freedom on.
    student = z + (z**3 + z) / (4 * degrees) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)
    return normal.cdf(-math.sqrt(count / degrees) * student)


def check_comparable(result: RunResult, name: str) -> None:
    """Refuses a run whose figures must not be used.

    Args:
        result: the run.
        name: what to call it in the error.

    Raises:
        ConfigError: it is invalid.
    """
    if not result.is_valid:
        raise ConfigError(f"{name} is not a valid measurement, so nothing is compared: {result.invalid_reasons[0]}")


def differences(first: RunResult, second: RunResult, language: Language = "en") -> tuple[str, ...]:
    """Returns a sentence for every setting, other than the server's, that two runs do not share."""
    found = []
    for section in ("test_params", "workload", "load"):
        one, other = first.plan.get(section, {}), second.plan.get(section, {})
        found += [
            LABELS[language]["difference"].format(name=f"{section}.{key}", first=one.get(key), second=other.get(key))
            for key in sorted({*one, *other})
            if one.get(key) != other.get(key)
        ]
    return tuple(found)


def joined_turns(result: RunResult) -> RunResult:
    """Returns the run with all turns of each server joined into one stage; a run without turns is returned itself.

    Times are shifted so that turns follow each other without a gap: figures then cover all answers of a side, without
    the time during which the other side was measured.
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
        # A side is as good as its worst turn.
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
