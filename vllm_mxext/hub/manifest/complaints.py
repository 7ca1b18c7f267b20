"""`Complaint`: what is wrong with a manifest and in which line; several together make one `ManifestError`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from vllm_mxext.errors import ManifestError

_INDEX = re.compile(r"\[\d+\]")

MAX_COMPLAINTS = 20
"""Shown at once."""


class Complaint(NamedTuple):
    """One thing that is wrong.

    Attributes:
        line: from 1.
        sentence: what to do about it.
    """

    line: int
    sentence: str


def refuse(name: str, complaints: Iterable[Complaint]) -> ManifestError:
    """Returns the error that shows complaints, a line of text each, in the order of the file's lines.

    Args:
        name: of the file.
        complaints: at least one.
    """
    different: dict[tuple[int, str], Complaint] = {}
    for complaint in complaints:  # what an alias repeats has one line and differs in indexes alone
        different.setdefault((complaint.line, _INDEX.sub("", complaint.sentence)), complaint)
    found = sorted(different.values(), key=lambda one: one.line)
    lines = [f"{name}:{complaint.line}: {complaint.sentence}" for complaint in found[:MAX_COMPLAINTS]]
    if len(found) > MAX_COMPLAINTS:
        lines.append(f"{name}: There are {len(found) - MAX_COMPLAINTS} more complaints like these.")
    return ManifestError("\n".join(lines))


def shown(value: object) -> str:
    """Returns a value of a file as messages quote it: short, on one line."""
    text = str(value) if isinstance(value, (bool, int, float)) or value is None else f"'{value}'"
    text = "".join(character if character.isprintable() else "?" for character in text)
    return text if len(text) <= 80 else f"{text[:76]}...'"
