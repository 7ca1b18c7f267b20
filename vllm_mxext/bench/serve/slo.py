"""Service-level objectives: limits of a good answer, with MLPerf's as presets, and whether an answer keeps them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from vllm_mxext.bench.serve import definitions
from vllm_mxext.bench.serve.result import RequestRecord


@dataclass(frozen=True, slots=True)
class Slo:
    """Limits of a good answer; None = no limit.

    Attributes:
        ttft_s: longest time to first token.
        tpot_s: longest time per output token.
        e2e_s: longest end-to-end latency.
        percentile: share of the answers that must be good, in percent.
    """

    ttft_s: float | None = None
    tpot_s: float | None = None
    e2e_s: float | None = None
    percentile: float = 99.0

    def __bool__(self) -> bool:
        """Whether there is any limit."""
        return any(limit is not None for limit in (self.ttft_s, self.tpot_s, self.e2e_s))

    def __str__(self) -> str:
        limits = (("TTFT", self.ttft_s), ("TPOT", self.tpot_s), ("E2E", self.e2e_s))
        return ", ".join(f"{name} <= {limit * 1000:g} ms" for name, limit in limits if limit is not None)


def is_good(record: RequestRecord, slo: Slo, compat: str = "own") -> bool | None:
    """Returns whether a request was answered within all limits; None if the chosen definitions leave it out."""
    if not record.is_ok:
        return False
    ttft, tpot = definitions.ttft_s(record, compat), definitions.tpot_s(record, compat)
    e2e, tokens = definitions.e2e_s(record, compat), record.output_tokens
    if compat == "guidellm":
        tpot = next(iter(definitions.token_gaps_s(record, compat)), None)
        if (slo.ttft_s is not None and ttft is None) or (slo.tpot_s is not None and tpot is None):
            return None
    if tpot is None:
        tpot = math.inf if tokens is None else e2e / (tokens - 1) if tokens > 1 else 0.0
    measured = ((slo.ttft_s, e2e if ttft is None else ttft), (slo.tpot_s, tpot), (slo.e2e_s, e2e))
    return all(limit is None or value <= limit for limit, value in measured)


def _mlperf(ttft_ms: float, tpot_ms: float) -> Slo:
    return Slo(ttft_s=ttft_ms / 1000, tpot_s=tpot_ms / 1000)


SLO_PRESETS = {
    "mlperf-llama2-70b": _mlperf(2000, 200),
    "mlperf-llama2-70b-interactive": _mlperf(450, 40),
    "mlperf-llama3.1-8b": _mlperf(2000, 100),
    "mlperf-llama3.1-8b-interactive": _mlperf(500, 30),
    "mlperf-llama3.1-405b": _mlperf(6000, 175),
    "mlperf-llama3.1-405b-interactive": _mlperf(4500, 80),
    "mlperf-mixtral-8x7b": _mlperf(2000, 200),
    "mlperf-deepseek-r1": _mlperf(2000, 80),
    "mlperf-deepseek-r1-interactive": _mlperf(1500, 15),
    "mlperf-gpt-oss-120b": _mlperf(3000, 80),
    "mlperf-gpt-oss-120b-interactive": _mlperf(2000, 15),
}
"""Limits of the 99th percentile in MLPerf inference, scenarios Server and Interactive.

Source: `LLM_LATENCY_LIMITS` of the submission checker in github.com/mlcommons/inference (tools/submission, up to v6.0).
"""
