"""`mxext bench`: latency and throughput of the engine in this process, a running server, start-up, and kernels."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

from vllm_mxext.bench.metrics import summarize
from vllm_mxext.bench.report import format_table, json_line
from vllm_mxext.bench.workload import Workload
from vllm_mxext.config.machine import usable_cores
from vllm_mxext.errors import ConfigError

_ENGINE_ARGS = ("model", "dtype", "quantization", "kv_cache_dtype", "num_threads", "load_format")

_KERNELS_DESCRIPTION = """\
Time the compiled kernels beside PyTorch's own operations, interleaved, at the shapes of Qwen3-0.6B.

--baseline names a folder with another build of the kernel libraries, for before and after. On a busy machine, one
thread and its CPU time (--clock cpu) give steady figures: waiting for other processes does not count. The last line
is one JSON object with median, minimum and maximum of every cell, in microseconds.

--roofline instead reports every operation of a decode step and of a prefill: bytes, floating-point operations, time,
and the share of what memory and instructions of this machine allow; with --adapters, of linear layers and of the
adapters (LoRA) on them, for some numbers of adapters, rows and ranks.
"""


def run(argv: Sequence[str]) -> int:
    """Runs one benchmark; returns the exit code."""
    if argv and argv[0] == "serve":
        from vllm_mxext.cli import bench_serve  # noqa: PLC0415 - other benchmarks do not need it

        return bench_serve.run(argv[1:])
    parser = argparse.ArgumentParser(prog="mxext bench", description="Measure; the last line of output is JSON.")
    commands = parser.add_subparsers(dest="benchmark", required=True, metavar="BENCHMARK")
    latency = commands.add_parser("latency", help="one request at a time in this process")
    _add_offline_arguments(latency, Workload(1, 32, 64))
    throughput = commands.add_parser("throughput", help="many requests at once in this process")
    _add_offline_arguments(throughput, Workload(32, 256, 64))
    commands.add_parser("serve", help="a running server: latency, throughput, objectives, comparisons", add_help=False)
    startup = commands.add_parser("startup", help="from the start of a server to its first answer")
    startup.add_argument("--repeats", type=int, default=5, help="starts (default: 5)")
    startup.add_argument("flags", nargs=argparse.REMAINDER, help="after --: flags of 'mxext serve'")
    _add_kernel_arguments(commands)
    arguments = parser.parse_args(argv)
    if arguments.benchmark == "startup":
        return _bench_startup(arguments)
    if arguments.benchmark == "kernels":
        from vllm_mxext.cli.kernel_report import report_kernels  # noqa: PLC0415 - imports torch

        return report_kernels(arguments)
    return _bench_engine(arguments)


def _add_offline_arguments(parser: argparse.ArgumentParser, default: Workload) -> None:
    parser.add_argument("--model", help="folder of the checkpoint (default: the built-in model)")
    parser.add_argument("--dtype", default="auto", help="element type (default: auto)")
    parser.add_argument("--quantization", default="auto", help="int8 converts the weights (default: auto)")
    parser.add_argument("--kv-cache-dtype", default="auto", help="int8 keeps keys and values in 8 bits (default: auto)")
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


def _add_kernel_arguments(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "kernels",
        help="compiled kernels beside PyTorch, or as share of the machine's limits",
        description=_KERNELS_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--baseline", type=Path, help="folder with another build of the libraries, to compare with")
    parser.add_argument("--isa", help="instruction set (default: the best of this CPU)")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16", help="element type")
    parser.add_argument("--threads", type=int, default=usable_cores(), help="CPU threads (default: physical cores)")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: CPU time of the calling thread")
    parser.add_argument("--seconds", type=float, default=0.5, help="time per measurement (default: 0.5)")
    parser.add_argument("--only", default="", help="run only measurements whose name contains this")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random numbers (default: 0)")
    parser.add_argument("--roofline", action="store_true", help="report shares of the machine's limits")
    parser.add_argument("--adapters", action="store_true", help="what adapters cost, for --roofline")
    parser.add_argument(
        "--quantization",
        choices=("none", "int8"),
        default="none",
        help="of the weights, for --roofline (default: none)",
    )
    parser.add_argument(
        "--context", type=int, default=256, help="tokens before each decode step, for --roofline (default: 256)"
    )


def _bench_engine(arguments: argparse.Namespace) -> int:
    workload = Workload.parse(arguments.workload)
    if arguments.repeats < 1:
        raise ConfigError("--repeats must be at least 1.")
    from vllm_mxext.bench.offline import measure_offline  # noqa: PLC0415 - after the arguments are checked
    from vllm_mxext.entrypoints.llm import LLM  # noqa: PLC0415 - imports torch

    engine_args = {name: getattr(arguments, name) for name in _ENGINE_ARGS}
    # A shared beginning is only shared with caching; new prompts each time keep it from finding the last time's blocks.
    with LLM(enable_prefix_caching=workload.shared_len > 0, **engine_args) as llm:
        seeds = range(arguments.seed, arguments.seed + arguments.repeats + 1)
        _, *times = [measure_offline(llm, workload, llm.model.vocab_size, seed) for seed in seeds]
    seconds = summarize(times)
    tokens = workload.num_requests * workload.output_len
    rows = [(str(workload), seconds.median, seconds.minimum, seconds.maximum, tokens / seconds.median)]
    print(format_table(("workload", "seconds", "min", "max", "output tokens/s"), rows))
    config = {**engine_args, "workload": str(workload), "repeats": arguments.repeats, "seed": arguments.seed}
    results = {"seconds": seconds.as_dict(), "output_tokens_per_s": round(tokens / seconds.median, 3)}
    print(json_line(arguments.benchmark, config, results))
    return 0


def _bench_startup(arguments: argparse.Namespace) -> int:
    if arguments.repeats < 1:
        raise ConfigError("--repeats must be at least 1.")
    from vllm_mxext.bench.startup import measure_startup  # noqa: PLC0415 - other benchmarks do not need it

    flags = [flag for flag in arguments.flags if flag != "--"]
    with tempfile.TemporaryDirectory() as folder:
        runs = [measure_startup(flags, Path(folder) / "server.log") for _ in range(arguments.repeats)]
    figures = {name: summarize([run[name] for run in runs]) for name in runs[0]}
    rows = [(name, figure.median, figure.minimum, figure.maximum) for name, figure in figures.items()]
    print(format_table(("figure", "median", "min", "max"), rows))
    config = {"flags": flags, "repeats": arguments.repeats}
    print(json_line("startup", config, {name: figure.as_dict() for name, figure in figures.items()}))
    return 0
