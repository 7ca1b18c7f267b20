"""Measures what a decode step costs beside its kernels: the structure of Qwen3-0.6B (28 layers) with tiny matrices.

    python benchmarks/overhead.py

Python: scheduling, preparing inputs and processing outputs, in milliseconds per step. Sampling: drawing tokens from the
whole vocabulary, which is compiled. Together they are the time of a run, less the first step, less what the recorded
kernel calls took. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from make_checkpoint import VOCAB_SIZE, default_folder, make_checkpoint

from vllm_mxext import LLM
from vllm_mxext.bench.metrics import summarize
from vllm_mxext.bench.offline import measure_offline
from vllm_mxext.bench.report import format_table, json_line
from vllm_mxext.bench.workload import Workload
from vllm_mxext.config.machine import usable_cores
from vllm_mxext.native.kernels.recording import CompiledRecording
from vllm_mxext.native.worker.row_sampling import CompiledRowSampling

SHAPE = "tiny-28-layers"
BATCHES = (1, 8, 32)
INPUT_LEN = 16


@contextmanager
def timed(owner: type, method: str) -> Iterator[list[float]]:
    """Yields a list that receives the seconds of every call of a method."""
    seconds: list[float] = []
    original = getattr(owner, method)

    def call(*arguments: Any) -> None:
        start = time.perf_counter()
        original(*arguments)
        seconds.append(time.perf_counter() - start)

    with mock.patch.object(owner, method, call):
        yield seconds


def overhead_ms(llm: LLM, batch: int, steps: int, seed: int) -> dict[str, float]:
    """Generates once and returns milliseconds per decode step outside of the recorded kernels."""
    with timed(CompiledRecording, "replay") as kernels, timed(CompiledRowSampling, "__call__") as sampling:
        first_s = measure_offline(llm, Workload(batch, INPUT_LEN, 1), VOCAB_SIZE, seed)
        kernels.clear()
        sampling.clear()
        total_s = measure_offline(llm, Workload(batch, INPUT_LEN, steps + 1), VOCAB_SIZE, seed)
    if not kernels:
        raise SystemExit("There are no compiled kernels here, so no steps are recorded.")
    sampling_ms = sum(sampling) / steps * 1e3
    python_ms = (total_s - first_s - sum(kernels)) / steps * 1e3 - sampling_ms
    return {"python": python_ms, "sampling": sampling_ms}


def main() -> None:
    """Reads the arguments, measures and reports."""
    parser = argparse.ArgumentParser(description="Milliseconds per decode step outside of the kernels.")
    parser.add_argument("--model", type=Path, default=default_folder(SHAPE), help="made if it is the default")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--num-threads", type=int, default=usable_cores())
    arguments = parser.parse_args()
    if arguments.model == default_folder(SHAPE):
        make_checkpoint(arguments.model, shape=SHAPE)
    llm = LLM(
        str(arguments.model), num_threads=arguments.num_threads, max_model_len=1024, kv_cache_memory_bytes="512MiB"
    )
    runs: dict[str, list[float]] = {}
    for repeat in range(arguments.repeats + 1):
        for batch in BATCHES:
            for part, milliseconds in overhead_ms(llm, batch, arguments.steps, seed=repeat).items():
                measured = runs.setdefault(f"{batch} requests, {part}", [])
                if repeat > 0:  # the first one warms up
                    measured.append(milliseconds)
    results = {name: summarize(measured) for name, measured in runs.items()}
    rows = [(name, figure.median, figure.minimum, figure.maximum) for name, figure in results.items()]
    print(format_table(("milliseconds per step", "median", "min", "max"), rows))
    config = {"steps": arguments.steps, "repeats": arguments.repeats, "num_threads": arguments.num_threads}
    print(json_line("overhead", config, {name: figure.as_dict() for name, figure in results.items()}))


if __name__ == "__main__":
    main()
