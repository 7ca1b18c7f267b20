"""The CMake project configures on machines without what it would like to have."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[4]
TOOLS = [shutil.which(tool) for tool in ("cmake", "ninja")]


@pytest.mark.promise("INSTALL-1")
@pytest.mark.skipif(None in TOOLS, reason="needs cmake and ninja")
def test_without_a_compiler_the_build_succeeds_and_says_what_that_means(tmp_path):
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in TOOLS:
        (tools / Path(tool).name).symlink_to(tool)
    environment = {"PATH": str(tools), "HOME": str(tmp_path), "CXX": "there-is-no-compiler"}
    build, prefix = tmp_path / "build", tmp_path / "installed"

    def cmake(*arguments):
        command = [tools / "cmake", *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True)

    configured = cmake("-G", "Ninja", "-S", ROOT, "-B", build)
    message = " ".join(configured.stderr.split())
    assert "no C++ compiler found: installing without compiled kernels" in message
    assert "the slower PyTorch path will be used" in message
    cmake("--build", build)
    cmake("--install", build, "--prefix", prefix)
    assert not list(prefix.rglob("*.so"))
