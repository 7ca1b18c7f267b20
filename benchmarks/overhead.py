"""Measures what a decode step costs beside its kernels: the structure of Qwen3-0.6B (28 layers) with tiny matrices.

    python benchmarks/overhead.py

Scheduling, preparing inputs, sampling over the whole vocabulary and processing outputs, in milliseconds per step: the
time of a run, less the first step, less what the recorded kernel calls took. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

from make_checkpoint import VOCAB_SIZE, default_folder, make_checkpoint

from vllm_mxext import LLM
from vllm_mxext.bench.metrics import summarize
from vllm_mxext.bench.offline import measure_offline
from vllm_mxext.bench.report import format_table, json_line
from vllm_mxext.bench.workload import Workload
from vllm_mxext.config.machine import usable_cores
from vllm_mxext.native.kernels.recording import CompiledRecording

SHAPE = "tiny-28-layers"
BATCHES = (1, 8, 32)
INPUT_LEN = 16


@contextmanager
def timed_kernels() -> Iterator[list[float]]:
    """Yields a list that receives the seconds of every recorded step's kernels."""
    seconds: list[float] = []
    replay = CompiledRecording.replay

    def timed(recording: CompiledRecording, num_rows: int) -> None:
        start = time.perf_counter()
        replay(recording, num_rows)
        seconds.append(time.perf_counter() - start)

    with mock.patch.object(CompiledRecording, "replay", timed):
        yield seconds


def overhead_ms(llm: LLM, batch: int, steps: int, seed: int) -> float:
    """Generates once and returns milliseconds per decode step outside of the kernels."""
    with timed_kernels() as kernels:
        first_s = measure_offline(llm, Workload(batch, INPUT_LEN, 1), VOCAB_SIZE, seed)
        kernels.clear()
        total_s = measure_offline(llm, Workload(batch, INPUT_LEN, steps + 1), VOCAB_SIZE, seed)
    if not kernels:
        raise SystemExit("There are no compiled kernels here, so no steps are recorded.")
    return (total_s - first_s - sum(kernels)) / steps * 1e3


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
    runs: dict[int, list[float]] = {batch: [] for batch in BATCHES}
    for repeat in range(arguments.repeats + 1):
        for batch, measured in runs.items():
            milliseconds = overhead_ms(llm, batch, arguments.steps, seed=repeat)
            if repeat > 0:  # the first one warms up
                measured.append(milliseconds)
    results = {f"{batch} requests": summarize(measured) for batch, measured in runs.items()}
    rows = [(name, figure.median, figure.minimum, figure.maximum) for name, figure in results.items()]
    print(format_table(("milliseconds per step", "median", "min", "max"), rows))
    config = {"steps": arguments.steps, "repeats": arguments.repeats, "num_threads": arguments.num_threads}
    print(json_line("overhead", config, {name: figure.as_dict() for name, figure in results.items()}))


if __name__ == "__main__":
    main()
