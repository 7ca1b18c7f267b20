"""Definitions of every figure of a request, ours and those of vLLM and guidellm, as code and as formulas in words.

Sources: vLLM 0.32 (github.com/vllm-project/vllm): `vllm/benchmarks/lib/endpoint_request_func.py`,
`async_request_openai_chat_completions`; `vllm/benchmarks/serve.py`, `calculate_metrics`. guidellm 0.8
(github.com/vllm-project/guidellm), below `src/guidellm`: `backends/openai/http.py`, `_resolve_streaming` and
`_trace_request_start`; `schemas/base/request_stats.py`; `benchmark/schemas/metrics.py`, `GenerativeMetrics.compile`;
`schemas/base/statistics.py`, `DistributionSummary.from_values`. `benchmarks/tester_peers.py` holds us to their code.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from vllm_mxext.bench.serve.result import RequestRecord

FORMULAS: tuple[tuple[str, str], ...] = (
    ("TTFT", "arrival of the first event with text - origin; absent without streaming"),
    ("origin", "scheduled time where requests have a schedule (no coordinated omission), else the time of sending"),
    ("time of sending", "just before a request is written to its connection; opening a new one counts"),
    ("E2E", "end of the answer - origin"),
    ("TPOT", "(E2E - TTFT) / (output tokens - 1); absent for a single token and without streaming"),
    ("chunk gap", "arrival of an event with text - arrival of the one before; one value per event but the first"),
    (
        "token gap",
        "chunk gap / tokens of the event, once for each of them; absent unless the server says how many tokens an "
        "event has, or there are as many events as tokens",
    ),
    ("output tokens", "usage.completion_tokens; else the text counted by a tokenizer; never the number of events"),
    ("request throughput", "output tokens of a request / (end of its answer - time of sending)"),
    ("duration", "last end of a measured answer - begin of measuring (sending of the first request after the warm-up)"),
    (
        "output tokens/s",
        "output tokens of all measured answers / duration; failed requests add no tokens, but their time counts",
    ),
    ("total tokens/s", "(prompt tokens + output tokens of all measured answers) / duration"),
    ("requests/s", "measured answers / duration"),
    ("send lag", "time of sending - scheduled time"),
    (
        "steady window",
        "from when the full number of requests was in flight (with a schedule: from the first end of an answer), not "
        "before measuring began, to the sending of the last request; latencies of requests sent in it, tokens by their "
        "arrival in it, those of requests sent before it included",
    ),
    (
        "goodput",
        "answers that keep every limit / duration, and their share of all measured requests; a single token keeps any "
        "TPOT, an unknown number of tokens none; without streaming E2E stands for TTFT and for the time after it",
    ),
    ("percentile", "linear interpolation between the two nearest values"),
    (
        "knee",
        "sweep of concurrency: the lowest level whose output tokens/s (in the steady window, if there is one) are at "
        "least 90 % of the median of those of it and of all higher levels; sweep of rates: the highest rate up to "
        "which, in the steady window, answers ended as fast as requests were sent, within 5 %; not reached if the "
        "highest level did not fill the server",
    ),
    (
        "comparison",
        "ratio of the means over blocks of each side: the turns of two servers, pair by pair, or consecutive parts of "
        "two runs; of latencies each block gives its median; interval: bootstrap over the blocks (percentiles widened "
        "for few blocks after Hesterberg), 95 % for each figure on its own",
    ),
)
"""Name and formula of every figure by our definitions, in the order of a report."""

COMPAT_DIFFERENCES: dict[str, tuple[tuple[str, str], ...]] = {
    "own": (),
    "vllm": (
        ("origin", "always the time of sending, also with a schedule"),
        ("TTFT", "arrival of the first event with a choice, even one without text such as the role - origin"),
        ("E2E", "arrival of the last event with a choice - origin; usage and end of the stream come later"),
        ("chunk gap", "between all events with a choice, also those without text (vLLM calls it ITL)"),
        (
            "duration",
            "with a schedule and without a warm-up it begins with the schedule, before the first request is due",
        ),
    ),
    "guidellm": (
        ("origin", "always the time when a request is written to its connection, without the time to open one"),
        (
            "TPOT",
            "(last event with text, or end of the answer without streaming - origin) / output tokens: the first token "
            "is included; a request weighs as much as it has output tokens",
        ),
        (
            "token gap",
            "(last - first event with text) / (output tokens - 1), one value per request, which weighs as much as it "
            "has output tokens after the first (guidellm calls it ITL)",
        ),
        (
            "percentile",
            "of latencies and gaps: the lowest value that at least this share of the weight does not exceed",
        ),
        (
            "goodput",
            "the limit of TPOT is held against the token gap; requests without a measured value are left out of the "
            "share",
        ),
    ),
}
"""Value of `--compat` -> the formulas that differ from ours."""


def ttft_s(record: RequestRecord, compat: str = "own") -> float | None:
    """Returns the time to first token; None without one or without streaming."""
    times = _event_times(record, compat)
    return times[0] - _origin(record, compat) if times else None


def e2e_s(record: RequestRecord, compat: str = "own") -> float:
    """Returns the time to the end of the answer."""
    times = _event_times(record, compat) if compat == "vllm" else ()
    return (times[-1] if times else record.ended_s) - _origin(record, compat)


def tpot_s(record: RequestRecord, compat: str = "own") -> float | None:
    """Returns the time per output token after the first; None without one, and without streaming."""
    first, tokens = ttft_s(record, compat), record.output_tokens
    if compat == "guidellm":
        last = record.chunk_times_s[-1] if record.chunk_times_s else record.ended_s
        return (last - _origin(record, compat)) / tokens if tokens else None
    if first is None or tokens is None:
        return None
    return (e2e_s(record, compat) - first) / (tokens - 1) if tokens > 1 else None


def chunk_gaps_s(record: RequestRecord, compat: str = "own") -> list[float]:
    """Returns the times between events with text."""
    return [after - before for before, after in pairwise(_event_times(record, compat))]


def token_gaps_s(record: RequestRecord, compat: str = "own") -> list[float]:
    """Returns the times between tokens; empty if the tokens of each event are unknown."""
    times, tokens = record.chunk_times_s, record.output_tokens
    if compat == "guidellm":
        return [(times[-1] - times[0]) / (tokens - 1)] if times and tokens and tokens > 1 else []
    gaps = [after - before for before, after in pairwise(times)]
    if len(record.chunk_tokens) == len(times):
        counted = zip(gaps, record.chunk_tokens[1:], strict=True)
        return [gap / count for gap, count in counted for _ in range(count)]
    # The end-of-text token counts, but has no text and so no event.
    return gaps if tokens is not None and len(times) in (tokens, tokens - 1) else []


def throughput(record: RequestRecord) -> float | None:
    """Returns a request's output tokens per second since it was sent; None if its tokens are unknown."""
    seconds = record.ended_s - record.sent_s
    return None if record.output_tokens is None or seconds <= 0 else record.output_tokens / seconds


def token_arrivals(record: RequestRecord) -> list[tuple[float, float]]:
    """Returns (time, number) of output tokens as they arrived; events of unknown size share the tokens evenly."""
    tokens, times = record.output_tokens, record.chunk_times_s
    if not tokens:
        return []
    if not times:
        return [(record.ended_s, float(tokens))]
    if len(record.chunk_tokens) == len(times):
        return [(at, float(count)) for at, count in zip(times, record.chunk_tokens, strict=True)]
    return [(at, tokens / len(times)) for at in times]


def _event_times(record: RequestRecord, compat: str) -> Sequence[float]:
    """Returns the arrivals of the events that count: those with text; by vLLM's definitions, all with a choice."""
    return sorted(record.chunk_times_s + record.empty_times_s) if compat == "vllm" else record.chunk_times_s


def _origin(record: RequestRecord, compat: str) -> float:
    if compat == "guidellm" and record.written_s is not None:
        return record.written_s
    return record.sent_s if compat != "own" or record.scheduled_s is None else record.scheduled_s
