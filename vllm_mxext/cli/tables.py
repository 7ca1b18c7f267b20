"""Texts for people: `columns()` of a table, and `counted()` things."""

from __future__ import annotations

from collections.abc import Sequence


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Returns a line per row, with the cells of a column below each other."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def counted(number: int, noun: str) -> str:
    """Returns `1 model`, `2 models`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
