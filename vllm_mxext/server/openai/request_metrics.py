"""The `metrics` of a response: the times of its one request, in the shape vLLM gives them."""

from __future__ import annotations

from vllm_mxext.outputs import RequestMetrics

_MILLISECONDS = 1000.0


def timing_report(metrics: RequestMetrics | None, num_tokens: int) -> dict[str, float | None] | None:
    """Returns the times of a request that has ended; None if it made no token.

    Args:
        metrics: its times.
        num_tokens: output tokens.
    """
    if metrics is None or metrics.first_scheduled_s is None or metrics.first_token_s is None:
        return None
    ended_s = metrics.first_token_s if metrics.finished_s is None else metrics.finished_s
    generating_s = ended_s - metrics.first_token_s
    computing_s = ended_s - metrics.first_scheduled_s
    return {
        "time_to_first_token_ms": (metrics.first_token_s - metrics.first_scheduled_s) * _MILLISECONDS,
        "generation_time_ms": generating_s * _MILLISECONDS,
        "queue_time_ms": (metrics.first_scheduled_s - metrics.arrival_s) * _MILLISECONDS,
        "mean_itl_ms": generating_s * _MILLISECONDS / (num_tokens - 1) if num_tokens > 1 else None,
        "tokens_per_second": num_tokens / computing_s if computing_s > 0 else None,
    }
