"""Exports for other programs: JSON, CSV with one line per request, and Prometheus text."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping
from typing import Any

from vllm_mxext.bench.serve.compare import Comparison
from vllm_mxext.bench.serve.report_data import DISTRIBUTIONS, POINTS, Report, named_values, request_values

_PREFIX = "vllm_mxext_performance"
_QUANTILES = {"median": "0.5", "p95": "0.95", "p99": "0.99"}
_UNITS = {"ttft": "seconds", "tpot": "seconds", "e2e": "seconds", "throughput": "tokens_per_second"}
_SINGLE = {
    "total_requests": ("requests", "Measured requests"),
    "failed_requests": ("failed_requests", "Measured requests without a complete answer"),
    "prompt_tokens": ("prompt_tokens", "Prompt tokens of all answers"),
    "completion_tokens": ("completion_tokens", "Output tokens of all answers"),
    "test_duration": ("duration_seconds", "From the begin of measuring to the last answer"),
    "overall_throughput": ("total_tokens_per_second", "Prompt and output tokens per second"),
    "output_throughput": ("output_tokens_per_second", "Output tokens per second"),
    "request_throughput": ("answers_per_second", "Answers per second"),
    "goodput": ("goodput_answers_per_second", "Answers within the limits per second"),
    "good_share": ("good_share_ratio", "Share of the requests that kept the limits"),
}


def to_json(report: Report) -> str:
    """Returns the whole result, and the figures of every level under the names of the log."""
    data = report.result.as_dict()
    data["figures"] = [{"stage": one.stage.name, **named_values(one)} for one in report.stages]
    data["formulas"] = report.formulas
    data["comparisons"] = [_compared(one) for one in report.comparisons]
    data["baseline"] = [_compared(one) for one in report.baseline]
    return json.dumps(data, ensure_ascii=False, indent=1) + "\n"


def to_csv(report: Report) -> str:
    """Returns one line per request, warm-up included; unknown values are empty."""
    rows = [request_values(record, report.compat) for record in report.result.records]
    text = io.StringIO()
    names = list(rows[0]) if rows else ["request_id"]
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)
    return text.getvalue()


def to_prometheus(report: Report) -> str:
    """Returns gauges with quantiles, one set per load level; unknown figures are left out rather than 0."""
    lines: list[str] = []
    stages = [(_stage_labels(report, index), named_values(one)) for index, one in enumerate(report.stages)]
    valid = float(report.result.is_valid)
    lines += _gauge("valid", "1 if the figures may be used", [({"model": report.result.model}, valid)])
    for name, (metric, help_text) in _SINGLE.items():
        lines += _gauge(metric, help_text, [(labels, values.get(name)) for labels, values in stages])
    for name in DISTRIBUTIONS:
        samples = [
            ({**labels, "quantile": _QUANTILES[point]}, values.get(f"{name}_{point}"))
            for labels, values in stages
            for point in _QUANTILES
        ]
        lines += _gauge(f"{name}_{_UNITS[name]}", f"Quantiles of {name.upper()} over requests", samples)
        for point in POINTS:
            if point not in _QUANTILES:
                values = [(labels, figures.get(f"{name}_{point}")) for labels, figures in stages]
                lines += _gauge(f"{name}_{point}_{_UNITS[name]}", f"{point} of {name.upper()} over requests", values)
    return "".join(f"{line}\n" for line in lines)


def _gauge(name: str, help_text: str, samples: Iterable[tuple[Mapping[str, str], float | None]]) -> list[str]:
    known = [(labels, value) for labels, value in samples if value is not None]
    if not known:
        return []
    metric = f"{_PREFIX}_{name}"
    lines = [f"# HELP {metric} {help_text}", f"# TYPE {metric} gauge"]
    for labels, value in known:
        written = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
        lines.append(f"{metric}{{{written}}} {value!r}")
    return lines


def _stage_labels(report: Report, index: int) -> dict[str, str]:
    stage = report.stages[index].stage
    labels = {"model": report.result.model, "server": stage.server, "stage": stage.name}
    # The two sides of a comparison may have the same names, but no series may appear twice.
    return labels if len(report.stages) == 1 else {**labels, "number": str(index)}


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _cell(value: object) -> object:
    """Returns a cell that no spreadsheet mistakes for a formula."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@") else value


def _compared(one: Comparison) -> dict[str, Any]:
    return {
        "figure": one.figure,
        "first": one.first,
        "second": one.second,
        "ratio": one.ratio,
        "interval": [one.low, one.high],
        "verdict": one.verdict,
    }
