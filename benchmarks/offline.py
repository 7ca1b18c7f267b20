"""Generates offline with our engine and with its peers, interleaved, on a random checkpoint.

    python benchmarks/offline.py
    python benchmarks/peers/make_environments.py openvino vllm llamacpp llamacpp-avx2
    python benchmarks/offline.py --engines vllm_mxext-int8 openvino-int8 llamacpp-q8_0 --repeats 5

Every engine runs in a process of its own and is stopped while another one is measured. Without `--engines`, all take
part whose environments and models exist. Greedy, end-of-text ignored; output tokens count over the whole time, prompt
processing included. The workload with one output token measures the prompt. The last line is one JSON object;
`readme_table.py` makes the table of the README from it.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from engine_pool import EnginePool
from engines import DEFAULT_ENGINES, ENGINES, Comparison, Room
from make_checkpoint import DEFAULT_FOLDER, make_checkpoint
from peers.make_environments import DEFAULT_ROOT
from peers.process import Measurement

from vllm_mxext.bench.bandwidth import read_bandwidth
from vllm_mxext.bench.metrics import summarize
from vllm_mxext.bench.report import format_table, json_line
from vllm_mxext.bench.workload import Workload
from vllm_mxext.config.machine import usable_cores

WORKLOADS = (
    "1x(32->64)",
    "8x(128->64)",
    "32x(256->64)",
    "1x(1024->1)",
    "1x(4096->128)",
    "16x(2048->128)",
    "32x(1500+50->64)",
)

Runs = dict[tuple[Workload, str], list[Measurement]]


def room_for(workloads: list[Workload]) -> Room:
    """Returns what every engine must hold; the lengths are rounded up generously to blocks of any engine."""
    margin = 128
    longest = max(workload.input_len + workload.output_len for workload in workloads) + margin
    positions = max(workload.num_positions + workload.num_requests * margin for workload in workloads)
    return Room(max(positions, 2 * longest), longest, max(workload.num_requests for workload in workloads))


def figures(workload: Workload, runs: list[Measurement], reference: list[Measurement]) -> dict[str, Any]:
    """Returns times and rates of one engine on one workload.

    Args:
        workload: what was generated.
        runs: the engine's.
        reference: the first engine's; `equal_first_tokens` is the share of requests that begin as they do there.
    """
    summary = summarize([run.seconds for run in runs])
    pairs = [pair for run, other in zip(runs, reference, strict=True) for pair in _first_tokens(run, other)]
    return {
        "seconds": summary.as_dict(),
        "output_tokens_per_s": round(workload.num_requests * workload.output_len / summary.median, 2),
        "prompt_tokens_per_s": round(workload.num_requests * workload.input_len / summary.median, 2),
        "equal_first_tokens": round(sum(left == right for left, right in pairs) / len(pairs), 3),
    }


def _first_tokens(run: Measurement, other: Measurement) -> list[tuple[int, int]]:
    return list(zip(run.first_tokens, other.first_tokens, strict=True))


def _row(results: dict[str, Any], workload: str, engine: str) -> tuple[object, ...]:
    entry, seconds = results[workload][engine], results[workload][engine]["seconds"]
    rates = (entry["output_tokens_per_s"], entry["prompt_tokens_per_s"])
    times = (seconds["median"], seconds["minimum"], seconds["maximum"])
    return (workload, engine, *rates, *times, entry["equal_first_tokens"], results[workload]["read_gb_per_s"])


def parse_arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=DEFAULT_FOLDER, help="checkpoint; made if it is the default")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, metavar="NAME", help=", ".join(ENGINES))
    parser.add_argument("--peers", type=Path, default=DEFAULT_ROOT, help=f"environments (default: {DEFAULT_ROOT})")
    parser.add_argument("--workloads", nargs="+", type=Workload.parse, default=list(map(Workload.parse, WORKLOADS)))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--num-threads", type=int, default=usable_cores())
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def chosen_engines(comparison: Comparison, asked: list[str] | None) -> list[str]:
    """Returns the engines that take part: those asked for, or those that exist; says how to make the others.

    Raises:
        SystemExit: one that was asked for does not exist.
    """
    chosen = []
    for name in asked or DEFAULT_ENGINES:
        command = comparison.missing(name)
        if command is None:
            chosen.append(name)
        elif asked:
            raise SystemExit(f"There is no {name} for this checkpoint; make it first: {command}")
        else:
            print(f"without {name}; this makes it: {command}")
    return chosen


def run_all(pool: EnginePool, names: list[str], arguments: argparse.Namespace) -> tuple[Runs, dict[Workload, float]]:
    """Measures everything, engine after engine within each repeat; returns runs, and read bandwidths in bytes/s."""
    runs: Runs = {}
    bandwidth: dict[Workload, list[float]] = {}
    for workload in arguments.workloads:
        for repeat in range(arguments.repeats):
            bandwidth.setdefault(workload, []).append(read_bandwidth(arguments.num_threads))
            for name in names:
                run = pool.measure(name, workload, arguments.seed + repeat)
                runs.setdefault((workload, name), []).append(run)
                print(f"  {repeat + 1}/{arguments.repeats} {workload} {name}: {run.seconds:.2f} s", flush=True)
    return runs, {workload: summarize(values).median for workload, values in bandwidth.items()}


def main() -> None:
    """Reads the arguments, measures and reports."""
    arguments = parse_arguments()
    if arguments.model == DEFAULT_FOLDER:
        make_checkpoint(arguments.model)
    checkpoint, peers = arguments.model.resolve(), arguments.peers.absolute()
    comparison = Comparison(checkpoint, peers, arguments.num_threads, room_for(arguments.workloads))
    names = chosen_engines(comparison, arguments.engines)
    with EnginePool(comparison) as pool:
        runs, bandwidth = run_all(pool, names, arguments)
        engines = pool.figures()
    results = {
        str(workload): {
            "read_gb_per_s": round(bandwidth[workload] / 1e9, 1),
            **{name: figures(workload, runs[workload, name], runs[workload, names[0]]) for name in names},
        }
        for workload in arguments.workloads
    }
    header = ("workload", "engine", "out tok/s", "prompt tok/s", "seconds", "min", "max", "equal first", "read GB/s")
    print(format_table(header, [_row(results, workload, name) for workload in results for name in names]))
    memory = [(name, entry["load_s"], *(entry[key] / 1e9 for key in MEMORY)) for name, entry in engines.items()]
    print(format_table(("engine", "load s", "peak GB at load", "peak GB"), memory))
    config = {
        "checkpoint": arguments.model.name,
        "num_threads": arguments.num_threads,
        "repeats": arguments.repeats,
        "seed": arguments.seed,
        "engines": engines,
    }
    print(json_line("offline", config, results))


MEMORY = ("load_peak_bytes", "peak_bytes")

if __name__ == "__main__":
    main()
