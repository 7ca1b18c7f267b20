"""Results of runs that were never made, with figures one can compute in the head or that look like a server's."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from typing import Any

from vllm_mxext.bench.serve.plan import LoadPlan, Plan, RequestPlan, ServerPlan, SloPlan
from vllm_mxext.bench.serve.result import ClientLag, MetricsSample, RequestRecord, RunResult, Stage

LAG = ClientLag(0.0002, 0.0011, 0.004, None, None, 0.12, 640.0)


def record(number: int, sent_s: float = 0.0, **changes: Any) -> RequestRecord:
    """Sent at `sent_s`; first of 5 tokens after 0.2 s, then one each 0.1 s; 10 prompt tokens."""
    times = tuple(sent_s + 0.2 + 0.1 * index for index in range(5))
    made = RequestRecord(
        request_id=f"req_{number}",
        stage=0,
        is_warmup=False,
        scheduled_s=None,
        sent_s=sent_s,
        ended_s=times[-1],
        chunk_times_s=times,
        prompt_tokens=10,
        output_tokens=5,
        token_source="usage",
        finish_reason="length",
        status=200,
    )
    return dataclasses.replace(made, **changes)


def result(
    records: Sequence[RequestRecord], plan: Plan | None = None, stages: Sequence[Stage] = (), **changes: Any
) -> RunResult:
    end = max((one.ended_s for one in records), default=0.0)
    made = RunResult(
        started_at="2024-12-01T14:30:22+00:00",
        plan=(plan or Plan(server=ServerPlan(model="m"))).as_dict(),
        environment={"hardware": {"processor": "made up"}},
        stages=tuple(stages) or (Stage("1 at a time", "A", 1, None, 0.0, 0.0, end),),
        records=tuple(records),
        lag=(LAG,) * max(1, len(stages)),
        duration_s=end,
    )
    return dataclasses.replace(made, **changes)


def ten_requests(**changes: Any) -> RunResult:
    """Ten requests one after the other: 50 output and 100 prompt tokens in 6 s."""
    return result([record(number, number * 0.6) for number in range(10)], **changes)


def sweep(levels: Sequence[int] = (1, 2, 4, 8, 16, 32), seed: int = 0) -> RunResult:
    """A server that is saturated from 8 requests in flight."""
    draw, records, stages, samples, now = random.Random(seed), [], [], [], 0.0
    for number, level in enumerate(levels):
        slots, begin = [now] * level, now
        for _ in range(40 + 6 * level):
            slot = min(range(level), key=slots.__getitem__)
            sent, slow = slots[slot], max(1.0, level / 8)
            first = sent + draw.gammavariate(8, 0.01) * slow**1.5
            gap = draw.gammavariate(30, 0.0005) * slow
            tokens = draw.randint(20, 60)
            times = tuple(first + gap * index for index in range(tokens))
            records.append(
                record(
                    len(records),
                    sent,
                    stage=number,
                    ended_s=times[-1] + 0.001,
                    chunk_times_s=times,
                    output_tokens=tokens,
                )
            )
            slots[slot] = times[-1] + 0.002
        now = max(slots)
        stages.append(Stage(f"{level} at a time", "A", level, None, begin, begin, now))
        samples += [
            MetricsSample(
                begin + share * (now - begin),
                "A",
                {
                    "vllm:num_requests_running": float(min(level, 8)),
                    "vllm:num_requests_waiting": float(max(0, level - 8)),
                },
            )
            for share in (0.1, 0.5, 0.9)
        ]
    plan = Plan(
        server=ServerPlan(model="mx-tiny", url="http://127.0.0.1:8000"),
        test_params=RequestPlan(max_tokens=60),
        load=LoadPlan(sweep="concurrency"),
        slo=SloPlan(ttft_ms=200, tpot_ms=25),
    )
    return result(records, plan, stages, metrics=tuple(samples), notes=("The warm-up had no request.",))
