"""The kernels for ARM, compiled here and run in an emulator: needs a cross compiler and QEMU's user mode."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMPILER = shutil.which("aarch64-linux-gnu-g++") or shutil.which("aarch64-linux-gnu-g++-12")
EMULATOR = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
FLAGS = ("-std=gnu++17", "-O1", "-ffp-contract=off", "-Wno-psabi", "-static", "-pthread")
MACHINES = {"arm64_bf16": "-march=armv8.2-a+bf16+i8mm", "generic": "-march=armv8-a"}
LIMITS = {"linear-0": 1e-6, "linear-1": 1e-2, "adapter-0": 3e-3, "attention-0": 5e-3, "attention-1": 1.5e-2}
"""Largest error per operation and format; sampled tokens must all be equal."""


@pytest.mark.slow
@pytest.mark.optional
@pytest.mark.skipif(not (COMPILER and EMULATOR), reason="needs aarch64-linux-gnu-g++ and qemu-aarch64-static")
@pytest.mark.promise("KERN-1")
@pytest.mark.parametrize("machine", MACHINES)
def test_kernels_for_arm_agree_with_plain_loops(machine: str, tmp_path: Path) -> None:
    program = tmp_path / "check"
    command = [str(COMPILER), *FLAGS, MACHINES[machine], "-I", str(ROOT / "csrc")]

    def compiled(source: Path) -> str:
        target = str(tmp_path / f"{source.stem}.o")
        subprocess.run([*command, "-c", str(source), "-o", target], check=True)
        return target

    sources = [Path(__file__).parent / "arm64" / "check.cpp", *sorted((ROOT / "csrc").glob("*.cpp"))]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compiled, sources))
    subprocess.run([*command, *objects, "-o", str(program)], check=True)
    run = subprocess.run(
        [str(EMULATOR), "-cpu", "max", str(program), machine], check=True, capture_output=True, text=True
    )
    errors = {match[1]: float(match[2]) for match in re.finditer(r"(\S+) (\S+)\n", run.stdout)}
    assert len(errors) == 26
    for name, error in errors.items():
        assert error <= LIMITS.get(name.rsplit("-", 1)[0], 0), name
