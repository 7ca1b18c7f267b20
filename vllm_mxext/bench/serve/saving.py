"""Saves a report wherever its plan says: log, history, JSON, CSV, Prometheus text, HTML."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from vllm_mxext.bench.serve.exports import to_csv, to_json, to_prometheus
from vllm_mxext.bench.serve.history import History, Run
from vllm_mxext.bench.serve.html_report import to_html
from vllm_mxext.bench.serve.logfile import log_text, write_log
from vllm_mxext.bench.serve.plan import OutputPlan
from vllm_mxext.bench.serve.report_data import Report, request_values
from vllm_mxext.errors import ConfigError


@dataclass(slots=True)
class Saved:
    """Which outputs were written.

    Attributes:
        paths: the files, the log first.
        problems: sentences about requested outputs that could not be written.
        notices: sentences about what was written elsewhere, or could not be added to the history.
    """

    paths: list[Path] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)


def save_outputs(report: Report, output: OutputPlan) -> Saved:
    """Writes every requested output; one that fails does not prevent the others."""
    saved = Saved()
    formats: tuple[tuple[str, Callable[[Report], str]], ...] = (
        (output.json, to_json),
        (output.csv, to_csv),
        (output.prometheus, to_prometheus),
        (output.html, to_html),
    )
    if output.save:
        try:
            path, message = write_log(Path(output.log_dir), report.result.started_at, _log(report, output))
            saved.paths.append(path)
            saved.notices += [message] if message else []
        except ConfigError as error:
            saved.problems.append(str(error))
    for name, written in formats:
        if name:
            try:
                Path(name).write_text(written(report), encoding="utf-8")
                saved.paths.append(Path(name))
            except OSError as error:
                saved.problems.append(f"'{name}' cannot be written: {error.strerror or error}.")
    if output.save and output.history:
        try:
            History().add(_run(report, output.run_name), report.result)
        except (OSError, ConfigError) as error:
            # The history of unnamed runs is a by-product, so its failure is not an error.
            (saved.problems if output.run_name else saved.notices).append(f"The history was not kept: {error}")
    return saved


def _log(report: Report, output: OutputPlan) -> str:
    result = report.result
    aggregated = {
        **report.values,
        "stage": report.figures.stage.name,
        "is_valid": result.is_valid,
        "invalid_reasons": list(result.invalid_reasons),
        "is_interrupted": result.is_interrupted,
        "failures": dict(report.failures),
        "token_sources": dict(report.figures.token_sources),
        "configuration": result.settings,
    }
    individual = []
    if output.save_individual_metrics:
        individual = [request_values(record, report.compat) for record in result.records]
    return log_text(result.started_at, aggregated, individual, report.language)


def _run(report: Report, name: str) -> Run:
    return Run(
        at=report.result.started_at,
        name=name,
        model=report.result.model,
        server=str(report.result.plan["server"]["url"]),
        load=report.figures.stage.name,
        is_valid=report.result.is_valid and not report.result.is_interrupted,
        figures=report.values,
    )
