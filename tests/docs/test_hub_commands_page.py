"""docs/hub_commands.md and its Chinese twin name every command of `mxext hub` and every exit code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from vllm_mxext.cli.hub import COMMANDS
from vllm_mxext.hub.exit_codes import MEANINGS

DOCS = Path(__file__).parents[2] / "docs"
PAGES = [DOCS / "hub_commands.md", DOCS / "hub_commands_CH.md"]


def rows(page: Path) -> list[list[str]]:
    lines = [line for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if not line.startswith("|---")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_and_every_exit_code_is_in_a_table(page: Path) -> None:
    first = [row[0] for row in rows(page)]
    commands = [name for cell in first for name in re.findall(r"`([a-z-]+)[ `]", cell)]
    assert commands == list(COMMANDS)
    assert [int(cell) for cell in first if cell.isdecimal()] == [code for code, _ in MEANINGS]


def test_the_meanings_are_those_of_the_help() -> None:
    assert [(int(row[0]), row[1]) for row in rows(PAGES[0]) if row[0].isdecimal()] == list(MEANINGS)
