"""`mxext bench`: latency and throughput of the engine in this process, or of a running server."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from typing import Any

from vllm_mxext.bench.metrics import summarize
from vllm_mxext.bench.report import format_table, json_line
from vllm_mxext.bench.workload import Workload
from vllm_mxext.cli.connection import API_KEY_VARIABLE, DEFAULT_URL, Connection
from vllm_mxext.errors import ConfigError

_ENGINE_ARGS = ("model", "dtype", "quantization", "num_threads", "load_format")

_SAMPLE_TEXT = "the quick brown fox jumps over 13 lazy dogs and 27 + 5 = 32; sort b a c d, copy it twice. "


def run(argv: Sequence[str]) -> int:
    """Runs one benchmark; returns the exit code."""
    parser = argparse.ArgumentParser(prog="mxext bench", description="Measure; the last line of output is JSON.")
    commands = parser.add_subparsers(dest="benchmark", required=True, metavar="{latency,throughput,serve}")
    latency = commands.add_parser("latency", help="one request at a time in this process")
    _add_offline_arguments(latency, Workload(1, 32, 64))
    throughput = commands.add_parser("throughput", help="many requests at once in this process")
    _add_offline_arguments(throughput, Workload(32, 256, 64))
    serve = commands.add_parser("serve", help="concurrent streams against a running server")
    serve.add_argument("--url", default=DEFAULT_URL, help=f"address of the server (default: {DEFAULT_URL})")
    serve.add_argument("--api-key", help=f"key to present (default: ${API_KEY_VARIABLE})")
    serve.add_argument("--model", help="served model (default: the server's first)")
    serve.add_argument("--concurrency", type=int, default=32, help="open streams at most (default: 32)")
    _add_workload_arguments(serve, Workload(64, 256, 64))
    arguments = parser.parse_args(argv)
    if arguments.benchmark == "serve":
        return _bench_server(arguments)
    return _bench_engine(arguments)


def _add_offline_arguments(parser: argparse.ArgumentParser, default: Workload) -> None:
    parser.add_argument("--model", help="folder of the checkpoint (default: the built-in model)")
    parser.add_argument("--dtype", default="auto", help="element type (default: auto)")
    parser.add_argument("--quantization", default="none", help="int8 converts the weights (default: none)")
    parser.add_argument("--num-threads", type=int, help="CPU threads (default: physical cores)")
    parser.add_argument("--load-format", default="auto", help="dummy needs no weights (default: auto)")
    parser.add_argument("--repeats", type=int, default=3, help="measurements after a warm-up (default: 3)")
    _add_workload_arguments(parser, default)


def _add_workload_arguments(parser: argparse.ArgumentParser, default: Workload) -> None:
    parser.add_argument(
        "--workload",
        default=str(default),
        metavar="N(IN->OUT)",
        help=f"requests, prompt and output tokens of each (default: '{default}')",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the prompts (default: 0)")


def _bench_engine(arguments: argparse.Namespace) -> int:
    workload = Workload.parse(arguments.workload)
    if arguments.repeats < 1:
        raise ConfigError("--repeats must be at least 1.")
    from vllm_mxext.bench.offline import measure_offline  # noqa: PLC0415 - after the arguments are checked
    from vllm_mxext.entrypoints.llm import LLM  # noqa: PLC0415 - imports torch

    engine_args = {name: getattr(arguments, name) for name in _ENGINE_ARGS}
    with LLM(enable_prefix_caching=False, **engine_args) as llm:
        vocab_size = llm.model.vocab_size
        measure_offline(llm, workload, vocab_size, arguments.seed)
        times = [measure_offline(llm, workload, vocab_size, arguments.seed) for _ in range(arguments.repeats)]
    seconds = summarize(times)
    tokens = workload.num_requests * workload.output_len
    rows = [(str(workload), seconds.median, seconds.minimum, seconds.maximum, tokens / seconds.median)]
    print(format_table(("workload", "seconds", "min", "max", "output tokens/s"), rows))
    config = {**engine_args, "workload": str(workload), "repeats": arguments.repeats, "seed": arguments.seed}
    results = {"seconds": seconds.as_dict(), "output_tokens_per_s": round(tokens / seconds.median, 3)}
    print(json_line(arguments.benchmark, config, results))
    return 0


def _bench_server(arguments: argparse.Namespace) -> int:
    workload = Workload.parse(arguments.workload)
    if arguments.concurrency < 1:
        raise ConfigError("--concurrency must be at least 1.")
    with Connection(arguments.url, arguments.api_key) as connection:
        model = arguments.model or connection.first_model()
        alphabet = connection.tokenize(model, _SAMPLE_TEXT)
        headers = connection.headers
    prompts = workload.prompts(alphabet, arguments.seed)
    bodies = [
        {"model": model, "prompt": ids, "max_tokens": workload.output_len, "temperature": 0, "ignore_eos": True}
        for ids in prompts
    ]
    figures = asyncio.run(_measure(arguments.url, headers, bodies, arguments.concurrency))
    rows = [
        (name, *(figures[name][key] * 1000 for key in ("median", "p95", "p99")))
        for name in ("ttft_s", "tpot_s", "e2e_s")
        if figures[name]
    ]
    print(f"{figures['output_tokens_per_s']} output tokens/s, {figures['requests_per_s']} requests/s")
    print(format_table(("milliseconds", "median", "P95", "P99"), [(row[0][:-2], *row[1:]) for row in rows]))
    config = {
        "model": model,
        "workload": str(workload),
        "concurrency": arguments.concurrency,
        "seed": arguments.seed,
    }
    print(json_line("serve", config, figures))
    return 0


async def _measure(url: str, headers: dict[str, str], bodies: list[dict[str, Any]], concurrency: int) -> dict[str, Any]:
    import httpx  # noqa: PLC0415 - offline benchmarks do not need it

    from vllm_mxext.bench.serving import measure_server  # noqa: PLC0415 - the same

    limits = httpx.Limits(max_connections=None)
    base = url.rstrip("/").removesuffix("/v1")
    async with httpx.AsyncClient(
        base_url=base, headers=headers, timeout=None, limits=limits, trust_env=False
    ) as client:
        print(f"warming up {base}", file=sys.stderr)
        await measure_server(client, bodies[:1], 1)
        return (await measure_server(client, bodies, concurrency)).figures()
