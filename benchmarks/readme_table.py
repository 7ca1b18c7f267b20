"""Writes the table of results of `offline.py` into README.md and README_CH.md.

    python benchmarks/readme_table.py benchmarks/results/RESULT.json [MORE.json ...]

RESULT.json is the last line of the benchmark's output; more results add columns. The table goes between two comments;
what lies between them is replaced. A cell is output tokens per second, or prompt tokens per second where only one token
is generated; the last column is the largest memory that was resident.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_mxext.bench.workload import Workload

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- benchmark table -->", "<!-- end of the benchmark table -->"


@dataclass(frozen=True)
class Words:
    """What a table says in one language.

    Attributes:
        engine: head of the first column.
        bandwidth: name of the row with the bandwidth.
        memory: head of the last column.
        caption: below the table; formatted with `processor`, `threads` and `commit`.
    """

    engine: str
    bandwidth: str
    memory: str
    caption: str


LANGUAGES = {
    "README.md": Words(
        "engine",
        "memory read, GB/s",
        "peak memory, GB",
        "Measured on {processor} with {threads} threads, at commit `{commit}`.",
    ),
    "README_CH.md": Words(
        "引擎", "内存读取，GB/s", "内存峰值，GB", "测量环境：{processor}，{threads} 个线程，提交 `{commit}`。"
    ),
}


def format_results(report: Mapping[str, Any], words: Words) -> str:
    """Returns the table and its caption.

    Args:
        report: the JSON object of `offline.py`.
        words: the language.
    """
    results, memory = report["results"], report["config"].get("engines", {})
    workloads = list(results)
    names = list(dict.fromkeys(name for entry in results.values() for name in entry if name != "read_gb_per_s"))
    rows = [
        [f"`{name}`", *(_cell(results[text].get(name), text) for text in workloads), *_memory_cell(memory, name)]
        for name in names
    ]
    head = [words.engine, *workloads, *([words.memory] if memory else [])]
    probe = [
        words.bandwidth,
        *(f"{results[text]['read_gb_per_s']:.0f}" for text in workloads),
        *([""] if memory else []),
    ]
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows, probe]
    caption = words.caption.format(
        processor=report["hardware"]["processor"],
        threads=report["config"]["num_threads"],
        commit=str(report["commit"]).rstrip("+"),
    )
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + f"\n\n{caption}\n"


def merge(reports: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns one report with the workloads of all; peak memory is the largest, all else the first report's."""
    results = {workload: entry for report in reports for workload, entry in report["results"].items()}
    engines: dict[str, Any] = {}
    for report in reports:
        for name, facts in report["config"].get("engines", {}).items():
            engines[name] = max(engines.get(name, facts), facts, key=lambda one: one["peak_bytes"])
    return {**reports[0], "results": results, "config": {**reports[0]["config"], "engines": engines}}


def replace_table(page: str, table: str) -> str:
    """Returns `page` with `table` between the two comments.

    Raises:
        ValueError: the comments are not there, each once and in this order.
    """
    before, found, rest = page.partition(BEGIN)
    _, closed, after = rest.partition(END)
    if not (found and closed) or BEGIN in rest or END in before + after:
        raise ValueError(f"The page needs one {BEGIN} and, after it, one {END}.")
    return f"{before}{BEGIN}\n\n{table}\n{END}{after}"


def _cell(entry: Mapping[str, Any] | None, workload: str) -> str:
    if entry is None:
        return ""
    is_prompt = Workload.parse(workload).output_len == 1
    rate = entry["prompt_tokens_per_s" if is_prompt else "output_tokens_per_s"]
    return f"{rate:.0f}" if rate >= 100 else f"{rate:.1f}"


def _memory_cell(memory: Mapping[str, Any], name: str) -> list[str]:
    if not memory:
        return []
    return [f"{memory[name]['peak_bytes'] / 1e9:.1f}" if name in memory else ""]


def main() -> None:
    """Reads the result and rewrites both pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+")
    paths = parser.parse_args().results
    report = merge([json.loads(path.read_text(encoding="utf-8").splitlines()[-1]) for path in paths])
    for name, words in LANGUAGES.items():
        page = ROOT / name
        text = replace_table(page.read_text(encoding="utf-8"), format_results(report, words))
        page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
