"""What `mxext completion` prints completes commands, flags and the names of registered servers."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from pathlib import Path

import pytest

from vllm_mxext.cli.main import COMMANDS, main


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a program `mxext`, and the scripts that it prints."""
    folder = tmp_path_factory.mktemp("completion")
    program = folder / "mxext"
    program.write_text("#!/bin/sh\necho my-server\n")
    program.chmod(0o755)
    for shell in ("bash", "zsh", "fish"):
        with (folder / f"mxext.{shell}").open("w") as script, contextlib.redirect_stdout(script):
            assert main(["completion", shell]) == 0
    return folder


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("mxext se", "serve server"),
        ("mxext server st", "start stop status"),
        ("mxext server start m", "my-server"),
        ("mxext server add one --max", "--max-model-len"),
        ("mxext serve --max-model", "--max-model-len"),
        ("mxext hub list-p", "list-profiles"),
        ("mxext lora unl", "unload"),
    ],
)
@pytest.mark.promise("CLI-6")
def test_bash_completes_commands_flags_and_names(folder: Path, typed: str, completed: str) -> None:
    words = typed.split(" ")
    script = (
        f"source {folder}/mxext.bash\nCOMP_WORDS=({typed})\nCOMP_CWORD={len(words) - 1}\n_mxext\n"
        'echo "${COMPREPLY[*]}"\n'
    )
    result = subprocess.run(
        ["bash", "-c", script], env={"PATH": f"{folder}:/usr/bin:/bin"}, capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == completed.split()


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_the_scripts_of_other_shells_name_every_command_and_are_understood(folder: Path, shell: str) -> None:
    script = folder / f"mxext.{shell}"
    text = script.read_text()
    assert all(f" {name} " in text or f"'{name}'" in text for name in COMMANDS)
    assert "--gpu-memory-utilization" in text
    if shutil.which(shell):
        subprocess.run([shell, "-n", str(script)], check=True)


@pytest.mark.skipif(shutil.which("fish") is None, reason="fish is not installed")
@pytest.mark.parametrize(
    ("typed", "completed"),
    [("mxext server st", "start stop status"), ("mxext server start ", "my-server"), ("mxext lora unl", "unload")],
)
def test_fish_completes_commands_and_names(folder: Path, typed: str, completed: str) -> None:
    result = subprocess.run(
        ["fish", "--no-config", "-c", f"source {folder}/mxext.fish; complete -C '{typed}'"],
        env={"PATH": f"{folder}:/usr/bin:/bin", "HOME": str(folder)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert {line for line in result.stdout.split() if not line.startswith("-")} == set(completed.split())


def test_an_unknown_shell_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "tcsh"]) == 2
    assert "bash" in capsys.readouterr().err
