"""`Finding`: what one check of a doctor, of the hub or of servers, has found, as plain data."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Level(str, Enum):
    """How bad it is."""

    OK = "ok"
    WARNING = "warning"
    """Works, but perhaps not as it is meant to."""
    PROBLEM = "problem"
    """Keeps something from working."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        level: how bad it is.
        subject: what was looked at, in a word or two.
        text: what was found, one sentence.
        remedy: what to do, one sentence; empty if nothing need be done.
    """

    level: Level
    subject: str
    text: str
    remedy: str = ""


def ok(subject: str, text: str) -> Finding:
    """Returns the finding that something is as it should be."""
    return Finding(Level.OK, subject, text)


def warning(subject: str, text: str, remedy: str) -> Finding:
    """Returns the finding that something is odd."""
    return Finding(Level.WARNING, subject, text, remedy)


def problem(subject: str, text: str, remedy: str) -> Finding:
    """Returns the finding that something does not work."""
    return Finding(Level.PROBLEM, subject, text, remedy)
