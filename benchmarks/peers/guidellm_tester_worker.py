"""guidellm's formulas, in its environment, on times that our tester has recorded.

`guidellm_tester_worker.py FILE` prints guidellm's figures of a file that `mxext bench serve --json` has written.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from guidellm.benchmark.schemas.accumulator import GenerativeRequestsAccumulator
from guidellm.benchmark.schemas.metrics import GenerativeMetrics
from guidellm.schemas import GenerativeRequestStats, RequestInfo, RequestTimings, UsageMetrics

EPOCH_S = 1e3
"""guidellm takes a time of 0 for an absent one."""


def stats(record: dict[str, Any]) -> GenerativeRequestStats:
    """Returns a record as guidellm keeps it."""
    times = [at + EPOCH_S for at in record["chunk_times_s"]]
    timings = RequestTimings(
        request_start=record["written_s"] + EPOCH_S,
        first_token_iteration=times[0] if times else None,
        last_token_iteration=times[-1] if times else None,
        token_iterations=len(times),
        request_end=record["ended_s"] + EPOCH_S,
        resolve_end=record["ended_s"] + EPOCH_S,
    )
    return GenerativeRequestStats(
        request_id=record["request_id"],
        info=RequestInfo(request_id=record["request_id"], status="completed", timings=timings),
        input_metrics=UsageMetrics(text_tokens=record["prompt_tokens"]),
        output_metrics=UsageMetrics(text_tokens=record["output_tokens"]),
    )


def figures(path: Path) -> dict[str, float]:
    """Returns guidellm's figures of a run with one stage, without warm-up and failures."""
    requests = [stats(record) for record in json.loads(path.read_text())["records"]]
    accumulator: Any = SimpleNamespace(
        timings=SimpleNamespace(
            finalized_measure_start=min(one.request_start_time or 0.0 for one in requests),
            finalized_measure_end=max(one.request_end_time for one in requests),
        ),
        completed=GenerativeRequestsAccumulator(requests_stats=requests),
        incomplete=GenerativeRequestsAccumulator(),
        errored=GenerativeRequestsAccumulator(),
        config=SimpleNamespace(confidence=None, slo=None, strategy=SimpleNamespace(defines_arrival_schedule=False)),
    )
    metrics = GenerativeMetrics.compile(accumulator)
    latencies = {
        f"{name} {point}": getattr(source, place) / unit
        for name, distribution, unit in (
            ("ttft", metrics.time_to_first_token_ms, 1000),
            ("tpot", metrics.time_per_output_token_ms, 1000),
            ("token_gap", metrics.inter_token_latency_ms, 1000),
            ("e2e", metrics.request_latency, 1),
        )
        for point, source, place in (
            ("mean", distribution.successful, "mean"),
            ("median", distribution.successful, "median"),
            ("p95", distribution.successful.percentiles, "p95"),
            ("p99", distribution.successful.percentiles, "p99"),
        )
    }
    return latencies | {
        "requests_per_s": metrics.requests_per_second.successful.mean,
        "output_tokens_per_s": metrics.output_tokens_per_second.successful.mean,
        "total_tokens_per_s": metrics.tokens_per_second.successful.mean,
    }


if __name__ == "__main__":
    print(json.dumps(figures(Path(sys.argv[1]))))
