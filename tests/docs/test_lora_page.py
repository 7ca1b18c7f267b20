"""docs/lora.md: both languages say the same, and its commands run as printed, on the built-in model."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.docs.readme import ROOT, code_blocks, heading_levels, inline_code, links, table_rows
from vllm_mxext.bench.server_process import ServerProcess

ENGLISH = ROOT / "docs/lora.md"
CHINESE = ROOT / "docs/lora_CH.md"

PRINTED_URL = "http://127.0.0.1:8000"
PYTHON = shlex.quote(sys.executable)
MXEXT = f"{PYTHON} -c 'import sys; from vllm_mxext.cli.main import main; sys.exit(main())'"


@pytest.mark.promise("DOCS-2")
def test_both_languages_say_the_same() -> None:
    for read in (code_blocks, heading_levels, table_rows):
        assert read(ENGLISH) == read(CHINESE)
    assert sorted(inline_code(ENGLISH)) == sorted(inline_code(CHINESE))
    assert sorted(set(links(ENGLISH)) - {CHINESE.name}) == sorted(set(links(CHINESE)) - {ENGLISH.name})
    assert not [link for page in (ENGLISH, CHINESE) for link in links(page) if not (page.parent / link).exists()]


def printed(start: str) -> list[str]:
    """The commands of the page that begin like this, in order."""
    return [block.text.strip() for block in code_blocks(ENGLISH) if block.text.startswith(start)]


@contextmanager
def started(command: str, log: Path) -> Iterator[ServerProcess]:
    """The server that a printed command starts, in the folder of the repository."""
    command = command.replace(".venv/bin/mxext", MXEXT).replace(".venv/bin/python", PYTHON)
    program = f'cd {shlex.quote(str(ROOT))} && exec {command} "$@"'
    with ServerProcess(["bash", "-c", program, "bash"], log) as process:
        process.wait_for()
        yield process


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    (command,) = printed(".venv/bin/python scripts/start_with_lora.py")
    with started(command, tmp_path / "log") as process:
        yield process


@pytest.mark.e2e
@pytest.mark.promise("LORA-API-3")
def test_the_servers_of_the_page_serve_their_adapters(tmp_path: Path) -> None:
    served = []
    for command in printed(".venv/bin/mxext serve"):
        with started(command, tmp_path / "log") as process:
            served.append({one["name"] for one in httpx.get(f"{process.url}/v1/lora_adapters").json()["data"]})
    assert served == [{"math_tuned"}, {"math_tuned", "code_tuned"}]


@pytest.mark.e2e
@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.promise("LORA-CLI-1", "LORA-FILE-1")
def test_the_commands_run_as_printed(server: ServerProcess, tmp_path: Path) -> None:
    def run(command: str) -> str:
        command = command.replace("/tmp/", f"{tmp_path}/").replace(PRINTED_URL, server.url)
        command = command.replace(".venv/bin/mxext lora", f"{MXEXT} lora --server-url {server.url}")
        result = subprocess.run(
            ["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=240, check=False
        )
        assert result.returncode == 0, result.stderr
        return result.stdout

    answer, loaded, listing, unloaded = map(run, printed("curl "))
    assert "2x" in json.loads(answer)["choices"][0]["message"]["content"]
    assert "Success: LoRA adapter 'code' added successfully." in loaded
    assert [one["name"] for one in json.loads(listing)["data"]] == ["math_tuned", "code"]
    assert "Success: LoRA adapter 'code' removed successfully." in unloaded
    loaded, table, tested, unloaded, converted = map(run, printed(".venv/bin/mxext lora"))
    assert "added" in loaded
    assert [line.split()[0] for line in table.splitlines()[1:3]] == ["math_tuned", "code_tuned"]
    assert "2x" in tested
    assert "removed" in unloaded
    assert "Wrote" in converted
