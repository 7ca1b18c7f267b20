"""`Report`: a run with its figures under the names of the log, which every output format shows."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from vllm_mxext.bench.metrics import Summary
from vllm_mxext.bench.serve import definitions
from vllm_mxext.bench.serve.blocks import Block, parts, samples, turns
from vllm_mxext.bench.serve.chinese_formulas import CHINESE_FORMULAS
from vllm_mxext.bench.serve.compare import Comparison, joined_turns
from vllm_mxext.bench.serve.knee import Knee, find_knee
from vllm_mxext.bench.serve.labels import LABELS, Language
from vllm_mxext.bench.serve.plan_reading import limits, plan_from_mapping
from vllm_mxext.bench.serve.result import ClientLag, RequestRecord, RunResult, Stage
from vllm_mxext.bench.serve.slo import Slo
from vllm_mxext.bench.serve.statistics import StageFigures, run_figures

DISTRIBUTIONS = ("ttft", "tpot", "e2e", "throughput")
"""Figures with mean, median, P95, P99, minimum and maximum, in the documented order."""

POINTS = ("mean", "median", "p95", "p99", "min", "max")

_SUMMARY_FIELDS = {"min": "minimum", "max": "maximum"}


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that is shown.

    Attributes:
        result: what was measured.
        sides: the same, with the turns of each server in a comparison joined into one stage.
        stages: figures of the stages of `sides`.
        slo: the objectives.
        compat: whose definitions the figures follow: own, vllm or guidellm.
        comparisons: of two servers or runs; empty if there were none.
        baseline: comparisons with an earlier run; empty if there were none.
        language: of the labels.
    """

    result: RunResult
    sides: RunResult
    stages: tuple[StageFigures, ...]
    slo: Slo
    compat: str = "own"
    comparisons: tuple[Comparison, ...] = ()
    baseline: tuple[Comparison, ...] = ()
    language: Language = "en"

    @classmethod
    def of(
        cls,
        result: RunResult,
        *,
        comparisons: tuple[Comparison, ...] = (),
        baseline: tuple[Comparison, ...] = (),
        language: Language = "en",
    ) -> Report:
        """Returns the report of a run, by the objectives and definitions of its plan."""
        plan = plan_from_mapping(result.settings)
        sides, compat = joined_turns(result), plan.test_params.compat
        stages = run_figures(sides)
        if sides is not result:  # between turns the server was idle: there was no one window
            stages = tuple(dataclasses.replace(one, steady=None) for one in stages)
        return cls(result, sides, stages, limits(plan), compat, comparisons, baseline, language)

    @property
    def has_answers(self) -> bool:
        """Whether any measured request was answered."""
        return any(one.num_ok for one in self.stages)

    @property
    def is_sweep(self) -> bool:
        """Whether the stages are load levels of one server."""
        return len({one.stage.level for one in self.stages}) > 1

    @property
    def knee(self) -> Knee | None:
        """The load from which more load brings no more throughput; None if this is not a sweep."""
        return find_knee(self.stages) if self.is_sweep else None

    @property
    def knee_index(self) -> int | None:
        """Index of the level at the knee; None if the knee lies outside the sweep, or this is not one."""
        return self.knee.index if self.knee and self.knee.place == "found" else None

    @property
    def knee_sentence(self) -> str:
        """Where the knee is, in words; empty if this is not a sweep."""
        if self.knee is None:
            return ""
        level = level_name(self.stages[self.knee.index].stage, self.language)
        return LABELS[self.language][f"knee_{self.knee.place}"].format(level=level)

    @property
    def main(self) -> int:
        """Index of the level that headline figures are of: the only one, or the knee of a sweep."""
        return self.knee.index if self.knee else 0

    @property
    def best_good(self) -> StageFigures | None:
        """The highest load at which the objectives are met; None if there is none, or there are no objectives."""
        good = [one for one in self.stages if one.goodput is not None and one.goodput.is_met]
        return max(good, key=lambda one: one.stage.level) if good else None

    @property
    def is_missed(self) -> bool:
        """Whether there are objectives and they are not met; in a sweep: at no level."""
        return self.figures.goodput is not None and (
            self.best_good is None if self.is_sweep else not self.figures.goodput.is_met
        )

    @property
    def figures(self) -> StageFigures:
        """Figures of the main level."""
        return self.stages[self.main]

    @property
    def values(self) -> dict[str, float | None]:
        """Figures of the main level by their names in the log."""
        return named_values(self.figures)

    @property
    def lag(self) -> ClientLag | None:
        """Whether the client kept up at the main level; None if unknown."""
        return self.sides.lag[self.main] if self.main < len(self.sides.lag) else None

    @property
    def formulas(self) -> dict[str, str]:
        """How every figure is computed."""
        changed = dict(definitions.COMPAT_DIFFERENCES[self.compat])
        if self.language == "zh":
            own, theirs = CHINESE_FORMULAS["own"], CHINESE_FORMULAS[self.compat]
            return {**own, **{name: theirs[name] for name in changed}}
        return {**dict(definitions.FORMULAS), **changed}

    @property
    def failures(self) -> Counter[str]:
        """Kind of failure -> number of requests, over all levels."""
        return sum((Counter(one.failures) for one in self.stages), Counter[str]())

    @property
    def is_comparison(self) -> bool:
        """Whether two servers were measured in turns."""
        return len({stage.server for stage in self.result.stages}) > 1

    @property
    def samples(self) -> dict[str, list[float]]:
        """Every measured value of the four distributions at the main level."""
        return samples(self.sides.of_stage(self.main), self.compat)

    @property
    def blocks(self) -> list[Block]:
        """The main level split into blocks, for a comparison with another run."""
        return parts(self.sides, self.main, self.compat)

    def turns(self, server: str) -> list[Block]:
        """Returns the turns of one server as blocks, for a comparison with those of the other."""
        return turns(self.result, server, self.compat)


def level_name(stage: Stage, language: Language) -> str:
    """Returns a stage's name in the report's language."""
    if language == "en" or " to " in stage.name:
        return stage.name
    words = LABELS[language]
    if stage.concurrency is not None:
        return f"{words['concurrency']} {stage.concurrency}"
    return f"{stage.level:.4g} {words['rate']}"


def named_values(figures: StageFigures) -> dict[str, float | None]:
    """Returns figures by their names in the log; None for one that is unknown."""
    is_counted = any(source != "none" for source in figures.token_sources)
    is_complete = "none" not in figures.token_sources
    prompt_tokens = figures.prompt_tokens

    def counted(value: float | None) -> float | None:
        return value if is_counted and is_complete else None

    latencies, sending = figures.latencies, figures.from_sending
    values: dict[str, float | None] = {
        "total_requests": figures.num_requests,
        "total_tokens": counted(None if prompt_tokens is None else prompt_tokens + figures.output_tokens),
        "prompt_tokens": counted(prompt_tokens),
        "completion_tokens": counted(figures.output_tokens),
        "test_duration": figures.duration_s,
        "overall_throughput": counted(figures.total_tokens_per_s),
        **_points("ttft", latencies.ttft),
        **_points("tpot", latencies.tpot),
        **_points("e2e", latencies.e2e),
        **_points("throughput", figures.throughput),
        "successful_requests": figures.num_ok,
        "failed_requests": figures.num_requests - figures.num_ok,
        "request_throughput": figures.requests_per_s,
        "output_throughput": counted(figures.output_tokens_per_s),
        "cached_prompt_tokens": figures.cached_tokens,
        "mean_in_flight": figures.mean_in_flight,
        "peak_in_flight": figures.peak_in_flight,
        **_points("chunk_gap", latencies.chunk_gap),
        **_points("token_gap", latencies.token_gap),
        **_points("send_lag", figures.send_lag),
        **_points("ttft_from_sending", sending.ttft if sending else None),
        **_points("e2e_from_sending", sending.e2e if sending else None),
    }
    steady = figures.steady
    values["steady_request_throughput"] = steady.requests_per_s if steady else None
    values["steady_output_throughput"] = counted(steady.output_tokens_per_s) if steady else None
    goodput = figures.goodput
    values["goodput"] = goodput.requests_per_s if goodput else None
    values["good_share"] = goodput.share if goodput else None
    return values


def request_values(record: RequestRecord, compat: str = "own") -> dict[str, float | int | str | bool | None]:
    """Returns one request's figures by their names in the log."""
    is_ok = record.is_ok
    return {
        "request_id": record.request_id,
        "ttft": definitions.ttft_s(record, compat) if is_ok else None,
        "tpot": definitions.tpot_s(record, compat) if is_ok else None,
        "e2e_latency": definitions.e2e_s(record, compat) if is_ok else None,
        "throughput": definitions.throughput(record) if is_ok else None,
        "prompt_tokens": record.prompt_tokens,
        "completion_tokens": record.output_tokens,
        "token_source": record.token_source,
        "stage": record.stage,
        "is_warmup": record.is_warmup,
        "scheduled": record.scheduled_s,
        "sent": record.sent_s,
        "ended": record.ended_s,
        "finish_reason": record.finish_reason,
        "status": record.status,
        "failure": record.failure,
        "failure_detail": record.failure_detail,
    }


def seconds(value: float | None) -> str:
    """Returns seconds with three decimals, or three digits if that is more; `n/a` without a value."""
    if value is None:
        return "n/a"
    decimals = 3
    while 0 < abs(value) < 10.0 ** (2 - decimals) and decimals < 6:
        decimals += 1
    return f"{value:.{decimals}f}s"


def number(value: float | None) -> str:
    """Returns a figure with two decimals; `n/a` without a value."""
    return "n/a" if value is None else f"{value:,.2f}"


def count(value: float | None) -> str:
    """Returns a whole number with separators; `n/a` without a value."""
    return "n/a" if value is None else f"{value:,.0f}"


def share(value: float | None) -> str:
    """Returns a share as percent; `n/a` without a value."""
    return "n/a" if value is None else f"{value * 100:.1f} %"


def _points(name: str, summary: Summary | None) -> Mapping[str, float | None]:
    return {
        f"{name}_{point}": getattr(summary, _SUMMARY_FIELDS.get(point, point)) if summary else None for point in POINTS
    }
