"""`mxext collect-env`: what a bug report needs to know of this machine and installation."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

from vllm_mxext import envs
from vllm_mxext.bench.environment import describe_environment
from vllm_mxext.errors import ConfigError


def run(argv: Sequence[str]) -> int:
    """Prints the facts; returns the exit code."""
    parser = argparse.ArgumentParser(prog="mxext collect-env", description="Print versions, CPU, kernels and memory.")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args(argv)
    facts = {**describe_environment(), "torch": _torch(), "kernels": _kernels(), "variables": _variables()}
    if arguments.json:
        print(json.dumps(facts, indent=2))
    else:
        _print_tree(facts)
    return 0


def _torch() -> dict[str, Any]:
    import torch  # noqa: PLC0415 - slow to import, and only this function needs it

    return {
        "version": torch.__version__,
        "debug_build": torch.version.debug,
        "cuda_build": torch.version.cuda,
        "cuda_devices": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "num_threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }


def _kernels() -> dict[str, Any]:
    from vllm_mxext.native.kernels.selection import describe_kernels  # noqa: PLC0415 - imports torch

    try:
        return describe_kernels()
    except ConfigError as error:
        return {"error": str(error)}


def _variables() -> dict[str, str]:
    """Variables of the project that are set, as they are read."""
    found = {}
    for variable in envs.VARIABLES:
        try:
            value = variable.get()
        except ConfigError as error:
            value = str(error)
        if value != variable.default:
            found[variable.name] = str(value)
    return found


def _print_tree(facts: dict[str, Any], indent: str = "") -> None:
    for name, value in facts.items():
        if isinstance(value, dict):
            print(f"{indent}{name}:")
            _print_tree(value, indent + "  ")
        else:
            shown = ", ".join(map(str, value)) if isinstance(value, list) else value
            print(f"{indent}{name}: {'-' if shown in (None, '') else shown}")
