"""Counts the tokens of one HTTP exchange, and keeps its times."""

from __future__ import annotations

from typing import Any

from vllm_mxext.outputs import RequestMetrics, RequestOutput
from vllm_mxext.server.openai.request_metrics import metrics_report


class UsageCounter:
    """The `usage` of a response, kept up as outputs come."""

    def __init__(self) -> None:
        self._num_prompt_tokens: dict[str, int] = {}
        self._num_cached_tokens: dict[str, int] = {}
        self._num_completion_tokens = 0
        self._num_reasoning_tokens: int | None = None
        self._metrics: RequestMetrics | None = None

    def set_reasoning(self, num_tokens: int) -> None:
        """Takes the number of output tokens that were reasoning."""
        self._num_reasoning_tokens = min(num_tokens, self._num_completion_tokens)

    def add(self, output: RequestOutput) -> None:
        """Counts a request's output: its prompt once, its new tokens every time."""
        self._num_prompt_tokens[output.request_id] = len(output.prompt_token_ids)
        if output.num_cached_tokens is not None:
            self._num_cached_tokens[output.request_id] = output.num_cached_tokens
        self._num_completion_tokens += sum(len(sample.token_ids) for sample in output.outputs)
        self._metrics = output.metrics

    def metrics(self, num_samples: int, max_drafts: int) -> dict[str, Any] | None:
        """Returns times and drafts of the exchange's request; None if it has several samples or requests, as in vLLM.

        Args:
            num_samples: that each request generates.
            max_drafts: draft tokens per step at most.
        """
        if num_samples > 1 or len(self._num_prompt_tokens) > 1:
            return None
        return metrics_report(self._metrics, self._num_completion_tokens, max_drafts)

    def report(self) -> dict[str, Any]:
        """Returns the `usage` object for everything counted so far."""
        num_prompt_tokens = sum(self._num_prompt_tokens.values())
        usage: dict[str, Any] = {
            "prompt_tokens": num_prompt_tokens,
            "completion_tokens": self._num_completion_tokens,
            "total_tokens": num_prompt_tokens + self._num_completion_tokens,
            "prompt_tokens_details": {"cached_tokens": sum(self._num_cached_tokens.values())},
        }
        if self._num_reasoning_tokens is not None:
            usage["completion_tokens_details"] = {"reasoning_tokens": self._num_reasoning_tokens}
        return usage
