"""`mxext bench serve` and the documented tools: options, exit codes, what is printed and written."""

from __future__ import annotations

import dataclasses
import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.docs.documented_performance import CONFIG, HELP
from tests.unit.bench.serve.made_results import record, result, sweep, ten_requests
from vllm_mxext.bench.serve.plan import Plan
from vllm_mxext.bench.serve.result import RequestRecord, RunResult
from vllm_mxext.bench.serve.stage_run import Progress
from vllm_mxext.cli import bench_serve
from vllm_mxext.cli.bench_progress import ProgressLine, fitting
from vllm_mxext.cli.main import main
from vllm_mxext.errors import ConfigError
from vllm_mxext.tools import performance_config_runner, performance_tester

Measured = Callable[..., list[Plan]]


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Measured:
    """Makes the run give a result without a server; returns the plans that were run."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))

    def use(made: RunResult) -> list[Plan]:
        plans: list[Plan] = []

        def measure(plan: Plan) -> RunResult:
            plans.append(plan)
            return dataclasses.replace(made, plan=plan.as_dict())

        monkeypatch.setattr(bench_serve, "measure", measure)
        return plans

    return use


def slower(factor: float, count: int = 40) -> list[RequestRecord]:
    return [
        record(
            number,
            number * factor,
            ended_s=number * factor + 0.6 * factor,
            chunk_times_s=tuple(number * factor + factor * (0.2 + 0.1 * index) for index in range(5)),
        )
        for number in range(count)
    ]


def test_every_documented_option_is_in_the_help_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        performance_tester.main(["--help"])
    assert left.value.code == 0
    printed = " ".join(capsys.readouterr().out.split())
    for option, default in re.findall(r"^  (--[a-z-]+).*?(?:\(default: (.*)\))?$", HELP, re.MULTILINE):
        found = re.findall(rf"{option} (?:(?! --).)*", printed)
        assert found, option
        if default:
            assert any(f"(default: {default})" in one for one in found)


@pytest.mark.promise("CLI-2")
def test_documented_defaults_are_those_of_the_plan(measured: Measured) -> None:
    (plans,) = (measured(ten_requests()),)
    assert performance_tester.main(["--model", "m", "--no-save"]) == 0
    (plan,) = plans
    assert (plan.server.url, plan.workload.num_prompts, plan.workload.prompts_file) == ("http://0.0.0.0:8000", 10, "")
    params = plan.test_params
    assert (params.max_tokens, params.temperature, params.concurrent_requests, params.stream) == (100, 0.7, 1, True)
    assert (plan.output.log_dir, plan.output.save_individual_metrics) == ("/opt/mim/log", False)


def test_the_tools_need_a_model(measured: Measured, capsys: pytest.CaptureFixture[str]) -> None:
    measured(ten_requests())
    assert performance_tester.main([]) == 2
    assert "give --model" in capsys.readouterr().err


def test_the_documented_file_is_run(measured: Measured, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plans = measured(ten_requests())
    file = tmp_path / "performance_config.yaml"
    file.write_text(CONFIG.replace("/opt/mim/log", str(tmp_path / "log")))
    assert performance_config_runner.main([str(file)]) == 0
    assert (plans[0].server.model, plans[0].test_params.max_tokens, len(plans[0].prompts)) == (
        "llama-2-7b-chat",
        150,
        3,
    )
    (log,) = (tmp_path / "log").iterdir()
    assert f"Results saved to: {log}\n" in capsys.readouterr().out
    assert performance_config_runner.main([str(file), "--max-tokens", "7"]) == 0
    assert plans[1].test_params.max_tokens == 7


@pytest.mark.parametrize("arguments", [[], ["--", "plan.yaml"], ["--max-tokens", "3", "plan.yaml"]])
def test_a_runner_that_measures_nothing_does_not_end_well(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert performance_config_runner.main(arguments) == 2
    assert "The file comes first" in capsys.readouterr().err


def test_a_file_that_is_not_there_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert performance_config_runner.main(["none.yaml"]) == 2
    assert "none.yaml" in capsys.readouterr().err


def test_the_last_line_says_why_nothing_was_answered(measured: Measured, capsys: pytest.CaptureFixture[str]) -> None:
    failed = record(0, failure="http_status", failure_detail="HTTP 404: There is no such model.", token_source="none")
    measured(result([failed]))
    assert main(["bench", "serve", "--model", "m", "--no-save"]) == 1
    assert (
        capsys.readouterr().err.splitlines()[-1] == "mxext: No request was answered: HTTP 404: There is no such model."
    )


@pytest.mark.promise("PERF-26")
@pytest.mark.parametrize(
    ("made", "flags", "code"),
    [
        (ten_requests(), [], 0),
        (ten_requests(), ["--slo", "ttft=250,tpot=120"], 0),
        (ten_requests(), ["--slo", "ttft=150"], 3),
        (ten_requests(), ["--goodput", "tpot:90", "e2el:900"], 3),
        (sweep(), ["--slo", "ttft=200,tpot=25"], 0),
        (sweep(), ["--slo", "ttft=20"], 3),
        (ten_requests(invalid_reasons=("Late.",)), ["--slo", "ttft=150"], 4),
        (result([record(0, failure="connect", token_source="none")]), [], 1),
        (ten_requests(is_interrupted=True), [], 130),
        (result([], is_interrupted=True), [], 130),
    ],
)
def test_exit_codes_say_what_came_out(
    made: RunResult, flags: list[str], code: int, measured: Measured, capsys: pytest.CaptureFixture[str]
) -> None:
    measured(made)
    assert main(["bench", "serve", "--model", "m", "--no-save", *flags]) == code


@pytest.mark.promise("PERF-26")
def test_a_run_is_held_against_one_that_was_kept(
    measured: Measured, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call = ["bench", "serve", "--model", "m", "--log-dir", str(tmp_path)]
    for factor, flags, code in (
        (1.0, ["--run-name", "before"], 0),
        (1.0, ["--baseline", "before"], 0),
        (1.2, ["--baseline", "before"], 3),
        (1.2, ["--baseline", "before", "--max-regression", "30"], 0),
        (0.8, ["--baseline", "before"], 0),
    ):
        measured(result(slower(factor)))
        assert main([*call, *flags]) == code, (factor, flags)
    assert "REGRESSION: TTFT: this run is slower than the baseline by 20.0 %" in capsys.readouterr().err
    assert main(["bench", "serve", "--history"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("1 at a time") == 5
    assert "ttft_median" in shown


@pytest.mark.promise("PERF-25")
def test_two_files_are_compared_without_measuring(
    measured: Measured, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plans = measured(ten_requests())
    for name, factor in (("a", 1.0), ("b", 1.2)):
        (tmp_path / f"{name}.json").write_text(result(slower(factor)).to_json())
    assert main(["bench", "serve", "--compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")]) == 0
    assert plans == []
    assert "TTFT: B is slower than A by 20.0 %" in capsys.readouterr().out
    (tmp_path / "c.json").write_text(ten_requests(invalid_reasons=("Late.",)).to_json())
    assert main(["bench", "serve", "--compare", str(tmp_path / "a.json"), str(tmp_path / "c.json")]) == 4
    assert "The second run is not a valid measurement" in capsys.readouterr().err


@pytest.mark.promise("PERF-25")
@pytest.mark.parametrize(
    ("text", "told"),
    [
        (ten_requests(invalid_reasons=("Late.",)).to_json(), "is not a valid measurement"),
        (result(slower(1.0, 5)).to_json(), "at least 6 blocks"),
        (ten_requests().to_json().replace('"sent_s": 0.0', '"sent_s": "soon"'), "is damaged"),
        (ten_requests().to_json().replace('"stages": [', '"stages": ["x", '), "is not complete"),
        (ten_requests().to_json()[:-9], "is not JSON"),
        ("{}", "is not the result of a performance test"),
    ],
)
def test_an_earlier_run_that_nothing_can_be_compared_with_is_told_before_a_server_is_asked(
    text: str, told: str, measured: Measured, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plans = measured(ten_requests())
    (tmp_path / "run.json").write_text(text)
    for option in ("--compare", "--baseline"):
        assert main(["bench", "serve", "--model", "m", "--no-save", option, str(tmp_path / "run.json")]) == 2
        assert told in capsys.readouterr().err
    assert plans == []


@pytest.mark.promise("PERF-25")
@pytest.mark.parametrize("option", ["--compare", "--baseline"])
def test_a_run_that_could_not_be_compared_as_asked_is_no_success(
    option: str, measured: Measured, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.json").write_text(ten_requests().to_json())
    measured(result(slower(1.0, 3)))
    assert main(["bench", "serve", "--model", "m", "--no-save", option, str(tmp_path / "run.json")]) == 4
    assert "ask for more with --num-requests" in capsys.readouterr().err


@pytest.mark.promise("PERF-26")
def test_failing_more_often_than_the_baseline_is_a_regression(
    measured: Measured, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call = ["bench", "serve", "--model", "m", "--log-dir", str(tmp_path)]
    measured(result(slower(1.0)))
    assert main([*call, "--run-name", "before"]) == 0
    half = [dataclasses.replace(one, failure="http_status" if at % 2 else "") for at, one in enumerate(slower(1.0))]
    measured(result(half))
    assert main([*call, "--baseline", "before"]) == 3
    assert (
        "REGRESSION: share of answered requests: this run is worse than the baseline by 50" in capsys.readouterr().err
    )


@pytest.mark.promise("PERF-22")
def test_a_log_in_another_folder_is_no_failure(
    measured: Measured, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    measured(ten_requests())
    (tmp_path / "file").write_text("")
    assert main(["bench", "serve", "--model", "m", "--log-dir", str(tmp_path / "file" / "log")]) == 0
    printed = capsys.readouterr()
    assert "--log-dir names another folder" in printed.err
    assert f"Results saved to: {tmp_path / 'state'}" in printed.out


def test_a_terminal_without_chinese_letters_does_not_end_a_run(
    measured: Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured(ten_requests())
    printed = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(printed, "ascii", write_through=True))
    assert main(["bench", "serve", "--model", "m", "--no-save", "--lang", "zh"]) == 0
    assert b"P95: 0.200s" in printed.getvalue()


@pytest.mark.promise("PERF-21")
def test_every_sentence_of_a_chinese_report_is_chinese(
    measured: Measured, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.json").write_text(result(slower(1.2)).to_json())
    measured(result(slower(1.0)))
    flags = ["--lang", "zh", "--compare", str(tmp_path / "run.json"), "--max-tokens", "7"]
    assert main(["bench", "serve", "--model", "m", "--no-save", *flags]) == 0
    printed = capsys.readouterr()
    for line in (printed.out + printed.err).splitlines():
        assert re.search(r"[\u4e00-\u9fff]", line) or not re.search(r"[a-z]{3,} [a-z]{2,} [a-z]{2,}", line), line
    assert "TTFT：B 比 A 慢 20.0%" in printed.out
    assert "两次测试不相同" in printed.err


def test_an_address_to_compare_with_is_measured_in_turns(measured: Measured) -> None:
    plans = measured(ten_requests())
    main(["bench", "serve", "--model", "m", "--no-save", "--compare", "http://other:1"])
    assert plans[0].server.compare_url == "http://other:1"


def test_every_output_is_written(measured: Measured, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    measured(ten_requests())
    names = ("json", "csv", "prometheus", "html")
    flags = [word for name in names for word in (f"--{name}", str(tmp_path / f"run.{name}"))]
    assert main(["bench", "serve", "--model", "m", "--no-save", "--lang", "zh", *flags]) == 0
    printed = capsys.readouterr().out
    assert "性能测试结果" in printed
    for name in names:
        assert f"结果已保存到: {tmp_path / f'run.{name}'}" in printed
        assert (tmp_path / f"run.{name}").stat().st_size > 100
    assert json.loads((tmp_path / "run.json").read_text())["figures"][0]["e2e_mean"] == pytest.approx(0.6)


def test_a_file_without_a_place_is_refused_before_measuring(
    measured: Measured, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plans = measured(ten_requests())
    assert main(["bench", "serve", "--model", "m", "--html", str(tmp_path / "no/where.html")]) == 2
    assert plans == []
    assert "where.html' cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags",
    [
        ["--goodput", "speed:3"],
        ["--slo", "ttft=fast"],
        ["--slo", "mlperf"],
        ["--compat", "x"],
        ["--compare", "a", "b", "c"],
    ],
)
def test_a_wrong_objective_is_wrong_usage(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "serve", "--model", "m", *flags]) == 2
    assert capsys.readouterr().err.startswith("mxext: error: ")


def test_an_unknown_option_is_refused_with_a_suggestion(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "serve", "--model", "m", "--max-token-count", "3"]) == 2
    assert capsys.readouterr().err == "mxext: error: Unknown flag --max-token-count; did you mean --max-tokens?\n"


def progress(seconds: float) -> Progress:
    return Progress("1 at a time", "A", 10, 3, 1, 1, seconds, 30, 12.5, 0.2, False)


def test_progress_is_one_line_that_changes_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    line = ProgressLine(stream)
    line.show(progress(1))
    line.show(progress(2))
    line.close()
    assert "\n" not in stream.getvalue()
    assert stream.getvalue().count("3/10 done, 1 failed, 1 in flight, 12 chunks/s, TTFT 0.200s") == 2


def test_progress_never_needs_a_second_line_of_a_narrow_terminal() -> None:
    assert fitting("A: 1 at a time", 40) == "A: 1 at a time"
    assert fitting("A: 1 at a time", 6) == "A: 1 a"
    assert fitting("预热 now", 5) == "预热 "
    assert fitting("预热 now", 3) == "预"


def test_progress_is_a_line_every_ten_seconds_elsewhere() -> None:
    stream, times = io.StringIO(), iter([0.0, 1.0, 9.9, 10.0, 10.0, 19.0, 21.0, 21.0])
    line = ProgressLine(stream, lambda: next(times))
    for _ in range(5):
        line.show(progress(1))
    assert stream.getvalue().count("\n") == 2


def test_a_wrong_option_is_told_before_a_server_is_asked_for_its_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(*arguments: object) -> str:
        raise AssertionError("a server was asked")

    monkeypatch.setattr("vllm_mxext.cli.bench_serve._first_model", asked)
    with pytest.raises(ConfigError, match="--num-prompts must be at least 1"):
        bench_serve.run(["--num-prompts", "-3"], "mxext bench serve", asks_for_model=True)
