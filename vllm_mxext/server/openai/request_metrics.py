"""The `metrics` of a response: times and drafts of its one request, in the shape vLLM gives them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vllm_mxext.outputs import RequestMetrics

_MILLISECONDS = 1000.0


def metrics_report(metrics: RequestMetrics | None, num_tokens: int, max_drafts: int) -> dict[str, Any] | None:
    """Returns the times of a request that has ended, and how its drafts fared; None if it made no token.

    Args:
        metrics: its times.
        num_tokens: output tokens.
        max_drafts: draft tokens per step at most; 0 without speculation.
    """
    if metrics is None or metrics.first_scheduled_s is None or metrics.first_token_s is None:
        return None
    ended_s = metrics.first_token_s if metrics.finished_s is None else metrics.finished_s
    generating_s = ended_s - metrics.first_token_s
    computing_s = ended_s - metrics.first_scheduled_s
    report: dict[str, Any] = {
        "time_to_first_token_ms": (metrics.first_token_s - metrics.first_scheduled_s) * _MILLISECONDS,
        "generation_time_ms": generating_s * _MILLISECONDS,
        "queue_time_ms": (metrics.first_scheduled_s - metrics.arrival_s) * _MILLISECONDS,
        "mean_itl_ms": generating_s * _MILLISECONDS / (num_tokens - 1) if num_tokens > 1 else None,
        "tokens_per_second": num_tokens / computing_s if computing_s > 0 else None,
    }
    if max_drafts:
        report["speculative_decoding"] = _drafts_report(metrics.drafts, max_drafts)
    return report


def _drafts_report(drafts: Mapping[tuple[int, int], int], max_drafts: int) -> dict[str, Any]:
    accepted = [0] * (max_drafts + 1)
    by_length: dict[str, list[int]] = {}
    for (num_drafts, num_accepted), num_steps in sorted(drafts.items()):
        accepted[num_accepted] += num_steps
        by_length.setdefault(str(num_drafts), [0] * (num_drafts + 1))[num_accepted] += num_steps
    num_steps, num_drafts = sum(accepted), sum(length * count for (length, _), count in drafts.items())
    num_accepted = sum(length * count for length, count in enumerate(accepted))
    return {
        "mean_acceptance_length": 1 + num_accepted / num_steps if num_steps else None,
        "draft_acceptance_rate": num_accepted / num_drafts if num_drafts else None,
        "acceptance_histogram": accepted,
        "acceptance_histogram_by_draft_length": by_length,
        "num_spec_steps": num_steps,
        "num_accepted_draft_tokens": num_accepted,
        "num_draft_tokens": num_drafts,
        "num_spec_tokens": max_drafts,
    }
