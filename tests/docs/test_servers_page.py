"""docs/servers.md and its Chinese twin name every command, setting and exit code of `mxext server`, and agree."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.readme import ROOT, code_blocks, heading_levels, inline_code
from vllm_mxext.cli.server_commands.parsing import COMMANDS
from vllm_mxext.registry.errors import MEANINGS
from vllm_mxext.registry.record import SETTINGS, flag_of

ENGLISH, CHINESE = ROOT / "docs" / "servers.md", ROOT / "docs" / "servers_CH.md"


def first_cells(page: Path) -> list[str]:
    lines = [line for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    return [line.strip("|").split("|")[0].strip() for line in lines if not line.startswith("|---")]


@pytest.mark.parametrize("page", [ENGLISH, CHINESE], ids=lambda page: page.name)
def test_every_command_setting_and_exit_code_is_in_a_table(page: Path) -> None:
    cells = first_cells(page)
    names = [match[1] for cell in cells if (match := re.match(r"`([a-z]+)[ `]", cell))]
    assert names == list(COMMANDS)
    flags = [match[1] for cell in cells if (match := re.match(r"`(--[a-z-]+)", cell))]
    assert flags == [flag_of(one) for one in ORDER]
    assert [int(cell) for cell in cells if cell.isdecimal()] == [code for code, _ in MEANINGS]


def test_both_languages_say_the_same() -> None:
    assert code_blocks(ENGLISH) == code_blocks(CHINESE)
    assert heading_levels(ENGLISH) == heading_levels(CHINESE)
    assert len(first_cells(ENGLISH)) == len(first_cells(CHINESE))
    assert sorted(inline_code(ENGLISH)) == sorted(inline_code(CHINESE))


ORDER = (
    "endpoint_url", "model_path", "backend", "tensor_parallel", "max_model_len", "gpu_memory_utilization", "dtype",
    "host", "port", "api_key_env", "env", "extra_args",
)  # fmt: skip


def test_no_setting_is_missing() -> None:
    assert set(ORDER) == set(SETTINGS)
