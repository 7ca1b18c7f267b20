"""Writes the log `mim_profile_YYYYMMDD_HHMMSS.log` with its two sections, in another folder if need be."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from vllm_mxext.bench.serve.labels import LABELS, Language
from vllm_mxext.config.machine import state_folder
from vllm_mxext.errors import ConfigError


def log_text(
    started_at: str,
    aggregated: Mapping[str, Any],
    individual: Sequence[Mapping[str, Any]] = (),
    language: Language = "en",
) -> str:
    """Returns the log.

    Args:
        started_at: ISO 8601.
        aggregated: the figures of the run, the documented ones first.
        individual: the figures of every request; without any, their section is left out.
        language: of the headings; keys are the same in every language.
    """
    words = LABELS[language]
    parts = [f"{words['log_title']} - {started_at[:19]}", f"{words['log_aggregated']}:\n{_json(aggregated)}"]
    if individual:
        parts.append(f"{words['log_individual']}:\n" + "\n".join(map(_json, individual)))
    return "\n\n".join(parts) + "\n"


def write_log(folder: Path, started_at: str, text: str) -> tuple[Path, str]:
    """Writes a log and returns its path, and a sentence if it is not in `folder`.

    Raises:
        ConfigError: it can be written neither there nor in the user's state folder.
    """
    name = f"mim_profile_{datetime.fromisoformat(started_at):%Y%m%d_%H%M%S}"
    try:
        return _write(folder, name, text), ""
    except OSError as error:
        reason = error.strerror or str(error)
    state = state_folder()
    if state is None:
        raise ConfigError(f"The log cannot be written to '{folder}' ({reason}); name another folder with --log-dir.")
    other = state / "performance" / "logs"
    message = f"'{folder}' cannot be written ({reason}), so the log is in '{other}'; --log-dir names another folder."
    try:
        return _write(other, name, text), message
    except OSError as error:
        raise ConfigError(
            f"The log can be written neither to '{folder}' ({reason}) nor to '{other}' "
            f"({error.strerror or error}); name another folder with --log-dir."
        ) from None


def _write(folder: Path, name: str, text: str) -> Path:
    """Writes a new file; two runs that began in the same second get numbers."""
    folder.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        path = folder / (f"{name}.log" if number == 1 else f"{name}_{number}.log")
        try:
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            number += 1
            continue
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
        except OSError:
            path.unlink()  # no half-written log on a full disk
            raise
        return path


def _json(data: Mapping[str, Any]) -> str:
    return json.dumps(data, indent=2, ensure_ascii=False)
