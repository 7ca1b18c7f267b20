"""`History`: summaries of earlier runs, in the user's state folder as lines of JSON, and full results of named ones."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vllm_mxext.bench.report import format_table
from vllm_mxext.bench.serve.labels import LABELS, Language
from vllm_mxext.bench.serve.result import RunResult
from vllm_mxext.bench.serve.svg import sparkline
from vllm_mxext.config.machine import state_folder
from vllm_mxext.errors import ConfigError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}\Z")
_SHOWN = ("ttft_median", "tpot_median", "e2e_median", "overall_throughput")
_ROWS = 20


@dataclass(frozen=True, slots=True)
class Run:
    """The summary of an earlier run.

    Attributes:
        at: when it began, ISO 8601.
        name: name that its result is kept under; empty if it is not kept.
        model: the model that was measured.
        server: URL of its server.
        load: the load in words.
        is_valid: whether its figures may be used.
        figures: its figures, named as in the log.
    """

    at: str
    name: str
    model: str
    server: str
    load: str
    is_valid: bool
    figures: Mapping[str, float | None]


class History:
    """The runs of one user.

    Args:
        folder: where they are kept; `performance` in the state folder by default.

    Raises:
        ConfigError: there is no state folder.
    """

    def __init__(self, folder: Path | None = None) -> None:
        state = state_folder()
        if folder is None and state is None:
            raise ConfigError("Without a home folder there is no history; set XDG_STATE_HOME to a folder.")
        self.folder = folder or Path(state or "") / "performance"
        self._file = self.folder / "history.jsonl"

    def add(self, run: Run, result: RunResult) -> None:
        """Adds a run; keeps the whole result of a named one, replacing an earlier one of the same name.

        Raises:
            ConfigError: the name cannot be a file's name.
            OSError: the folder cannot be written.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        if run.name:
            path = self.result_path(run.name)
            draft = path.with_suffix(".part")
            draft.write_text(result.to_json() + "\n", encoding="utf-8")
            draft.replace(path)
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(dataclasses.asdict(run), ensure_ascii=False) + "\n")

    def runs(self) -> list[Run]:
        """Returns all runs, oldest first; broken lines, such as one cut off by a full disk, are skipped."""
        try:
            lines = self._file.read_text(encoding="utf-8", errors="replace").split("\n")
        except FileNotFoundError:
            return []
        return [run for run in map(_run, lines) if run is not None]

    def result_path(self, name: str) -> Path:
        """Returns the file of a named run.

        Raises:
            ConfigError: the name cannot be a file's name.
        """
        if not _NAME.match(name):
            raise ConfigError(f"A run's name has letters, digits, dots, dashes and underscores; got '{name}'.")
        return self.folder / f"{name}.json"

    def baseline(self, given: str) -> RunResult:
        """Returns the result of a named run, or of a JSON file.

        Raises:
            ConfigError: neither exists, or it cannot be read.
        """
        named = self.result_path(given) if _NAME.match(given) else None
        if named is not None and named.exists():
            return RunResult.read(named)
        if named is not None and not Path(given).exists():
            raise ConfigError(
                f"There is no run named '{given}' and no such file; keep a run with --run-name {given}, or give a "
                "file written with --json."
            )
        return RunResult.read(Path(given))


def format_history(runs: Sequence[Run], language: Language = "en") -> str:
    """Returns a table of the latest runs, and a sparkline per figure over the runs like the last one (model, load)."""
    words = LABELS[language]
    if not runs:
        return f"{words['history']}: -"
    rows = [
        (
            run.at[:19].replace("T", " "),
            run.name or "-",
            run.model,
            run.load,
            *(_figure(run.figures.get(name)) for name in _SHOWN),
            "" if run.is_valid else re.split("[,，]", words["invalid"])[0],
        )
        for run in runs[-_ROWS:]
    ]
    lines = [words["history"], "", format_table(("", "name", "model", "load", *_SHOWN, ""), rows), ""]
    alike = [run for run in runs if (run.model, run.load) == (runs[-1].model, runs[-1].load) and run.is_valid]
    width = max(map(len, _SHOWN))
    for name in _SHOWN:
        values = [run.figures.get(name) for run in alike[-60:]]
        if values:
            lines.append(f"{name:<{width}}  {sparkline(values)}  {_figure(values[0])} -> {_figure(values[-1])}")
    return "\n".join(lines)


def _figure(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.4g}"


def _run(line: str) -> Run | None:
    try:
        data = json.loads(line)
        return Run(**{field.name: data[field.name] for field in dataclasses.fields(Run)})
    except (ValueError, TypeError, KeyError):
        return None
