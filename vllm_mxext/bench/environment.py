"""Facts about this machine and installation that belong beside every figure."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vllm_mxext.config import machine

_PACKAGES = ("vllm_mxext", "torch", "transformers", "numpy", "tokenizers", "fastapi", "uvicorn", "pyzmq", "msgspec")
_CPU_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16", "asimd", "bf16", "i8mm")


def describe_environment() -> dict[str, Any]:
    """Returns commit, versions and hardware; everything that cannot be found out is None or missing."""
    return {"commit": commit(), "versions": package_versions(_PACKAGES), "hardware": describe_hardware()}


def commit() -> str | None:
    """Returns the commit of the source tree this package runs from, with `+` when files differ from it."""
    root = Path(__file__).resolve().parents[2]
    head = _git(root, "rev-parse", "--short=12", "HEAD")
    if not head:
        return None
    return head + ("+" if _git(root, "status", "--porcelain", "--untracked-files=no") else "")


def package_versions(names: Iterable[str]) -> dict[str, str | None]:
    """Returns installed versions; None for what is not installed."""
    return {"python": platform.python_version(), **{name: _version(name) for name in names}}


def describe_hardware() -> dict[str, Any]:
    """Returns the processor, the cores and the memory this process may use, and the system."""
    model, flags = _processor()
    return {
        "system": platform.platform(),
        "machine": platform.machine(),
        "processor": model,
        "cpu_flags": [flag for flag in _CPU_FLAGS if flag in flags],
        "logical_cpus": os.cpu_count(),
        "usable_cores": machine.usable_cores(),
        "memory_bytes": machine.usable_memory().total_bytes,
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> tuple[str, frozenset[str]]:
    model, flags = platform.processor() or platform.machine(), frozenset[str]()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return model, flags
    for line in lines:
        name, _, value = (part.strip() for part in line.partition(":"))
        if name == "model name":
            model = value
        elif name in ("flags", "Features"):
            flags = frozenset(value.split())
            break
    return model, flags


def _git(root: Path, *arguments: str) -> str:
    try:
        result = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return result.stdout.strip() if result.returncode == 0 else ""
