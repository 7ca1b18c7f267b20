"""docs/hub.md: both languages say the same, nothing is left out, and its commands run as printed."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.docs.readme import ROOT, code_blocks, heading_levels, inline_code, links, prose, table_rows
from tests.hub_servers.model_hub import ModelHub
from vllm_mxext.bench.server_process import ServerProcess
from vllm_mxext.builtin import model_path
from vllm_mxext.cli.main import main
from vllm_mxext.config.options import all_flags
from vllm_mxext.hub.judgement import State
from vllm_mxext.hub.manifest.schema import published_schema
from vllm_mxext.hub.selection import RULES
from vllm_mxext.hub.sources.opening import schemes

ENGLISH = ROOT / "docs/hub.md"
CHINESE = ROOT / "docs/hub_CH.md"

MODEL = "HuggingFaceTB/SmolLM2-360M-Instruct"
PRINTED_URL = "http://127.0.0.1:8000"
PROGRAM = ".venv/bin/mxext "


@pytest.mark.promise("DOCS-2")
def test_both_languages_say_the_same() -> None:
    for read in (code_blocks, heading_levels, table_rows):
        assert read(ENGLISH) == read(CHINESE)
    assert sorted(inline_code(ENGLISH)) == sorted(inline_code(CHINESE))
    assert sorted(others(ENGLISH)) == [link.replace("_CH.md", ".md") for link in sorted(others(CHINESE))]
    assert not [link for page in (ENGLISH, CHINESE) for link in others(page) if not (page.parent / link).exists()]


def others(page: Path) -> set[str]:
    return {link for link in links(page) if not link.startswith("#")} - {ENGLISH.name, CHINESE.name}


def keys(schema: Mapping[str, Any]) -> Iterator[str]:
    """The keys that a manifest may have anywhere."""
    yield from schema.get("properties", {})
    parts = [*schema.get("properties", {}).values(), *schema.get("$defs", {}).values()]
    for part in parts:
        yield from keys(part)


@pytest.mark.promise("HUB-DOCS-1")
def test_nothing_is_left_out() -> None:
    named = set(inline_code(ENGLISH))
    variables = {name for flag in all_flags() if flag.group == "hub" for name in flag.facts.variables}
    states, rules = {state.value for state in State}, {rule.name for rule in RULES}
    assert {*keys(published_schema()), *variables, *states, *rules} <= named
    assert [scheme for scheme in schemes() if f"`{scheme}://" not in prose(ENGLISH)] == []


def printed(start: str) -> list[str]:
    """The commands of the page that begin like this, in order."""
    return [block.text.strip() for block in code_blocks(ENGLISH) if block.text.startswith(start)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that looks like the repository; the built-in model is at the hub under the name of the page."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    for name in [name for name in os.environ if name.startswith(("MIM_", "NIM_", "HF_"))]:
        monkeypatch.delenv(name)
    with ModelHub() as hub:
        hub.add(MODEL, model_path())
        values = {
            "HF_ENDPOINT": hub.url, "HF_HOME": f"{tmp_path}/hf", "MODELSCOPE_CACHE": f"{tmp_path}/modelscope",
            "XDG_CONFIG_HOME": f"{tmp_path}/config", "MIM_CACHE_PATH": f"{tmp_path}/cache", "NO_PROXY": "*",
            "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
        }  # fmt: skip
        for name, value in values.items():
            monkeypatch.setenv(name, value)
        monkeypatch.chdir(tmp_path)
        yield tmp_path


def shell(command: str) -> list[str]:
    """The program that a printed command stands for; further arguments may follow."""
    python = shlex.quote(sys.executable)
    mxext = f"exec {python} -c 'import sys; from vllm_mxext.cli.main import main; sys.exit(main())'"
    command = command.replace(".venv/bin/mxext", mxext).replace(".venv/bin/python", f"exec {python}")
    return ["bash", "-c", f'{command} "$@"', "bash"]


@pytest.mark.e2e
@pytest.mark.promise("HUB-DOCS-1")
def test_the_commands_run_as_printed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(command: str) -> str:
        capsys.readouterr()
        words = shlex.split(command.replace("/tmp/", f"{folder}/"))
        assert main(words[1:]) == 0, capsys.readouterr().err
        return capsys.readouterr().out

    output = {command.removeprefix(f"{PROGRAM}hub "): run(command) for command in printed(f"{PROGRAM}hub")}
    stored = output[f"pull {MODEL}"].strip()
    assert Path(stored, "model.safetensors").exists()
    assert "mx-tiny" in output["list-profiles"]
    assert "mxext serve" in output[f"select {MODEL}"]
    assert "2 x H100" in next(text for command, text in output.items() if command.startswith("explain"))
    settings = next(text for command, text in output.items() if command.startswith("config"))
    assert "profile native-cpu-bf16" in settings
    assert "all is as it should be" in output["verify"]
    assert (folder / "model.lock").exists()
    assert (folder / "plain/config.json").exists()
    assert Path(next(text for command, text in output.items() if command.startswith("import")).strip()).exists()
    assert "0 problems" in output[f"doctor {MODEL}"]
    (pull,) = printed(".venv/bin/python")
    result = subprocess.run(shell(pull), capture_output=True, text=True, timeout=240, check=False)
    assert (result.returncode, result.stdout.strip()) == (0, stored), result.stderr


@pytest.mark.e2e
@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.promise("HUB-DOCS-1")
def test_the_servers_of_the_page_say_what_they_serve(folder: Path) -> None:
    starts = [*printed("export MIM_MODEL_NAME"), *printed(f"{PROGRAM}serve")]
    curls = printed("curl ")
    assert (len(starts), len(curls)) == (2, 2)
    with ExitStack() as running:
        servers = [ServerProcess(shell(start), folder / f"log{number}") for number, start in enumerate(starts)]
        for server in servers:
            running.enter_context(server)
        for server in servers:
            server.wait_for()
            metadata, profiles = (
                json.loads(subprocess.check_output([*shell(curl.replace(PRINTED_URL, server.url)), "-s"]))
                for curl in curls
            )
            assert metadata["modelInfo"][0]["shortName"] == MODEL
            assert metadata["selectedModelProfileId"] == profiles["chosen_id"]
