"""Generates offline with our engine and with its peers, interleaved, on a random Qwen3-0.6B-shaped checkpoint.

    python benchmarks/offline.py --repeats 3
    python benchmarks/peers/make_environments.py openvino
    python benchmarks/offline.py --engines vllm_mxext openvino-fp16 vllm_mxext-int8 openvino-int8

Greedy, end-of-text ignored; output tokens count over the whole time, prompt processing included. The workload with one
output token measures the prompt. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from make_checkpoint import DEFAULT_FOLDER, VOCAB_SIZE, make_checkpoint
from peers.make_environments import DEFAULT_ROOT
from peers.process import PeerProcess

from vllm_mxext.bench.bandwidth import read_bandwidth
from vllm_mxext.bench.metrics import summarize
from vllm_mxext.bench.offline import measure_offline
from vllm_mxext.bench.report import format_table, json_line
from vllm_mxext.bench.workload import Workload
from vllm_mxext.config.machine import usable_cores

WORKLOADS = ("1x(32->64)", "8x(128->64)", "32x(256->64)", "1x(1024->1)")

Measure = Callable[[Workload, int], float]
"""Workload and seed -> seconds."""


def load_ours(folder: Path, num_threads: int, quantization: str = "none") -> Measure:
    """Loads our engine."""
    from vllm_mxext.entrypoints.llm import LLM  # noqa: PLC0415 - only if it takes part

    llm = LLM(
        model=str(folder),
        num_threads=num_threads,
        quantization=quantization,
        enable_prefix_caching=False,
        max_model_len=2048,
        kv_cache_memory_bytes="2GiB",
    )
    return lambda workload, seed: measure_offline(llm, workload, VOCAB_SIZE, seed)


def load_transformers(folder: Path, num_threads: int) -> Measure:
    """Loads the same checkpoint with transformers, in the checkpoint's data type."""
    import torch  # noqa: PLC0415 - only if it takes part
    from transformers import AutoModelForCausalLM  # noqa: PLC0415 - the same

    torch.set_num_threads(num_threads)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()  # type: ignore[no-untyped-call]

    def measure(workload: Workload, seed: int) -> float:
        ids = torch.tensor(workload.prompts(range(VOCAB_SIZE), seed))
        start = time.perf_counter()
        with torch.inference_mode():
            output = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=workload.output_len,
                min_new_tokens=workload.output_len,
                do_sample=False,
                pad_token_id=0,
            )
        elapsed_s = time.perf_counter() - start
        if output.shape[1] != workload.input_len + workload.output_len:
            raise RuntimeError(f"transformers generated {output.shape[1] - workload.input_len} tokens")
        return elapsed_s

    return measure


def load_openvino(form: str, root: Path, num_threads: int) -> Measure:
    """Loads the converted checkpoint in an OpenVINO environment (`peers/make_environments.py`)."""
    folder = root / "openvino"
    python = folder / "env" / "bin" / "python"
    if not (python.exists() and (folder / form).is_dir()):
        command = f"python {Path(__file__).parent / 'peers' / 'make_environments.py'} openvino --root {root}"
        raise SystemExit(f"There is no OpenVINO with a model in {form} in {folder}; make it first: {command}")
    return PeerProcess(python, "openvino_worker.py", [str(folder / form), str(num_threads)], VOCAB_SIZE).measure


def engines_of(folder: Path, num_threads: int, peers: Path) -> dict[str, Callable[[], Measure]]:
    """Returns engine name -> what loads it."""
    return {
        "vllm_mxext": partial(load_ours, folder, num_threads),
        "vllm_mxext-int8": partial(load_ours, folder, num_threads, "int8"),
        "transformers": partial(load_transformers, folder, num_threads),
        "openvino-fp16": partial(load_openvino, "fp16", peers, num_threads),
        "openvino-int8": partial(load_openvino, "int8", peers, num_threads),
    }


DEFAULT_ENGINES = ("vllm_mxext", "vllm_mxext-int8", "transformers")


def figures(workload: Workload, seconds: list[float]) -> dict[str, Any]:
    """Returns times and rates of one engine on one workload."""
    summary = summarize(seconds)
    requests = workload.num_requests
    return {
        "seconds": summary.as_dict(),
        "output_tokens_per_s": round(requests * workload.output_len / summary.median, 2),
        "prompt_tokens_per_s": round(requests * workload.input_len / summary.median, 2),
    }


def _row(results: dict[str, Any], workload: str, engine: str) -> tuple[object, ...]:
    entry, seconds = results[workload][engine], results[workload][engine]["seconds"]
    rates = (entry["output_tokens_per_s"], entry["prompt_tokens_per_s"])
    times = (seconds["median"], seconds["minimum"], seconds["maximum"])
    return (workload, engine, *rates, *times, results[workload]["read_gb_per_s"])


def main() -> None:
    """Reads the arguments, measures and reports."""
    parser = argparse.ArgumentParser(description="Our engine and its peers on the same workloads, interleaved.")
    parser.add_argument("--model", type=Path, default=DEFAULT_FOLDER, help="checkpoint; made if it is the default")
    parser.add_argument("--engines", nargs="+", default=list(DEFAULT_ENGINES), help="also openvino-fp16, openvino-int8")
    parser.add_argument(
        "--peers", type=Path, default=DEFAULT_ROOT, help=f"their environments (default: {DEFAULT_ROOT})"
    )
    parser.add_argument("--workloads", nargs="+", default=list(WORKLOADS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--num-threads", type=int, default=usable_cores())
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.model == DEFAULT_FOLDER:
        make_checkpoint(arguments.model)
    workloads = [Workload.parse(text) for text in arguments.workloads]
    loaders = engines_of(arguments.model, arguments.num_threads, arguments.peers)
    if unknown := set(arguments.engines) - set(loaders):
        parser.error(f"unknown engines: {', '.join(sorted(unknown))}; there are {', '.join(loaders)}")
    load_s: dict[str, float] = {}
    engines: dict[str, Measure] = {}
    for name in arguments.engines:
        start = time.perf_counter()
        engines[name] = loaders[name]()
        load_s[name] = round(time.perf_counter() - start, 2)
        print(f"{name} loaded in {load_s[name]} s", flush=True)
        engines[name](Workload(2, 16, 4), arguments.seed)

    seconds: dict[tuple[Workload, str], list[float]] = {}
    bandwidth: dict[Workload, list[float]] = {}
    for repeat in range(arguments.repeats):
        for workload in workloads:
            bandwidth.setdefault(workload, []).append(read_bandwidth(arguments.num_threads))
            for name, measure in engines.items():
                elapsed_s = measure(workload, arguments.seed + repeat)
                seconds.setdefault((workload, name), []).append(elapsed_s)
                print(f"  {repeat + 1}/{arguments.repeats} {workload} {name}: {elapsed_s:.2f} s", flush=True)

    results = {
        str(workload): {
            "read_gb_per_s": round(summarize(bandwidth[workload]).median / 1e9, 1),
            **{name: figures(workload, seconds[workload, name]) for name in engines},
        }
        for workload in workloads
    }
    header = ("workload", "engine", "out tok/s", "prompt tok/s", "seconds", "min", "max", "read GB/s")
    print(format_table(header, [_row(results, workload, name) for workload in results for name in engines]))
    config = {
        "checkpoint": "random Qwen3-0.6B shape, bfloat16" if arguments.model == DEFAULT_FOLDER else "given by --model",
        "num_threads": arguments.num_threads,
        "repeats": arguments.repeats,
        "seed": arguments.seed,
        "load_s": load_s,
    }
    print(json_line("offline", config, results))


if __name__ == "__main__":
    main()
