"""Serves the same checkpoint with our server and with `transformers serve`, and loads them in turn with streams.

    python benchmarks/serving.py --requests 64 --concurrency 32 --repeats 2

All servers run at the same time and rest while another is measured. The checkpoint is a random one of the shape of
Qwen3-0.6B whose tokens are words, so that text prompts have an exact length. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from pathlib import Path
from typing import Any

from make_checkpoint import DEFAULT_FOLDER, make_checkpoint, prompts_in_words

from vllm_mxext.bench.bandwidth import read_bandwidth
from vllm_mxext.bench.report import format_table, json_line
from vllm_mxext.bench.serve.plan import Plan, RequestPlan, ServerPlan
from vllm_mxext.bench.serve.result import RunResult
from vllm_mxext.bench.serve.runner import run_plan
from vllm_mxext.bench.serve.statistics import latencies, stage_figures
from vllm_mxext.bench.server_process import OUR_SERVER, ServerProcess
from vllm_mxext.bench.workload import Workload
from vllm_mxext.config.machine import usable_cores
from vllm_mxext.errors import EngineError

SERVERS = ("vllm_mxext", "transformers", "transformers-cb")
"""Ours, and `transformers serve` without and with its continuous batching."""

OUR_FLAGS = ("--kv-cache-memory-bytes", "2GiB", "--no-enable-prefix-caching")
TIMEOUT_S = 3600.0
"""For one answer: a server that takes its requests one after the other needs long for the last."""


def commands(folder: Path, max_model_len: int) -> dict[str, tuple[list[str], str]]:
    """Returns server name -> command, and the path that answers once requests are served."""
    transformers = [str(Path(sys.executable).with_name("transformers")), "serve", str(folder), "--device", "cpu"]
    ours = [*OUR_SERVER, "--model", str(folder), "--max-model-len", str(max_model_len), *OUR_FLAGS]
    return {
        "vllm_mxext": (ours, "/v1/health/ready"),
        "transformers": (transformers, "/health"),
        "transformers-cb": ([*transformers, "--continuous-batching"], "/health"),
    }


def load(url: str, model: str, workload: Workload, concurrency: int, seed: int) -> RunResult:
    """Measures one server with streams, `concurrency` at a time.

    Raises:
        EngineError: not every request was answered with a count of its tokens.
    """
    params = RequestPlan(
        max_tokens=workload.output_len,
        temperature=0.0,
        concurrent_requests=concurrency,
        endpoint="completions",
        timeout=TIMEOUT_S,
        server_metrics=False,
    )
    prompts = tuple(prompts_in_words(workload, seed))
    result = run_plan(Plan(ServerPlan(url=url, model=model), params, prompts=prompts))
    for record in result.records:
        if record.failure or record.token_source != "usage":
            raise EngineError(f"{url} did not answer a request: {record.failure_detail or 'no usage in the answer'}.")
    return result


def report(results: dict[str, list[RunResult]], output_len: int) -> dict[str, Any]:
    """Prints the table and returns the figures for JSON; latencies are those of the requests of all runs."""
    figures: dict[str, Any] = {}
    rows = []
    for name, runs in results.items():
        stages = [stage_figures(run, 0) for run in runs]
        records = [record for run in runs for record in run.records]
        of_all = latencies(records)
        times = {f"{name}_s": getattr(of_all, name) for name in ("ttft", "tpot", "e2e")}
        tokens, elapsed_s = sum(stage.output_tokens for stage in stages), sum(stage.duration_s for stage in stages)
        figures[name] = {
            "elapsed_s": round(elapsed_s, 4),
            "output_tokens": tokens,
            "output_tokens_per_s": round(tokens / elapsed_s, 3),
            "requests_per_s": round(len(records) / elapsed_s, 4),
            **{name: summary.as_dict() for name, summary in times.items()},
            "output_tokens_per_s_of_runs": [round(stage.output_tokens_per_s, 3) for stage in stages],
            "short_streams": sum((record.output_tokens or 0) < output_len for record in records),
            "doubts": [reason for run in runs for reason in run.invalid_reasons],
        }
        tpot_ms = times["tpot_s"].median * 1000
        first = (times["ttft_s"].median, times["ttft_s"].p95)
        rows.append((name, tokens / elapsed_s, *first, tpot_ms, times["e2e_s"].median))
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
    results: dict[str, list[RunResult]] = {name: [] for name in arguments.servers}
    bandwidth = []
    with tempfile.TemporaryDirectory() as logs, contextlib.ExitStack() as stack:
        servers = {}
        for name in arguments.servers:
            command, ready_path = commands(folder, workload.input_len + workload.output_len)[name]
            server = stack.enter_context(ServerProcess(command, Path(logs) / f"{name}.log"))
            server.wait_for(ready_path)
            servers[name] = server
            load(server.url, str(folder), Workload(2, 16, 4), 2, arguments.seed)
            print(f"{name} is ready", flush=True)
        for repeat in range(arguments.repeats):
            bandwidth.append(round(read_bandwidth(usable_cores()) / 1e9, 1))
            for name, server in servers.items():
                result = load(server.url, str(folder), workload, arguments.concurrency, arguments.seed + repeat)
                results[name].append(result)
                print(f"  {repeat + 1}/{arguments.repeats} {name}: {result.duration_s:.1f} s", flush=True)
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
