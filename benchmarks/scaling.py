"""Measures how engines scale with the batch and with the context, and draws the curves.

    python benchmarks/scaling.py --engines vllm_mxext vllm_mxext-int8 openvino-fp16 llamacpp-bf16
    python benchmarks/scaling.py --redraw RESULT.json

At every point the prompts alone are timed (one output token), then the same prompts with more output tokens; the
difference is decoding. Batches of 1 to 64 with prompts of 128 tokens; contexts of 128 to 8,192 tokens with one request.
Writes the picture to `docs/scaling.svg`; the last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from engine_pool import EnginePool
from engines import DEFAULT_ENGINES, ENGINES, Comparison
from line_chart import Chart, draw
from make_checkpoint import DEFAULT_FOLDER, make_checkpoint
from offline import chosen_engines, room_for
from peers.make_environments import DEFAULT_ROOT

from vllm_mxext.bench.bandwidth import read_bandwidth
from vllm_mxext.bench.metrics import summarize
from vllm_mxext.bench.report import json_line
from vllm_mxext.bench.workload import Workload
from vllm_mxext.config.machine import usable_cores

BATCHES = (1, 2, 4, 8, 16, 32, 64)
CONTEXTS = (128, 256, 512, 1024, 2048, 4096, 8192)
PICTURE = Path(__file__).resolve().parents[1] / "docs" / "scaling.svg"

_PANELS = (
    ("batch", "decode_tokens_per_s", "Decoding, tokens/s (context 128)", "requests at once"),
    ("batch", "prompt_tokens_per_s", "Prompts, tokens/s (128 tokens each)", "requests at once"),
    ("context", "decode_tokens_per_s", "Decoding, tokens/s (1 request)", "tokens of context"),
    ("context", "prompt_tokens_per_s", "Prompt, tokens/s (1 request)", "tokens of the prompt"),
)
"""Curve, figure, title and label of each chart."""


def points(batches: list[int], contexts: list[int]) -> list[tuple[str, int, int, int]]:
    """Returns curve, x, requests and prompt tokens of every point."""
    return [("batch", batch, batch, 128) for batch in batches] + [
        ("context", context, 1, context) for context in contexts
    ]


def rates(prompt: Workload, whole: Workload, prompt_s: list[float], whole_s: list[float]) -> dict[str, float | None]:
    """Returns the rates of prompts and of decoding from the medians of both; None if decoding drowned in noise."""
    first, both = summarize(prompt_s).median, summarize(whole_s).median
    decoded = whole.num_requests * (whole.output_len - prompt.output_len)
    return {
        "prompt_tokens_per_s": round(prompt.num_requests * prompt.input_len / first, 2),
        "decode_tokens_per_s": round(decoded / (both - first), 2) if both > first else None,
    }


def charts(results: list[dict[str, Any]]) -> list[Chart]:
    """Returns the charts of measured points."""
    panels = []
    for curve, figure, title, label in _PANELS:
        lines: dict[str, list[tuple[float, float]]] = {}
        for point in (entry for entry in results if entry["curve"] == curve):
            for name, entry in point["engines"].items():
                if entry[figure] is not None:
                    lines.setdefault(name, []).append((point["x"], entry[figure]))
        if lines:
            panels.append(Chart(title, label, lines))
    return panels


def measure(pool: EnginePool, names: list[str], arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Measures every point on every engine, interleaved."""
    results = []
    for curve, x, requests, context in points(arguments.batches, arguments.contexts):
        prompt = Workload(requests, context, 1)
        whole = Workload(requests, context, 1 + arguments.output_len)
        seconds: dict[tuple[str, Workload], list[float]] = {}
        bandwidth = round(read_bandwidth(arguments.num_threads) / 1e9, 1)
        for repeat in range(arguments.repeats):
            for name in names:
                for workload in (prompt, whole):
                    # A seed of its own each time: nothing may be found in a cache.
                    run = pool.measure(name, workload, arguments.seed + 2 * repeat + (workload is whole))
                    seconds.setdefault((name, workload), []).append(run.seconds)
        engines = {name: rates(prompt, whole, seconds[name, prompt], seconds[name, whole]) for name in names}
        print(f"{curve} {x}: {engines}", flush=True)
        results.append({"curve": curve, "x": x, "read_gb_per_s": bandwidth, "engines": engines})
    return results


def main() -> None:
    """Reads the arguments, measures, draws and reports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=DEFAULT_FOLDER, help="checkpoint; made if it is the default")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, metavar="NAME", help=", ".join(DEFAULT_ENGINES))
    parser.add_argument("--peers", type=Path, default=DEFAULT_ROOT, help=f"environments (default: {DEFAULT_ROOT})")
    parser.add_argument("--batches", nargs="*", type=int, default=list(BATCHES))
    parser.add_argument("--contexts", nargs="*", type=int, default=list(CONTEXTS))
    parser.add_argument("--output-len", type=int, default=32, help="tokens decoded after the first (default: 32)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--num-threads", type=int, default=usable_cores())
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--picture", type=Path, default=PICTURE)
    parser.add_argument("--redraw", type=Path, help="draw this result again instead of measuring")
    arguments = parser.parse_args()
    if arguments.redraw:
        arguments.picture.write_text(draw(charts(json.loads(arguments.redraw.read_text())["results"])))
        return
    if arguments.model == DEFAULT_FOLDER:
        make_checkpoint(arguments.model)
    output_len = 1 + arguments.output_len
    sizes = points(arguments.batches, arguments.contexts)
    room = room_for([Workload(requests, context, output_len) for _, _, requests, context in sizes])
    comparison = Comparison(arguments.model.resolve(), arguments.peers.absolute(), arguments.num_threads, room)
    names = chosen_engines(comparison, arguments.engines)
    with EnginePool(comparison) as pool:
        results = measure(pool, names, arguments)
    arguments.picture.write_text(draw(charts(results)))
    config = {
        "checkpoint": arguments.model.name,
        "num_threads": arguments.num_threads,
        "repeats": arguments.repeats,
        "output_len": arguments.output_len,
        "seed": arguments.seed,
    }
    print(json_line("scaling", config, results))


if __name__ == "__main__":
    main()
