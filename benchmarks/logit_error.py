"""Compares the first logits of every engine with those of transformers in float32: what speed costs in precision.

    python benchmarks/logit_error.py --engines vllm_mxext vllm_mxext-int8 llamacpp-q8_0 openvino-int8

The error of a prompt is the norm of the difference over the norm of the reference, both centred (an engine may show log
probabilities instead of logits). The last line is one JSON object.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from engines import ENGINES, Comparison, Room
from make_checkpoint import DEFAULT_FOLDER, make_checkpoint
from offline import chosen_engines
from peers.make_environments import DEFAULT_ROOT

from vllm_mxext.bench.metrics import summarize
from vllm_mxext.bench.report import format_table, json_line
from vllm_mxext.bench.workload import Workload
from vllm_mxext.config.machine import usable_cores

REFERENCE = "transformers-float32"


def first_logits(comparison: Comparison, name: str, prompts: list[list[int]]) -> list[np.ndarray] | None:
    """Returns an engine's centred logits after each prompt; None if it does not show them."""
    worker = comparison.start(name, enable_prefix_caching=False)
    try:
        logits = [worker.logits(prompt) for prompt in prompts]
    finally:
        worker.close()
    shown = [values for values in logits if values is not None]
    return shown if len(shown) == len(prompts) else None


def main() -> None:
    """Reads the arguments, asks every engine and reports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=DEFAULT_FOLDER, help="checkpoint; made if it is the default")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, metavar="NAME", help=", ".join(ENGINES))
    parser.add_argument("--peers", type=Path, default=DEFAULT_ROOT, help=f"environments (default: {DEFAULT_ROOT})")
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--input-len", type=int, default=64)
    parser.add_argument("--num-threads", type=int, default=usable_cores())
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.model == DEFAULT_FOLDER:
        make_checkpoint(arguments.model)
    room = Room(4096, arguments.input_len + 128, 2)
    comparison = Comparison(arguments.model.resolve(), arguments.peers.absolute(), arguments.num_threads, room)
    workload = Workload(arguments.prompts, arguments.input_len, 1)
    prompts = workload.prompts(range(comparison.vocab_size), arguments.seed)
    reference = first_logits(comparison, REFERENCE, prompts)
    assert reference is not None
    results = {}
    for name in chosen_engines(comparison, arguments.engines):
        logits = first_logits(comparison, name, prompts)
        if logits is None:
            print(f"{name} does not show its logits")
            continue
        errors = [
            float(np.linalg.norm(values - expected) / np.linalg.norm(expected))
            for values, expected in zip(logits, reference, strict=True)
        ]
        results[name] = summarize(errors).as_dict(5)
        print(f"{name}: {results[name]['median']:.4f}", flush=True)
    rows = [(name, entry["median"], entry["minimum"], entry["maximum"]) for name, entry in results.items()]
    print(format_table(("engine", "error", "min", "max"), rows))
    config = {"checkpoint": arguments.model.name, "prompts": str(workload), "seed": arguments.seed}
    print(json_line("logit_error", config, results))


if __name__ == "__main__":
    main()
