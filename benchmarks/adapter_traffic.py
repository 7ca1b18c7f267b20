"""Loads a server with requests for many adapters, a few of them popular (Zipf), beside the same on the base model.

    python benchmarks/adapter_traffic.py
    python benchmarks/adapter_traffic.py --servers vllm_mxext vllm --peers DIR

The traffic on adapters and on the base model takes turns on one server; with several servers one follows the other.
Before it, time to first token is measured with one request after the other: for adapters that nobody has asked for
(`cold`), for one again and again (`warm`), and for the base model. With --host below --adapters, cold ones are read
from their files. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import tempfile
from pathlib import Path
from statistics import median

from make_adapters import make_adapters
from make_checkpoint import DEFAULT_SHAPE, default_folder, make_checkpoint, prompts_in_words

from vllm_mxext.bench.report import format_table, json_line
from vllm_mxext.bench.serve.address import Address
from vllm_mxext.bench.serve.plan import RequestPlan
from vllm_mxext.bench.serve.request import Reply, ask, request_body
from vllm_mxext.bench.serve.wire import Wire
from vllm_mxext.bench.server_process import OUR_SERVER, ServerProcess
from vllm_mxext.bench.workload import Workload
from vllm_mxext.errors import EngineError

SERVERS = ("vllm_mxext", "vllm")
MAX_MODEL_LEN = 1024
ENVIRONMENT = {"VLLM_CPU_KVCACHE_SPACE": "2"}
"""vLLM's KV cache in GiB."""

PARAMS = RequestPlan(endpoint="completions", temperature=0.0, ignore_eos=True, timeout=3600.0)


def command(server: str, model: Path, arguments: argparse.Namespace, adapters: list[Path]) -> tuple[list[str], str]:
    """Returns how a server is started, and the path that answers once requests are served."""
    modules = [f"{adapter.name}={adapter}" for adapter in adapters]
    limits = [
        "--enable-lora", "--max-loras", str(arguments.slots), "--max-lora-rank", str(arguments.rank),
        "--max-cpu-loras", str(arguments.host), "--max-model-len", str(MAX_MODEL_LEN),
        "--max-num-seqs", str(arguments.concurrency), "--no-enable-prefix-caching", "--served-model-name", "base",
        "--lora-modules", *modules,
    ]  # fmt: skip
    if server == "vllm_mxext":
        return [*OUR_SERVER, "--model", str(model), "--kv-cache-memory-bytes", "2GiB", *limits], "/v1/health/ready"
    python = arguments.peers / "vllm" / "env" / "bin" / "python"
    program = [str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--dtype", "bfloat16"]
    return [*program, "--gpu-memory-utilization", "0.5", *limits], "/health"


def zipf(adapters: list[Path], count: int, exponent: float, seed: int) -> list[str]:
    """Returns so many names, the n-th adapter as often as `n ** -exponent` says."""
    weights = [(rank + 1) ** -exponent for rank in range(len(adapters))]
    return random.Random(seed).choices([adapter.name for adapter in adapters], weights, k=count)


async def load(url: str, workload: Workload, models: list[str], concurrency: int, seed: int) -> list[Reply]:
    """Sends one request of the workload to each model, `concurrency` at a time.

    Raises:
        EngineError: one was not answered with a count of its tokens.
    """
    wire, slots = Wire(Address.parse(url)), asyncio.Semaphore(concurrency)

    async def one(model: str, prompt: str) -> Reply:
        reply = Reply()
        async with slots:
            await ask(wire, PARAMS, request_body(PARAMS, model, prompt, workload.output_len), reply)
        if reply.failure or "completion_tokens" not in reply.usage:
            raise EngineError(f"{url} did not answer a request: {reply.failure_detail or 'no usage in the answer'}.")
        return reply

    prompts = prompts_in_words(workload, seed)
    try:
        return await asyncio.gather(*(one(model, prompt) for model, prompt in zip(models, prompts, strict=True)))
    finally:
        wire.close()


def tokens_per_s(replies: list[Reply]) -> float:
    """Returns output tokens per second, from the first request to the end of the last answer."""
    elapsed_s = max(reply.ended_s for reply in replies) - min(reply.sent_s for reply in replies)
    return sum(int(reply.usage["completion_tokens"]) for reply in replies) / elapsed_s


def first_tokens(url: str, names: list[str], seed: int) -> list[float]:
    """Returns times to the first token of one request after the other, in seconds."""
    replies = asyncio.run(load(url, Workload(len(names), 32, 2), names, 1, seed))
    return [reply.chunk_times_s[0] - reply.sent_s for reply in replies]


def measure(server: str, url: str, adapters: list[Path], arguments: argparse.Namespace) -> dict[str, list[float]]:
    """Loads one server and returns its figures."""
    workload = Workload.parse(arguments.workload)
    figures: dict[str, list[float]] = {"base": [], "adapters": [], "ratio": []}
    asyncio.run(load(url, Workload(2, 16, 4), ["base", adapters[-1].name], 2, 99))
    rare = [adapter.name for adapter in adapters[-1 - arguments.probes : -1]]
    figures["ttft cold"] = first_tokens(url, rare, 1000)
    figures["ttft warm"] = first_tokens(url, [rare[-1]] * arguments.probes, 2000)
    figures["ttft base"] = first_tokens(url, ["base"] * arguments.probes, 3000)
    for repeat in range(arguments.repeats):
        names = zipf(adapters, workload.num_requests, arguments.exponent, repeat)
        for kind, models in (("base", ["base"] * len(names)), ("adapters", names)):
            replies = asyncio.run(load(url, workload, models, arguments.concurrency, repeat))
            figures[kind].append(tokens_per_s(replies))
            print(f"{server} {kind}: {figures[kind][-1]:.3f} output tokens/s", flush=True)
        figures["ratio"].append(figures["adapters"][-1] / figures["base"][-1])
    return figures


def main() -> None:
    """Reads the arguments, measures and reports."""
    parser = argparse.ArgumentParser(description="Traffic over many adapters.")
    parser.add_argument("--servers", nargs="+", choices=SERVERS, default=["vllm_mxext"])
    parser.add_argument("--peers", type=Path, help="folder of benchmarks/peers/make_environments.py")
    parser.add_argument("--shape", default=DEFAULT_SHAPE)
    parser.add_argument("--workload", default="64x(64->64)")
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--adapters", type=int, default=100)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--host", type=int, default=100, help="adapters in host memory")
    parser.add_argument("--exponent", type=float, default=1.0, help="of the Zipf distribution")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--probes", type=int, default=8, help="requests that time to first token is measured with")
    arguments = parser.parse_args()
    model = default_folder(arguments.shape)
    make_checkpoint(model, shape=arguments.shape)
    folder = model.with_name(f"{model.name}-{arguments.adapters}-adapters-{arguments.rank}")
    adapters = make_adapters(model, folder, [arguments.rank] * arguments.adapters)
    results: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as logs:
        for server in arguments.servers:
            program, ready = command(server, model, arguments, adapters)
            with ServerProcess(program, Path(logs) / f"{server}.log", environ={**os.environ, **ENVIRONMENT}) as process:
                process.wait_for(ready, 1800.0)
                results[server] = measure(server, process.url, adapters, arguments)
                results[server]["memory MB"] = [process.memory_bytes() / 1e6]
    rows = [(server, name, median(values)) for server, figures in results.items() for name, values in figures.items()]
    print(format_table(("server", "figure", "median"), rows))
    config = {name: value for name, value in vars(arguments).items() if name != "peers"}
    print(json_line("adapter_traffic", config, results))


if __name__ == "__main__":
    main()
