"""Earlier runs: kept in the user's folder, shown as a table, found by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.bench.serve.made_results import ten_requests
from vllm_mxext.bench.serve.history import History, Run, format_history
from vllm_mxext.errors import ConfigError


def run(number: int, name: str = "", *, is_valid: bool = True) -> Run:
    figures = {"ttft_median": 0.1 * number, "tpot_median": None, "e2e_median": 1.0, "overall_throughput": 50.0 - number}
    return Run(f"2024-12-0{number}T14:30:22+00:00", name, "m", "http://s", "1 at a time", is_valid, figures)


@pytest.fixture
def history(tmp_path: Path) -> History:
    return History(tmp_path / "runs")


@pytest.mark.promise("PERF-27")
def test_runs_are_kept_in_order_and_a_broken_line_loses_only_itself(history: History) -> None:
    assert history.runs() == []
    history.add(run(1), ten_requests())
    with (history.folder / "history.jsonl").open("a") as file:
        file.write('{"at": "cut o\n[1]\n')
    history.add(run(2), ten_requests())
    assert history.runs() == [run(1), run(2)]


@pytest.mark.promise("PERF-27")
def test_the_table_has_sparklines_of_valid_runs_alike(history: History) -> None:
    for one in (run(1), run(9, is_valid=False), run(3), run(2)):
        history.add(one, ten_requests())
    lines = format_history(history.runs()).splitlines()
    assert sum("2024-12-" in line for line in lines) == 4
    assert any("INVALID" in line for line in lines)
    assert lines[-4] == "ttft_median         ▁█▄  0.1 -> 0.2"
    assert lines[-3] == "tpot_median         ···  n/a -> n/a"


def test_without_runs_there_is_a_line() -> None:
    assert format_history([], "zh") == "历史: -"


@pytest.mark.promise("PERF-26")
def test_a_kept_run_is_found_by_its_name_and_replaced_by_the_next(history: History) -> None:
    history.add(run(1, "before"), ten_requests())
    history.add(run(2, "before"), ten_requests(notes=("newer",)))
    assert history.baseline("before") == ten_requests(notes=("newer",))


def test_a_file_is_a_baseline_too(history: History, tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text(ten_requests().to_json())
    assert history.baseline(str(path)) == ten_requests()


@pytest.mark.parametrize("name", ["nothing", "no/where.json"])
def test_a_baseline_that_is_not_there_is_an_error_that_says_so(history: History, name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        history.baseline(name)


@pytest.mark.parametrize("name", ["../up", "a b", ".hidden", ""])
def test_names_are_those_of_files(history: History, name: str) -> None:
    with pytest.raises(ConfigError, match="letters, digits"):
        history.result_path(name)
