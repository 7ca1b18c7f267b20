"""Reads README.md and README_CH.md: headings, code blocks, tables and links."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
ENGLISH = ROOT / "README.md"
CHINESE = ROOT / "README_CH.md"

_FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class CodeBlock:
    """A fenced block with its language."""

    language: str
    text: str


def code_blocks(path: Path) -> list[CodeBlock]:
    return [CodeBlock(match[1], match[2]) for match in _FENCE.finditer(path.read_text(encoding="utf-8"))]


def prose(path: Path) -> str:
    """Returns the page without its code blocks."""
    return _FENCE.sub("", path.read_text(encoding="utf-8"))


def heading_levels(path: Path) -> list[int]:
    return [len(match[1]) for match in re.finditer(r"^(#+) ", prose(path), re.MULTILINE)]


def anchors(path: Path) -> set[str]:
    """Returns what links can name in a page, as GitHub makes it from headings."""
    titles = re.findall(r"^#+ (.*)$", prose(path), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def links(path: Path) -> list[str]:
    return re.findall(r"\]\(([^)]+)\)", prose(path))


def inline_code(path: Path) -> list[str]:
    return re.findall(r"`([^`]+)`", prose(path))


def table_rows(path: Path) -> int:
    return len(re.findall(r"^\|", prose(path), re.MULTILINE))
