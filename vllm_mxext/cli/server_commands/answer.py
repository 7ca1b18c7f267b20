"""`Answer`: the output of a command of `mxext server`, for people and for programs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vllm_mxext.registry.errors import DONE


@dataclass(frozen=True, slots=True)
class Answer:
    """The output of a command.

    Attributes:
        value: for programs; with `--json` printed as one JSON object, unless it is empty.
        text: for people; nothing is printed if it is empty.
        exit_code: the command's.
    """

    value: Mapping[str, Any]
    text: str
    exit_code: int = DONE

    def print(self, *, is_json: bool) -> int:
        """Prints it; returns the exit code."""
        shown = self.as_json() if is_json and self.value else self.text
        if shown:
            print(shown)
        return self.exit_code

    def as_json(self) -> str:
        """Returns the value as JSON."""
        return json.dumps(self.value, ensure_ascii=False, indent=2)


def duration(seconds: float) -> str:
    """Returns a duration in words: `12 s`, `3 min`, `2 h 5 min`, `4 d 3 h`."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, hours, days = whole // 60, whole // 3600, whole // 86400
    if hours == 0:
        return f"{minutes} min"
    return f"{hours} h {minutes % 60} min" if days == 0 else f"{days} d {hours % 24} h"


def size(count: int | None) -> str:
    """Returns a number of bytes in words: `12.3 MB`, `1.2 GB`; `-` if it is unknown."""
    if count is None:
        return "-"
    return f"{count / 1e6:.1f} MB" if count < 1e9 else f"{count / 1e9:.1f} GB"
