"""Serves the same checkpoint with our server and with `transformers serve`, and loads them in turn with streams.

    python benchmarks/serving.py --requests 64 --concurrency 32 --repeats 2

All servers run at the same time and rest while another is measured. The checkpoint is a random one of the shape of
Qwen3-0.6B whose tokens are words, so that text prompts have an exact length. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
import tempfile
from pathlib import Path
from typing import Any

import httpx
from make_checkpoint import DEFAULT_FOLDER, VOCAB_SIZE, make_checkpoint

from vllm_mxext.bench.bandwidth import read_bandwidth
from vllm_mxext.bench.report import format_table, json_line
from vllm_mxext.bench.server_process import OUR_SERVER, ServerProcess
from vllm_mxext.bench.serving import ServingResult, measure_server
from vllm_mxext.bench.workload import Workload
from vllm_mxext.config.machine import usable_cores

SERVERS = ("vllm_mxext", "transformers", "transformers-cb")
"""Ours, and `transformers serve` without and with its continuous batching."""

OUR_FLAGS = ("--kv-cache-memory-bytes", "2GiB", "--no-enable-prefix-caching")


def commands(folder: Path, max_model_len: int) -> dict[str, tuple[list[str], str]]:
    """Returns server name -> command, and the path that answers once requests are served."""
    transformers = [str(Path(sys.executable).with_name("transformers")), "serve", str(folder), "--device", "cpu"]
    ours = [*OUR_SERVER, "--model", str(folder), "--max-model-len", str(max_model_len), *OUR_FLAGS]
    return {
        "vllm_mxext": (ours, "/v1/health/ready"),
        "transformers": (transformers, "/health"),
        "transformers-cb": ([*transformers, "--continuous-batching"], "/health"),
    }


def bodies(workload: Workload, model: str, seed: int) -> list[dict[str, Any]]:
    """Returns completion requests whose prompts are words, one token each."""
    return [
        {
            "model": model,
            "prompt": " ".join(f"w{token}" for token in prompt),
            "max_tokens": workload.output_len,
            "temperature": 0,
        }
        for prompt in workload.prompts(range(VOCAB_SIZE), seed)
    ]


async def load(url: str, requests: list[dict[str, Any]], concurrency: int) -> ServingResult:
    """Sends the requests, `concurrency` at a time."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=None, limits=limits, trust_env=False) as client:
        return await measure_server(client, requests, concurrency)


def merge(results: list[ServingResult]) -> ServingResult:
    """Returns all streams of several runs as one."""
    return ServingResult(
        sum(run.elapsed_s for run in results), tuple(times for run in results for times in run.streams)
    )


def report(results: dict[str, list[ServingResult]], output_len: int) -> dict[str, Any]:
    """Prints the table and returns the figures for JSON."""
    figures: dict[str, Any] = {}
    rows = []
    for name, runs in results.items():
        entry = merge(runs).figures()
        entry["output_tokens_per_s_of_runs"] = [run.figures()["output_tokens_per_s"] for run in runs]
        entry["short_streams"] = sum(times.num_output_tokens < output_len for run in runs for times in run.streams)
        figures[name] = entry
        tpot = entry["tpot_s"]["median"] * 1000
        times = (entry["ttft_s"]["median"], entry["ttft_s"]["p95"], tpot, entry["e2e_s"]["median"])
        rows.append((name, entry["output_tokens_per_s"], *times))
    print(format_table(("server", "out tok/s", "TTFT s", "TTFT P95 s", "TPOT ms", "E2E s"), rows))
    return figures


def main() -> None:
    """Reads the arguments, starts the servers, measures and reports."""
    parser = argparse.ArgumentParser(description="Our server and 'transformers serve' under concurrent streams.")
    parser.add_argument("--model", type=Path, default=DEFAULT_FOLDER, help="checkpoint of make_checkpoint.py")
    parser.add_argument("--servers", nargs="+", default=SERVERS, choices=SERVERS)
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--input-len", type=int, default=256)
    parser.add_argument("--output-len", type=int, default=64)
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    make_checkpoint(arguments.model)
    folder = arguments.model.resolve()
    workload = Workload(arguments.requests, arguments.input_len, arguments.output_len)
    results: dict[str, list[ServingResult]] = {name: [] for name in arguments.servers}
    bandwidth = []
    with tempfile.TemporaryDirectory() as logs, contextlib.ExitStack() as stack:
        servers = {}
        for name in arguments.servers:
            command, ready_path = commands(folder, workload.input_len + workload.output_len)[name]
            server = stack.enter_context(ServerProcess(command, Path(logs) / f"{name}.log"))
            server.wait_for(ready_path)
            servers[name] = server
            asyncio.run(load(server.url, bodies(Workload(2, 16, 4), str(folder), arguments.seed), 2))
            print(f"{name} is ready", flush=True)
        for repeat in range(arguments.repeats):
            bandwidth.append(round(read_bandwidth(usable_cores()) / 1e9, 1))
            for name, server in servers.items():
                requests = bodies(workload, str(folder), arguments.seed + repeat)
                result = asyncio.run(load(server.url, requests, arguments.concurrency))
                results[name].append(result)
                print(f"  {repeat + 1}/{arguments.repeats} {name}: {result.elapsed_s:.1f} s", flush=True)
    figures = report(results, arguments.output_len)
    config = {
        "workload": str(workload),
        "concurrency": arguments.concurrency,
        "repeats": arguments.repeats,
        "seed": arguments.seed,
        "our_flags": OUR_FLAGS,
    }
    print(json_line("serving", config, {**figures, "read_gb_per_s": bandwidth}))


if __name__ == "__main__":
    main()
