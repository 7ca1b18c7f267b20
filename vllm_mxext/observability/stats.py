"""Plain figures that the engine side reports, and `StatsRecorder`, the interface it reports them to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from vllm_mxext.outputs import FinishReasonName, RequestMetrics


@dataclass(frozen=True, slots=True)
class StepStats:
    """State after one engine step, and what the step did.

    Attributes:
        num_running: requests with KV blocks.
        num_waiting: queued requests.
        kv_cache_usage: share of the KV blocks in use, 0 to 1.
        num_scheduled_tokens: tokens computed in this step.
        num_preempted: requests preempted in this step.
        prefix_cache_queries: prompt tokens looked up in the prefix cache since the last report.
        prefix_cache_hits: of these, found.
        num_drafts: requests with draft tokens in this step.
        num_draft_tokens: their draft tokens.
        num_accepted_per_position: of these, accepted: first drafts, second drafts, and so on.
    """

    num_running: int = 0
    num_waiting: int = 0
    kv_cache_usage: float = 0.0
    num_scheduled_tokens: int = 0
    num_preempted: int = 0
    prefix_cache_queries: int = 0
    prefix_cache_hits: int = 0
    num_drafts: int = 0
    num_draft_tokens: int = 0
    num_accepted_per_position: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class FinishedRequest:
    """One request (all of its samples) at its end.

    Attributes:
        finish_reasons: one per sample.
        metrics: its times; `finished_s` is set.
        num_prompt_tokens: prompt length.
        num_generation_tokens: output tokens of each sample.
        max_tokens: the limit it asked for; None = up to the context length.
        adapter: name of the LoRA adapter it used; None = none.
    """

    finish_reasons: Sequence[FinishReasonName]
    metrics: RequestMetrics
    num_prompt_tokens: int
    num_generation_tokens: Sequence[int]
    max_tokens: int | None = None
    adapter: str | None = None


class StatsRecorder(Protocol):
    """Takes figures as they arise; calls are cheap, never block and never raise."""

    def record_step(self, stats: StepStats) -> None:
        """Takes the figures of one engine step."""
        ...

    def record_first_token(self, num_prompt_tokens: int, ttft_s: float) -> None:
        """Takes the first output token of a request: its prompt is computed, `ttft_s` seconds after arrival."""
        ...

    def record_next_tokens(self, num_tokens: int, gaps_s: Sequence[float]) -> None:
        """Takes the further output tokens of a step, and how long each of its samples had waited for them."""
        ...

    def record_finished(self, request: FinishedRequest) -> None:
        """Takes a request at its end, whatever the reason."""
        ...

    def record_rejection(self, reason: str) -> None:
        """Takes a request that was not admitted, for example because of `queue_full`."""
        ...

    def record_cache_config(self, settings: Mapping[str, str | int | float | bool | None]) -> None:
        """Takes the settings of the KV cache, once, when they are known."""
        ...


class NullStatsRecorder:
    """Forgets everything: for offline use."""

    def record_step(self, stats: StepStats) -> None:
        """Does nothing."""

    def record_first_token(self, num_prompt_tokens: int, ttft_s: float) -> None:
        """Does nothing."""

    def record_next_tokens(self, num_tokens: int, gaps_s: Sequence[float]) -> None:
        """Does nothing."""

    def record_finished(self, request: FinishedRequest) -> None:
        """Does nothing."""

    def record_rejection(self, reason: str) -> None:
        """Does nothing."""

    def record_cache_config(self, settings: Mapping[str, str | int | float | bool | None]) -> None:
        """Does nothing."""
