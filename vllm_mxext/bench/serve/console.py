"""The report as text for a terminal: the documented block, then all further figures, the verdict last."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from vllm_mxext.bench.report import format_table
from vllm_mxext.bench.serve.compare import Comparison
from vllm_mxext.bench.serve.labels import LABELS, Language
from vllm_mxext.bench.serve.report_data import (
    DISTRIBUTIONS,
    POINTS,
    Report,
    count,
    level_name,
    named_values,
    number,
    seconds,
    share,
)
from vllm_mxext.redaction import redact

RULE = "=" * 80
_DASH = "-" * 80


def documented_block(report: Report) -> str:
    """Returns the summary and the four distributions under the documented headings."""
    words, values = LABELS[report.language], report.values
    lines = [RULE, words["title"], RULE, "", f"{words['summary']}:"]
    rate = values.get("overall_throughput")
    summary = (
        ("total_requests", count(values.get("total_requests"))),
        ("total_tokens", count(values.get("total_tokens"))),
        ("prompt_tokens", count(values.get("prompt_tokens"))),
        ("completion_tokens", count(values.get("completion_tokens"))),
        ("duration", _two_decimals(values.get("test_duration"))),
        ("overall_throughput", "n/a" if rate is None else f"{number(rate)} tokens/s"),
    )
    lines += [f"  {words[name]}: {text}" for name, text in summary]
    for name in DISTRIBUTIONS:
        written = number if name == "throughput" else seconds
        lines += ["", f"{words[name]}:"]
        lines += [f"  {words[point]}: {written(values.get(f'{name}_{point}'))}" for point in POINTS]
    return "\n".join([*lines, RULE])


def further_block(report: Report) -> str:
    """Returns everything else: load levels, failures, objectives, the client, comparisons, formulas, validity."""
    words = LABELS[report.language]
    parts = [
        _counts(report),
        _gaps(report) if report.has_answers else [],
        _levels(report),
        _objectives(report),
        _client(report),
        _comparison(words["compare"], report.comparisons, report),
        _comparison(words["baseline"], report.baseline, report),
        _formulas(report) if report.has_answers else [],
        _notes(report),
        [validity_line(report)],
    ]
    body = "\n\n".join("\n".join(part) for part in parts if part)
    return f"{_DASH}\n{words['more']}\n{_DASH}\n\n{body}"


def format_comparison(title: str, compared: Sequence[Comparison], language: Language) -> str:
    """Returns a table of ratios with intervals and verdicts, and the verdicts as sentences."""
    words = LABELS[language]
    header = (words["figure"], "A", "B", words["ratio"], words["interval"], words["verdict"])
    rows = [
        (
            words[f"compared_{one.figure}"],
            one.first,
            one.second,
            f"{one.ratio:.3f}",
            f"{one.low:.3f} .. {one.high:.3f}",
            words[one.verdict],
        )
        for one in compared
    ]
    sentences = [f"  {one.sentence('A', 'B', language)}" for one in compared]
    return "\n".join([f"{title}:", *_indented(format_table(header, rows)), *sentences])


def validity_line(report: Report) -> str:
    """Returns whether the figures may be used, and why not."""
    words, result = LABELS[report.language], report.result
    if not report.has_answers:
        return f"{words['nothing_answered']}."
    if result.is_valid:
        failed = report.failures.total()
        lost = f" {words['failed']}: {failed} / {sum(one.num_requests for one in report.stages)}." if failed else ""
        return f"{words['valid']}.{lost}"
    return f"{words['invalid']}:\n" + "\n".join(f"  - {reason}" for reason in result.invalid_reasons)


def _counts(report: Report) -> list[str]:
    words, one, values = LABELS[report.language], report.figures, report.values
    sources = ", ".join(f"{name} ({times})" for name, times in one.token_sources.items())
    steady = values.get("steady_output_throughput")
    rows = [
        ("server", _server(report, one.stage.server)),
        *([("stage", level_name(one.stage, report.language))] if len(report.stages) > 1 else ()),
        ("successful", count(values.get("successful_requests"))),
        ("failed", count(values.get("failed_requests"))),
        ("warmup", count(sum(record.is_warmup for record in report.result.records))),
        ("request_throughput", number(values.get("request_throughput"))),
        ("output_throughput", number(values.get("output_throughput"))),
        ("steady", "n/a" if steady is None else f"{number(steady)} tokens/s"),
        ("token_source", sources or "n/a"),
    ]
    lines = [f"{words['requests']}:", *(f"  {words[name]}: {text}" for name, text in rows)]
    if report.failures:
        kinds = ", ".join(f"{kind} {times}" for kind, times in report.failures.items())
        lines.append(f"  {words['failures']}: {kinds}")
        details = {record.failure_detail for record in report.result.records if record.failure_detail}
        lines += [f"    {detail}" for detail in sorted(details)[:5]]
    return lines


def _server(report: Report, label: str) -> str:
    """Returns a server's label, with what it stands for."""
    plan = report.result.plan.get("server", {})
    if label == plan.get("compare_name") != plan.get("name"):
        facts = [plan.get("compare_model") or plan.get("model"), plan.get("compare_url")]
    else:
        facts = [plan.get("model"), plan.get("url")]
    known = ", ".join(str(fact) for fact in facts if fact)
    return f"{label} ({redact(known)})" if known else label


def _gaps(report: Report) -> list[str]:
    words, values = LABELS[report.language], report.values
    lines = []
    with_schedule = ("ttft_from_sending", "e2e_from_sending") if report.figures.from_sending else ()
    for name in ("chunk_gap", "token_gap", *with_schedule):
        figures = ", ".join(f"{words[point]} {seconds(values.get(f'{name}_{point}'))}" for point in POINTS)
        lines.append(f"{words[name]}: {figures}")
    return lines


def _levels(report: Report) -> list[str]:
    if len(report.stages) < 2:
        return []
    words = LABELS[report.language]
    header = (words["stage"], words["server"], "tokens/s", "req/s", "TTFT P50", "TTFT P99", "TPOT P50", "E2E P99", "")
    rows = []
    for index, one in enumerate(report.stages):
        values = named_values(one)
        cells = [seconds(values.get(name)) for name in ("ttft_median", "ttft_p99", "tpot_median", "e2e_p99")]
        mark = words["knee"] if index == report.knee_index else ""
        rows.append(
            (
                level_name(one.stage, report.language),
                one.stage.server,
                number(values.get("output_throughput")),
                number(values.get("request_throughput")),
                *cells,
                mark,
            )
        )
    sentence = [f"  {report.knee_sentence}"] if report.knee else []
    return [f"{words['stages']}:", *_indented(format_table(header, rows)), *sentence]


def _objectives(report: Report) -> list[str]:
    goodput = report.figures.goodput
    if goodput is None:
        return []
    words = LABELS[report.language]
    lines = [
        f"{words['goodput']}:",
        f"  {words['limits']}: {goodput.slo} ({goodput.slo.percentile:g} %)",
        f"  {words['good_share']}: {share(goodput.share)}",
        f"  {words['request_throughput']}: {number(goodput.requests_per_s)}",
    ]
    if report.result.is_valid:  # figures that must not be used meet nothing
        lines.append(f"  {words['slo_missed'] if report.is_missed else words['slo_met']}")
        if report.is_sweep and report.best_good is not None:
            lines.append(f"  {words['best_good']}: {level_name(report.best_good.stage, report.language)}")
    return lines


def _client(report: Report) -> list[str]:
    words, lag = LABELS[report.language], report.lag
    if lag is None:
        return []
    return [
        f"{words['lag']}:",
        f"  {words['loop_delay']}: {seconds(lag.loop_delay_p99_s)}",
        f"  {words['send_lag']}: {seconds(lag.send_lag_p99_s)}",
        f"  {words['cpu_share']}: {share(lag.cpu_share)}",
    ]


def _comparison(title: str, compared: Sequence[Comparison], report: Report) -> list[str]:
    return [format_comparison(title, compared, report.language)] if compared else []


def _formulas(report: Report) -> list[str]:
    words = LABELS[report.language]
    lines = [f"{words['formulas']}:"]
    for name, formula in report.formulas.items():
        lines += textwrap.wrap(f"{name} = {formula}", 100, initial_indent="  ", subsequent_indent="      ")
    return lines


def _notes(report: Report) -> list[str]:
    words = LABELS[report.language]
    notes = [words["interrupted"]] if report.result.is_interrupted else []
    notes += report.result.notes
    return [f"{words['notes']}:", *(f"  - {note}" for note in notes)] if notes else []


def _two_decimals(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.2f}s"


def _indented(text: str) -> list[str]:
    return [f"  {line}" for line in text.splitlines()]
