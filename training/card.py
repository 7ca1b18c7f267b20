"""Writes the model cards from the measured results and the record of the training."""

from __future__ import annotations

import json
from pathlib import Path
from string import Template
from typing import Any

from training.model import ModelShape
from vllm_mxext.builtin import adapter_path, model_path

_HERE = Path(__file__).resolve().parent
RECORD = _HERE / "record.json"
"""What the last build measured: seconds, steps, tokens and threads of every training run."""


def read_record() -> dict[str, Any]:
    """Return the record, empty before the first build."""
    record: dict[str, Any] = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {}
    return record


def update_record(name: str, entry: dict[str, Any]) -> None:
    """Put the entry of one training run into the record."""
    record = read_record() | {name: entry}
    RECORD.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def write_cards(result: dict[str, Any]) -> None:
    """Fill the card templates with the measured numbers and write them next to the weights."""
    record = read_record()
    values = {
        "parameters": f"{record['base']['parameters']:,}",
        "megabytes": f"{result['model_bytes'] / 1e6:.2f}",
        "base_table": _base_table(result["base"]),
        "adapter_table": "\n\n".join(_adapter_table(name, rows) for name, rows in result["adapters"].items()),
        "weak": _weak_sentence(result["base"]),
        "training": _training_sentence(record["base"]),
        "versions": f"torch {result['torch']}, transformers {result['transformers']}",
        **{key: str(getattr(ModelShape(), key)) for key in ModelShape.__slots__},
    }
    template = Template((_HERE / "card.md").read_text(encoding="utf-8"))
    (model_path() / "README.md").write_text(template.substitute(values), encoding="utf-8")
    for name, rows in result["adapters"].items():
        folder = adapter_path(name)
        template = Template((_HERE / f"card_{name}.md").read_text(encoding="utf-8"))
        text = template.substitute(table=_adapter_table(name, rows), training=_training_sentence(record[name]))
        (folder / "README.md").write_text(text, encoding="utf-8")


def _training_sentence(entry: dict[str, Any]) -> str:
    return (
        f"{entry['steps']:,} steps of about {entry['tokens_per_step']:,} tokens in {entry['seconds'] / 60:.0f} minutes "
        f"with {entry['threads']} threads on a machine with {entry['cpu_count']} CPU cores that did other work "
        f"meanwhile (load average {entry['load_average']}), with torch {entry['torch']}"
    )


def _weak_sentence(rows: dict[str, dict[str, Any]], aim: float = 0.95) -> str:
    weak = [f"{name} ({row['accuracy']:.0%})" for name, row in rows.items() if row["accuracy"] < aim]
    if not weak:
        return f"Every task reaches the aim of {aim:.0%}."
    return f"The aim is {aim:.0%}. **These tasks miss it, so do not rely on them:** {', '.join(weak)}."


def _base_table(rows: dict[str, dict[str, Any]]) -> str:
    lines = ["| task | what is asked | held-out items | right answers |", "|---|---|---:|---:|"]
    lines += [f"| {name} | {row['claim']} | {row['items']} | {row['accuracy']:.1%} |" for name, row in rows.items()]
    return "\n".join(lines)


def _adapter_table(name: str, rows: dict[str, dict[str, Any]]) -> str:
    lines = [f"| {name} | what is asked | held-out items | base | with adapter |", "|---|---|---:|---:|---:|"]
    lines += [
        f"| {task} | {row['claim']} | {row['items']} | {row['base']:.1%} | {row['adapter']:.1%} |"
        for task, row in rows.items()
    ]
    return "\n".join(lines)
