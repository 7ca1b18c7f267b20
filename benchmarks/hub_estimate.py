"""Compares the hub's memory estimate of profiles for the native engine with what whole servers hold.

    python benchmarks/hub_estimate.py
    python benchmarks/hub_estimate.py --only qwen3-0.6b

Each row is a server with random weights (nothing is read from files), whose KV cache is then filled by prompts. What it
holds is the resident memory of all its processes. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from make_checkpoint import SHAPES, ModelShape, write_tokenizer

from vllm_mxext.bench.report import format_table, json_line
from vllm_mxext.bench.server_process import OUR_SERVER, ServerProcess
from vllm_mxext.hub.hardware_inspect import inspect_hardware
from vllm_mxext.hub.judgement import Estimate
from vllm_mxext.hub.manifest.model import ModelEntry, Profile
from vllm_mxext.hub.states import judge

MIB = 2**20
PROMPT_TOKENS = 500
_NUM_SEQS = 128
"""As many as run at once by default: each has a row of logits, and rows take no memory before they are used."""


@dataclass(frozen=True)
class Case:
    """One model and its settings."""

    name: str
    shape: ModelShape
    flags: dict[str, Any] = field(default_factory=dict)


SMALL = ModelShape(hidden=64, inner=128, layers=2, heads=2, kv_heads=1)
MIDDLE = ModelShape(hidden=768, inner=2048, layers=12, heads=8, kv_heads=4)
LIMITS = {"max-model-len": 2048, "kv-cache-memory-bytes": "256MiB"}
CASES = (
    Case("small", SMALL, {"max-model-len": 2048, "kv-cache-memory-bytes": "16MiB"}),
    Case("middle", MIDDLE, LIMITS),
    Case("middle, int8", MIDDLE, {**LIMITS, "quantization": "int8"}),
    Case("middle, float32", MIDDLE, {**LIMITS, "dtype": "float32"}),
    Case("middle, int8 KV", MIDDLE, {**LIMITS, "kv-cache-dtype": "int8"}),
    Case("qwen3-0.6b", SHAPES["qwen3-0.6b"], LIMITS),
    Case("qwen3-0.6b, int8", SHAPES["qwen3-0.6b"], {**LIMITS, "quantization": "int8"}),
)  # fmt: skip


def estimate(case: Case) -> Estimate:
    """Returns what the hub expects of the case on this machine."""
    entry = ModelEntry(case.name, config=case.shape.config())
    judgement = judge(entry, Profile("measured", engine_args=case.flags), inspect_hardware())
    if judgement.estimate is None:
        raise RuntimeError(judgement.reasons[0])
    return judgement.estimate


def measure(case: Case, folder: Path, num_cached_tokens: int) -> int:
    """Starts a server for the case, fills its KV cache and returns the bytes that it then holds.

    Args:
        case: what to serve.
        folder: for the model's files.
        num_cached_tokens: tokens that the KV cache holds.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(case.shape.config()))
    write_tokenizer(folder)
    flags = [word for name, value in case.flags.items() for word in (f"--{name}", str(value))]
    command = [*OUR_SERVER, "--model", str(folder), "--load-format", "dummy", *flags]
    with ServerProcess(command, folder / "server.log") as server:
        server.wait_for()
        with httpx.Client(base_url=server.url, timeout=300.0, trust_env=False) as client:
            for number in range(num_cached_tokens // PROMPT_TOKENS + 1):
                prompt = [1 + number, *range(2, PROMPT_TOKENS + 1)]  # the first token keeps prefixes apart
                body = {"model": str(folder), "prompt": prompt, "max_tokens": 2, "n": 1 if number else _NUM_SEQS}
                client.post("/v1/completions", json=body).raise_for_status()
        return sum(int(process.memory_info().rss) for process in server.family())


def main() -> None:
    """Reads the arguments, measures and reports."""
    parser = argparse.ArgumentParser(description="Memory estimates of the hub against whole servers.")
    parser.add_argument("--only", help="only the case of this name")
    arguments = parser.parse_args()
    rows, results = [], {}
    for case in CASES:
        if arguments.only not in (None, case.name):
            continue
        expected = estimate(case)
        total = expected.device_total + expected.host
        with tempfile.TemporaryDirectory() as folder:
            held = measure(case, Path(folder), round(expected.num_requests * expected.max_model_len))
        results[case.name] = {"estimated": total, "measured": held}
        parts = (expected.weights, expected.kv_cache, expected.activations, expected.overhead + expected.host)
        rows.append((case.name, *(part / MIB for part in (*parts, total, held)), 100 * (total / held - 1)))
    columns = ("model", "weights", "KV cache", "activations", "processes", "estimated", "measured MiB", "off by %")
    print(format_table(columns, rows))
    print(json_line("hub_estimate", {"prompt_tokens": PROMPT_TOKENS}, results))


if __name__ == "__main__":
    main()
