"""The golden table of choices: sixteen machines, six models, three goals. `python -m tests.unit.hub.selection_tables`
writes it anew; read every line that changes: it must be what an expert would choose."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from tests.unit.hub.machines import MACHINE_FILES
from vllm_mxext.hub.hardware import Hardware
from vllm_mxext.hub.hardware_inspect import read_hardware
from vllm_mxext.hub.judgement import Selection, State
from vllm_mxext.hub.manifest.lookup import packaged_manifest
from vllm_mxext.hub.manifest.model import Goal, ModelEntry
from vllm_mxext.hub.selection import Question, rank

FILE = Path(__file__).with_name("selection_table.txt")

MODELS = (
    "Qwen/Qwen3-0.6B",
    "Qwen/Qwen3-8B",
    "Qwen/Qwen3-32B",
    "Qwen/Qwen3-30B-A3B",
    "meta-llama/Llama-3.1-8B-Instruct",
    "meta-llama/Llama-3.3-70B-Instruct",
)
GOALS: tuple[Goal, ...] = ("latency", "throughput", "memory")


def golden_table() -> str:
    """Returns the table as it is now."""
    manifest = packaged_manifest()
    entries = [next(entry for entry in manifest.models if entry.name == name) for name in MODELS]
    lines = [f"{'':26}" + "".join(f"{goal:42}" for goal in GOALS).rstrip()]
    for file in MACHINE_FILES:
        hardware = read_hardware(file)
        lines += ["", hardware.name, *_lines(hardware, entries)]
    return "\n".join(lines) + "\n"


def _lines(hardware: Hardware, entries: list[ModelEntry]) -> Iterator[str]:
    for entry in entries:
        cells = (_cell(rank(entry, hardware, Question(goal))) for goal in GOALS)
        yield f"  {entry.name.rpartition('/')[2]:24}" + "".join(f"{cell:42}" for cell in cells).rstrip()


def _cell(selection: Selection) -> str:
    """The chosen profile, with its context if that is reduced; or the best state of those that cannot run."""
    chosen = selection.chosen
    if chosen is None:
        return f"- {selection.rankings[0].judgement.state.value}"
    if chosen.state is State.REDUCED and chosen.estimate is not None:
        return f"{chosen.profile.name}, {chosen.estimate.max_model_len} tokens"
    return chosen.profile.name


if __name__ == "__main__":
    sys.stdout.write(f"{FILE.name} {'is as before' if FILE.read_text() == golden_table() else 'has changed'}\n")
    FILE.write_text(golden_table())
