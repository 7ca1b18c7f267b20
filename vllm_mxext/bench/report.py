"""Prints measurements: a table for people, and as the last line one JSON object for programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from vllm_mxext.bench.environment import describe_environment


def format_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Returns aligned columns; numbers are written with a sensible number of digits."""
    cells = [list(header), *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    rule = "  ".join("-" * width for width in widths).rstrip()
    return "\n".join([lines[0], rule, *lines[1:]])


def json_line(benchmark: str, config: dict[str, Any], results: Any) -> str:
    """Returns the last line of a benchmark: what ran, where, with which configuration, and what came out."""
    return json.dumps({"benchmark": benchmark, **describe_environment(), "config": config, "results": results})


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return str(value)
