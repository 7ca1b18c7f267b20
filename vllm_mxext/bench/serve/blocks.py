"""Splits a run into blocks, the units of a comparison: turns of two servers, or consecutive parts of one run.

Answers given at the same time are correlated, because they shared the server's batches, so a confidence interval over
single answers would be too narrow (`tests/unit/bench/serve/test_compare.py` counts how often). Blocks are long enough
to be nearly independent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median

from vllm_mxext.bench.serve import definitions
from vllm_mxext.bench.serve.result import RequestRecord, RunResult

MIN_BLOCKS = 6
"""With fewer, an interval is meaningless."""

_MAX_BLOCKS = 12
"""More blocks would be shorter, and less independent of each other."""

Block = Mapping[str, float | None]
"""Figure -> its value in the block; None if it could not be measured."""


def samples(records: Sequence[RequestRecord], compat: str = "own") -> dict[str, list[float]]:
    """Returns the values of the four distributions over the answered requests."""
    answered = [record for record in records if record.is_ok]
    found: dict[str, list[float | None]] = {
        "ttft": [definitions.ttft_s(record, compat) for record in answered],
        "tpot": [definitions.tpot_s(record, compat) for record in answered],
        "e2e": [definitions.e2e_s(record, compat) for record in answered],
        "throughput": [definitions.throughput(record) for record in answered],
    }
    return {name: [value for value in values if value is not None] for name, values in found.items()}


def turns(result: RunResult, server: str, compat: str = "own") -> list[Block]:
    """Returns the turns of one server in a comparison, each as a block."""
    found = []
    for index, stage in enumerate(result.stages):
        if stage.server == server:
            records = result.of_stage(index)
            end = max((record.ended_s for record in records), default=stage.measured_s)
            found.append(_block(records, _tokens(records), end - stage.measured_s, compat))
    return found


def parts(result: RunResult, stage: int, compat: str = "own") -> list[Block]:
    """Returns a stage as consecutive blocks, each of at least as many requests as were in flight.

    The tokens per second of a block are counted over a time slice, so that their mean is the stage's.
    """
    records = sorted(result.of_stage(stage), key=lambda record: record.sent_s)
    if not records:
        return []
    begin, end = result.stages[stage].measured_s, max(record.ended_s for record in records)
    busy_s = sum(record.ended_s - record.sent_s for record in records)
    in_flight = max(1, round(busy_s / (end - begin))) if end > begin else 1
    count = min(_MAX_BLOCKS, len(records) // in_flight)
    if count == 0:
        return []
    length = (end - begin) / count
    tokens = [0.0] * count
    for record in records:
        for at, amount in definitions.token_arrivals(record) if record.is_ok else ():
            tokens[min(count - 1, max(0, math.floor((at - begin) / length)))] += amount
    bounds = [len(records) * number // count for number in range(count + 1)]
    is_counted = _tokens(records) is not None
    return [
        _block(records[bounds[at] : bounds[at + 1]], tokens[at] if is_counted else None, length, compat)
        for at in range(count)
    ]


def _block(records: Sequence[RequestRecord], tokens: float | None, seconds: float, compat: str) -> Block:
    medians = {name: median(values) if values else None for name, values in samples(records, compat).items()}
    return {
        **medians,
        "output_throughput": None if tokens is None or seconds <= 0 else tokens / seconds,
        "answered": sum(record.is_ok for record in records) / len(records) if records else None,
    }


def _tokens(records: Sequence[RequestRecord]) -> float | None:
    answered = [record for record in records if record.is_ok]
    if any(record.output_tokens is None for record in answered):
        return None
    return float(sum(record.output_tokens or 0 for record in answered))
