"""The table of the README is made from a benchmark's result."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
import readme_table
from readme_table import BEGIN, END, LANGUAGES, ROOT, format_results, merge, replace_table


def report(engines: dict[str, Any]) -> dict[str, Any]:
    def entry(output: float, prompt: float) -> dict[str, float]:
        return {"output_tokens_per_s": output, "prompt_tokens_per_s": prompt}

    return {
        "commit": "0123456789ab+",
        "hardware": {"processor": "A CPU"},
        "config": {"num_threads": 2, "engines": engines},
        "results": {
            "8x(128->64)": {"read_gb_per_s": 35.4, "ours": entry(99.37, 1.0), "theirs": entry(150.4, 1.0)},
            "1x(1024->1)": {"read_gb_per_s": 36.9, "ours": entry(0.4, 405.3)},
        },
    }


def test_a_cell_is_the_rate_of_what_the_workload_is_about() -> None:
    table = format_results(report({"ours": {"peak_bytes": 1.56e9}}), LANGUAGES["README.md"])
    assert table.splitlines() == [
        "| engine | 8x(128->64) | 1x(1024->1) | peak memory, GB |",
        "| --- | ---: | ---: | ---: |",
        "| `ours` | 99.4 | 405 | 1.6 |",
        "| `theirs` | 150 |  |  |",
        "| memory read, GB/s | 35 | 37 |  |",
        "",
        "Measured on A CPU with 2 threads, at commit `0123456789ab`.",
    ]


def test_results_without_memory_have_no_column_for_it() -> None:
    header = format_results(report({}), LANGUAGES["README.md"]).splitlines()[0]
    assert header == "| engine | 8x(128->64) | 1x(1024->1) |"


def test_more_results_add_columns_and_the_largest_memory_counts() -> None:
    more = report({"ours": {"peak_bytes": 2e9}})
    more["results"] = {"1x(4096->128)": more["results"]["8x(128->64)"]}
    table = format_results(merge([report({"ours": {"peak_bytes": 1e9}}), more]), LANGUAGES["README.md"]).splitlines()
    assert table[0] == "| engine | 8x(128->64) | 1x(1024->1) | 1x(4096->128) | peak memory, GB |"
    assert table[2] == "| `ours` | 99.4 | 405 | 99.4 | 2.0 |"


def test_both_languages_have_the_same_cells() -> None:
    tables = [format_results(report({}), words).splitlines() for words in LANGUAGES.values()]
    assert [line for line in tables[0] if "`" in line][:-1] == [line for line in tables[1] if "`" in line][:-1]


def test_what_stands_between_the_comments_is_replaced() -> None:
    page = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    once = replace_table(page, "new\n")
    assert once == f"before\n{BEGIN}\n\nnew\n\n{END}\nafter\n"
    assert replace_table(once, "new\n") == once


@pytest.mark.parametrize("page", ["", BEGIN, f"{END}{BEGIN}", f"{BEGIN}{BEGIN}{END}", f"{BEGIN}{END}{END}"])
def test_a_page_without_a_clear_place_is_left_alone(page: str) -> None:
    with pytest.raises(ValueError, match="needs one"):
        replace_table(page, "new")


@pytest.mark.promise("DOCS-3")
@pytest.mark.parametrize("name", LANGUAGES)
def test_the_table_of_the_readme_is_that_of_results_in_the_repository(name: str) -> None:
    page = (ROOT / name).read_text(encoding="utf-8")
    results = [json.loads(path.read_text(encoding="utf-8")) for path in (ROOT / "benchmarks/results").glob("*offline*")]
    reports = [merge(some) for count in (1, 2, 3) for some in itertools.permutations(results, count)]
    assert any(replace_table(page, format_results(one, LANGUAGES[name])) == page for one in reports)


def test_the_script_writes_both_pages(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in LANGUAGES:
        (tmp_path / name).write_text(f"{BEGIN}\n{END}\n", encoding="utf-8")
    result = tmp_path / "result.json"
    result.write_text("a table for people\n" + json.dumps(report({})), encoding="utf-8")
    monkeypatch.setattr(readme_table, "ROOT", tmp_path)
    monkeypatch.setattr("sys.argv", ["readme_table.py", str(result)])
    readme_table.main()
    assert all("| `ours` |" in (tmp_path / name).read_text(encoding="utf-8") for name in LANGUAGES)
