"""The report of `mxext bench kernels`: beside PyTorch, or as a share of what the machine can do."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from vllm_mxext.bench import roofline
from vllm_mxext.bench.adapter_roofline import ADAPTED, AdapterStep, adapter_operations, adapter_steps
from vllm_mxext.bench.bandwidth import read_bandwidth
from vllm_mxext.bench.kernels import DTYPES, Bench, measure
from vllm_mxext.bench.metrics import summarize
from vllm_mxext.bench.report import format_table, json_line
from vllm_mxext.bench.roofline import Clock
from vllm_mxext.config.engine import Quantization
from vllm_mxext.errors import ConfigError
from vllm_mxext.native.kernels.compiled import CompiledKernels
from vllm_mxext.native.kernels.library import KernelLibrary, best_library, load_library

_PEERS = ("baseline", "torch")
_CLOCKS: dict[str, Clock] = {"wall": time.perf_counter, "cpu": time.thread_time}


def report_kernels(arguments: argparse.Namespace) -> int:
    """Runs the benchmark and prints its report; returns the exit code.

    Args:
        arguments: of `mxext bench kernels`, as `cli/bench.py` parses them.

    Raises:
        ConfigError: an argument is too small, or there are no compiled kernels.
    """
    if arguments.threads < 1 or arguments.context < 1:
        raise ConfigError("--threads and --context must be at least 1.")
    torch.manual_seed(arguments.seed)
    torch.set_num_threads(arguments.threads)
    library = load_library(arguments.isa) if arguments.isa else best_library()
    if library is None:
        raise ConfigError("There are no compiled kernels to measure; reinstall vllm_mxext with a C++ compiler.")
    library.set_num_threads(arguments.threads)
    clock = _CLOCKS[arguments.clock]
    bandwidth = read_bandwidth(arguments.threads, clock=clock)
    print(f"{library.isa}, {arguments.dtype}, {arguments.threads} threads, reads {bandwidth / 1e9:.0f} GB/s")
    config = {key: str(value) if isinstance(value, Path) else value for key, value in vars(arguments).items()}
    config |= {"isa": library.isa, "read_bytes_per_s": bandwidth}
    report = _roofline if arguments.roofline else _compare
    print(json_line("roofline" if arguments.roofline else "kernels", config, report(arguments, library, clock)))
    return 0


def _compare(arguments: argparse.Namespace, library: KernelLibrary, clock: Clock) -> list[dict[str, Any]]:
    dtype = DTYPES[arguments.dtype]
    kernels = {"ours": CompiledKernels(library, dtype)}
    if arguments.baseline:
        other = KernelLibrary(library.isa, arguments.baseline / library.path.name)
        other.set_num_threads(arguments.threads)
        kernels["baseline"] = CompiledKernels(other, dtype)
    rows, results = [], []
    for name, runs in (case for part in Bench(kernels, dtype).parts() for case in part):
        if arguments.only not in name:
            continue
        figures = {key: summarize(times) for key, times in measure(runs, clock, arguments.seconds).items()}
        medians = {key: figure.median for key, figure in figures.items()}
        ratios = [medians["ours"] / medians[peer] if peer in medians else "" for peer in _PEERS]
        rows.append([name, medians["ours"], *(medians.get(peer, "") for peer in _PEERS), *ratios])
        results.append({"name": name, **{key: figure.as_dict(1) for key, figure in figures.items()}})
    print(format_table(["median us", "ours", *_PEERS, *(f"ours/{peer}" for peer in _PEERS)], rows))
    return results


def _roofline(arguments: argparse.Namespace, library: KernelLibrary, clock: Clock) -> dict[str, Any]:
    kernels, dtype = CompiledKernels(library, DTYPES[arguments.dtype]), DTYPES[arguments.dtype]
    bench = roofline.Roofline(kernels, dtype)
    peaks = bench.peaks(arguments.quantization, clock)
    results: dict[str, Any] = {}
    header = ("operation", "calls", "MB", "MFLOP", "us", "GB/s", "GFLOP/s", "share of limit", "share of step")
    steps = adapter_steps() if arguments.adapters else roofline.steps(arguments.context)
    for step in steps:
        # Memory is measured anew for every step: its speed varies over minutes.
        limits = roofline.Limits(read_bandwidth(arguments.threads, clock=clock), *peaks)
        operations = [
            figure
            for operation in _operations(bench, kernels, dtype, step, arguments.quantization)
            if arguments.only in operation.name
            for figure in [operation.measure(limits, clock, arguments.seconds)]
        ]
        total_s, limit_s = (sum(entry.calls * getattr(entry, key) for entry in operations) for key in _TIMES)
        if not operations:
            continue
        print(f"\n{step.name}: {total_s * 1e3:.2f} ms, {limit_s / total_s:.0%} of the limit; per second at most:")
        print(", ".join(f"{name} {value / 1e9:.0f} G" for name, value in limits.as_dict().items()))
        print(format_table(header, [entry.row(total_s) for entry in operations]))
        results[step.name] = {
            "seconds": total_s,
            "limit_seconds": limit_s,
            "limits_per_s": limits.as_dict(),
            "operations": [entry.as_dict() for entry in operations],
        }
    return results


def _operations(
    bench: roofline.Roofline,
    kernels: CompiledKernels,
    dtype: torch.dtype,
    step: roofline.Step | AdapterStep,
    quantization: Quantization,
) -> Iterator[roofline.Operation]:
    if isinstance(step, roofline.Step):
        yield from bench.operations(step, quantization)
        return
    yield from (bench.linear(name, step.num_rows, quantization) for name in ADAPTED)
    yield from adapter_operations(kernels, dtype, step)


_TIMES = ("seconds", "limit_seconds")
