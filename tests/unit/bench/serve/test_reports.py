"""What the console, the log, the exports and the page say of runs whose figures are known."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.docs.documented_performance import BLOCK, CHINESE_BLOCK
from tests.unit.bench.serve.made_results import record, result, sweep, ten_requests
from vllm_mxext.bench.serve import definitions
from vllm_mxext.bench.serve.chinese_formulas import CHINESE_FORMULAS
from vllm_mxext.bench.serve.console import documented_block, further_block
from vllm_mxext.bench.serve.exports import to_csv, to_json, to_prometheus
from vllm_mxext.bench.serve.html_report import to_html
from vllm_mxext.bench.serve.labels import LABELS, Language
from vllm_mxext.bench.serve.logfile import log_text, write_log
from vllm_mxext.bench.serve.plan import OutputPlan, Plan, RequestPlan, ServerPlan
from vllm_mxext.bench.serve.report_data import Report, seconds
from vllm_mxext.bench.serve.result import RunResult, Stage
from vllm_mxext.bench.serve.saving import save_outputs
from vllm_mxext.bench.serve.svg import Axes, Series, histogram, line_chart, sparkline, ticks

FAILED = {"failure": "timeout", "failure_detail": "no end after 600 s", "output_tokens": None, "token_source": "none"}


def unstreamed(**changes: object) -> RunResult:
    records = [record(number, number, chunk_times_s=(), **changes) for number in range(3)]
    return result(records, Plan(server=ServerPlan(model="m"), test_params=RequestPlan(stream=False)))


def skeleton(block: str) -> list[str]:
    """The lines without their figures."""
    return [re.sub(r": [\d.,]+", ": #", line) for line in block.rstrip().splitlines()]


@pytest.mark.promise("PERF-21")
@pytest.mark.parametrize(("language", "documented"), [("en", BLOCK), ("zh", CHINESE_BLOCK)])
def test_the_console_is_laid_out_as_documented(language: Language, documented: str) -> None:
    report = Report.of(ten_requests(), language=language)
    printed = documented_block(report) + f"\n\n{LABELS[language]['saved']}: "
    *lines, saved = skeleton(documented)
    assert skeleton(printed)[:-1] == lines
    assert saved.startswith(f"{LABELS[language]['saved']}: ")


def test_the_console_says_what_a_server_s_label_stands_for() -> None:
    one = ServerPlan(url="http://one:1", model="m", compare_url="http://two:2")
    plan, records = Plan(server=one), [record(0)]
    assert "  Server: A (m, http://one:1)\n" in further_block(Report.of(result(records, plan)))
    second = [Stage("1 at a time", "B", 1, None, 0.0, 0.0, 1.0)]
    assert "  Server: B (m, http://two:2)\n" in further_block(Report.of(result(records, plan, second)))


def test_a_run_without_an_answer_is_spared_formulas_of_figures_it_has_not() -> None:
    printed = further_block(Report.of(result([record(0, **FAILED)])))
    assert "TTFT" not in printed
    assert "Steady window: n/a\n" in printed
    assert printed.endswith("NO REQUEST WAS ANSWERED.")


@pytest.mark.promise("PERF-21")
def test_the_console_has_the_figures_of_the_run() -> None:
    lines = documented_block(Report.of(ten_requests())).splitlines()
    assert lines[5:11] == [
        "  Total Requests: 10",
        "  Total Tokens: 150",
        "  Prompt Tokens: 100",
        "  Completion Tokens: 50",
        "  Test Duration: 6.00s",
        "  Overall Throughput: 25.00 tokens/s",
    ]
    for heading, mean in (("Time to First", "0.200s"), ("Time Per", "0.100s"), ("End-to-End", "0.600s")):
        at = next(number for number, line in enumerate(lines) if line.startswith(heading))
        assert lines[at + 1] == f"  Mean: {mean}"


@pytest.mark.promise("PERF-21")
def test_what_could_not_be_measured_is_not_zero() -> None:
    block = documented_block(Report.of(unstreamed(output_tokens=None, token_source="none")))
    assert block.count("n/a") == 4 + 3 * 6
    assert re.findall(r": 0(?:\.0+)?s?$", block, re.MULTILINE) == []
    assert "  Mean: 0.600s" in block


@pytest.mark.promise("PERF-21")
def test_prompts_that_nobody_counted_have_no_tokens_while_answers_have() -> None:
    records = [record(number, number, prompt_tokens=None, token_source="tokenizer") for number in range(3)]
    report = Report.of(result(records))
    block = documented_block(report)
    for line in ("Total Tokens: n/a", "Prompt Tokens: n/a", "Overall Throughput: n/a"):
        assert line in block
    assert "Completion Tokens: n/a" not in block
    assert "prompt_tokens" not in to_prometheus(report)


def test_failures_reasons_formulas_and_the_client_are_printed() -> None:
    run = result(
        [record(0), record(1, 0.7), record(2, 1.4, **FAILED)],
        invalid_reasons=("The client was late.",),
        notes=("A note.",),
        is_interrupted=True,
    )
    printed = further_block(Report.of(run))
    for text in (
        "Failed: 1",
        "timeout 1",
        "no end after 600 s",
        "Event loop late, P99: 0.00110s",
        "TPOT = (E2E - TTFT) / (output tokens - 1)",
        "A note.",
        "Interrupted",
    ):
        assert text in printed
    assert printed.endswith("INVALID MEASUREMENT, do not use these figures:\n  - The client was late.")


@pytest.mark.promise("PERF-3")
def test_with_a_schedule_the_report_shows_latencies_from_sending_beside_those_from_the_schedule() -> None:
    late = [record(number, number + 1.0, scheduled_s=float(number)) for number in range(4)]
    report = Report.of(result(late))
    assert "End-to-end latency from the time of sending (without the wait to send): Mean 0.600s" in further_block(
        report
    )
    assert (report.values["e2e_mean"], report.values["e2e_from_sending_mean"]) == pytest.approx((1.6, 0.6))
    assert "from sending" not in further_block(Report.of(ten_requests()))


def test_a_sweep_shows_its_levels_its_knee_and_the_highest_good_load() -> None:
    report = Report.of(sweep())
    assert report.figures.stage.concurrency == 8
    printed = further_block(report)
    assert re.search(r"^  8 at a time .* knee$", printed, re.MULTILINE)
    assert "Highest load within the limits: 8 at a time" in printed
    assert not report.is_missed


def test_an_invalid_run_meets_no_objective() -> None:
    report = Report.of(dataclasses.replace(sweep(), invalid_reasons=("Late.",)))
    for text in (further_block(report), to_html(report)):
        assert "SLO" not in text
        assert "Highest load" not in text


def test_both_languages_have_the_same_labels() -> None:
    assert LABELS["en"].keys() == LABELS["zh"].keys()
    for language in ("en", "zh"):
        report = Report.of(sweep(), language=language)  # type: ignore[arg-type]
        assert further_block(report)
        assert to_html(report)


@pytest.mark.promise("PERF-21")
def test_every_formula_is_there_in_chinese_too() -> None:
    assert list(CHINESE_FORMULAS["own"]) == [name for name, _ in definitions.FORMULAS]
    for compat, formulas in definitions.COMPAT_DIFFERENCES.items():
        assert set(CHINESE_FORMULAS[compat]) >= {name for name, _ in formulas}


@pytest.mark.promise("PERF-14")
def test_a_sweep_that_did_not_reach_the_knee_says_so_in_words_and_marks_none() -> None:
    report = Report.of(sweep((1, 2, 4)))
    assert (report.figures.stage.concurrency, report.knee_index) == (4, None)
    assert "Knee: not reached; 4 at a time did not saturate the server." in further_block(report)
    assert "Knee: not reached" in to_html(report)
    assert not re.search(r'class="marked"[^>]*>knee<', to_html(report))


@pytest.mark.parametrize(
    ("value", "text"),
    [(1.545, "1.545s"), (0.245, "0.245s"), (0.01234, "0.0123s"), (0.0005, "0.00050s"), (0.0, "0.000s")],
)
def test_seconds_have_three_decimals_or_three_digits(value: float, text: str) -> None:
    assert seconds(value)[: len(text) - 1] == text[:-1]


@pytest.mark.promise("PERF-22")
def test_the_log_has_the_documented_name_sections_and_keys(tmp_path: Path) -> None:
    report = Report.of(ten_requests())
    output = OutputPlan(log_dir=str(tmp_path / "new"), save_individual_metrics=True, history=False)
    saved = save_outputs(report, output)
    (path,) = saved.paths
    assert (path.name, saved.problems, saved.notices) == ("mim_profile_20241201_143022.log", [], [])
    title, first, second = path.read_text(encoding="utf-8").split("\n\n", 2)
    assert title == "Performance Test Results - 2024-12-01T14:30:22"
    heading, _, data = first.partition("\n")
    aggregated = json.loads(data)
    assert heading == "AGGREGATED METRICS:"
    documented = ["total_requests", "total_tokens", "ttft_mean", "tpot_mean", "e2e_mean", "overall_throughput"]
    assert [aggregated[name] for name in documented] == pytest.approx([10, 150, 0.2, 0.1, 0.6, 25.0])
    heading, _, data = second.partition("\n")
    assert heading == "INDIVIDUAL REQUEST METRICS:"
    individual, _ = json.JSONDecoder().raw_decode(data)
    assert list(individual)[:5] == ["request_id", "ttft", "tpot", "e2e_latency", "throughput"]
    assert data.count('"request_id"') == 10


@pytest.mark.promise("PERF-22")
def test_a_log_never_replaces_another(tmp_path: Path) -> None:
    names = [write_log(tmp_path, "2024-12-01T14:30:22+00:00", text)[0].name for text in "abc"]
    assert names == [f"mim_profile_20241201_143022{suffix}.log" for suffix in ("", "_2", "_3")]
    assert (tmp_path / names[0]).read_text() == "a"


@pytest.mark.promise("PERF-22")
def test_a_log_that_has_no_place_goes_to_the_state_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    (tmp_path / "file").write_text("")
    path, message = write_log(tmp_path / "file" / "log", "2024-12-01T14:30:22", "text")
    assert path.parent == tmp_path / "state/vllm_mxext/performance/logs"
    assert "cannot be written" in message
    assert "--log-dir" in message


def test_a_log_without_individual_metrics_has_one_section() -> None:
    assert "INDIVIDUAL" not in log_text("2024-12-01T14:30:22", {"a": 1})


@pytest.mark.promise("PERF-23")
def test_prometheus_text_is_read_by_prometheus_and_has_every_level() -> None:
    report = Report.of(sweep())
    families = {family.name: family for family in text_string_to_metric_families(to_prometheus(report))}
    rates = families["vllm_mxext_performance_output_tokens_per_second"].samples
    assert [sample.value for sample in rates] == [one.output_tokens_per_s for one in report.stages]
    quantiles = families["vllm_mxext_performance_ttft_seconds"].samples
    assert len(quantiles) == 3 * len(report.stages)
    assert {sample.labels["quantile"] for sample in quantiles} == {"0.5", "0.95", "0.99"}
    assert len({json.dumps(sample.labels) for sample in quantiles}) == len(quantiles)


@pytest.mark.promise("PERF-23")
def test_what_is_absent_is_in_no_export() -> None:
    report = Report.of(unstreamed())
    assert "ttft" not in to_prometheus(report)
    (row, *_) = csv.DictReader(io.StringIO(to_csv(report)))
    assert (row["ttft"], row["tpot"], row["e2e_latency"]) == ("", "", str(record(0).ended_s))
    assert json.loads(to_json(report))["figures"][0]["ttft_mean"] is None


@pytest.mark.promise("PERF-23")
def test_labels_may_hold_anything_and_cells_are_no_formulas() -> None:
    plan = Plan(server=ServerPlan(model='a "b"\\\nc'))
    report = Report.of(result([record(0, **{**FAILED, "failure_detail": "=1+1"})], plan))
    families = list(text_string_to_metric_families(to_prometheus(report)))
    assert families[0].samples[0].labels["model"] == 'a "b"\\\nc'
    (row,) = csv.DictReader(io.StringIO(to_csv(report)))
    assert row["failure_detail"] == "'=1+1"


@pytest.mark.promise("PERF-23")
def test_the_json_can_be_read_as_a_result(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(to_json(Report.of(ten_requests())), encoding="utf-8")
    assert RunResult.read(tmp_path / "run.json").records == ten_requests().records


class Page(HTMLParser):
    """Collects what a browser would load or run, and whether tags close."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [name for name, _ in attributes if name in ("src", "href", "srcset", "onload", "onclick")]
        if tag not in ("meta",):
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag


@pytest.mark.promise("PERF-24")
def test_the_page_loads_nothing_and_runs_no_script() -> None:
    text = to_html(Report.of(sweep()))
    page = Page(text)
    assert page.loads == []
    assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)
    assert "url(" not in text
    assert "@import" not in text
    assert "prefers-color-scheme:dark" in text


@pytest.mark.promise("PERF-24")
def test_the_page_of_a_sweep_has_every_chart() -> None:
    text = to_html(Report.of(sweep()))
    assert Page(text).tags.count("svg") == 5 + 4 + 3
    for title in (
        "Tokens per second against load",
        "Goodput against load",
        "Knee: 8 at a time",
        "P99",
        "running",
        "waiting",
    ):
        assert title in text


def test_the_page_shows_texts_as_texts() -> None:
    text = to_html(Report.of(result([record(0, **{**FAILED, "failure_detail": "<script>alert(1)</script>"})])))
    assert "script" not in Page(text).tags
    assert "&lt;script&gt;" in text


def test_a_run_without_an_answer_has_a_page_and_a_block() -> None:
    report = Report.of(result([record(0, **FAILED)]))
    assert "n/a" in documented_block(report)
    assert ">n/a</b>" in to_html(report)
    for text in (further_block(report), to_html(report)):
        assert "NO REQUEST WAS ANSWERED" in text
        assert "Valid" not in text


def test_failures_are_told_beside_the_verdict() -> None:
    report = Report.of(result([record(0), record(1, 0.7), record(2, 1.4, **FAILED)]))
    assert further_block(report).endswith("Valid measurement. Failed: 1 / 3.")
    assert '<span class="badge bad">Failed: 1</span>' in to_html(report)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 10, [0, 2, 4, 6, 8, 10]), (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (0, 0.07, [0, 0.02, 0.04, 0.06, 0.08])],
)
def test_axes_have_round_numbers_that_cover_the_values(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(expected)


def test_points_are_drawn_where_they_belong() -> None:
    svg = line_chart(Axes("t", "x", "y"), [Series("s", ((0.0, 0.0), (10.0, 10.0)))])
    (first, last) = re.findall(r'<circle [^>]*cx="([\d.]+)" cy="([\d.]+)"', svg)
    assert (first, last) == (("64.0", "254.0"), ("622.0", "34.0"))


@pytest.mark.parametrize("values", [[1.0], [0.0, 0.0], [0.1 + 0.2, 0.3], [1.0, 2.0, 3.0]])
def test_every_value_is_in_a_histogram(values: list[float]) -> None:
    counts = re.findall(r": (\d+)</title>", histogram(Axes("t", "x", "y"), values))
    assert sum(map(int, counts)) == len(values)


def test_a_sparkline_has_a_sign_per_value() -> None:
    assert sparkline([1.0, 8.0, None, 4.5]) == "▁█·▅"
    assert sparkline([None, None]) == "··"
    assert sparkline([2.0, 2.0]) == "▄▄"


def test_turns_of_a_comparison_are_one_side_each() -> None:
    records = [record(number, number * 0.6, stage=number % 4) for number in range(8)]
    stages = [
        dataclasses.replace(ten_requests().stages[0], server=name, started_s=at, measured_s=at, ended_s=at + 3)
        for name, at in (("A", 0.0), ("B", 0.6), ("B", 1.2), ("A", 1.8))
    ]
    report = Report.of(result(records, stages=stages))
    assert [(one.stage.server, one.num_requests) for one in report.stages] == [("A", 4), ("B", 4)]
    assert report.stages[0].latencies.e2e is not None
    assert report.stages[0].latencies.e2e.median == pytest.approx(0.6)
    assert [len(report.turns(name)) for name in "AB"] == [2, 2]
    assert report.stages[0].steady is None
