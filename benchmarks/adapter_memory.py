"""Loads and unloads large adapters of a wide random model, and compares resident memory after each."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import httpx
import psutil
from adapter_variants import UPDATES_VARIABLE
from make_adapters import make_adapters
from make_checkpoint import default_folder, make_checkpoint

from vllm_mxext.bench.server_process import OUR_SERVER, ServerProcess

SHAPE = "wide-4-layers"
RANK = 64
NUM_ADAPTERS = 3
FLAGS = ("--max-loras", "2", "--max-lora-rank", str(RANK), "--max-model-len", "512", "--max-num-seqs", "4")
MAX_LEFT = 0.1
"""This share of an adapter may be left after it has gone, besides what the first ones leave."""


def measure_memory(folder: Path, num_cycles: int) -> dict[str, Any]:
    """Loads an adapter, asks it, replaces it by another in place, asks, and unloads, again and again.

    Returns:
        MB of the core process with an adapter loaded and after unloading, the size of an adapter, and `problems`.
    """
    model = default_folder(SHAPE)
    make_checkpoint(model, shape=SHAPE)
    adapters = make_adapters(model, folder / "large", [RANK] * NUM_ADAPTERS)
    environ = {**os.environ, UPDATES_VARIABLE: "1", "VLLM_MXEXT_LOG_LEVEL": "WARNING"}
    with ServerProcess([*OUR_SERVER, "--model", str(model), *FLAGS], folder / "large.log", environ=environ) as server:
        server.wait_for()
        core = max(server.family(), key=lambda process: int(process.memory_info().rss))
        with httpx.Client(base_url=server.url, timeout=300.0, trust_env=False) as client:
            samples = [_cycle(client, core, adapters, number) for number in range(num_cycles)]
    size_mb = max(loaded - left for loaded, left in samples)
    after = [left for _, left in samples[2:]]
    deviation_mb = round(max(after) - min(after), 1)
    problems = []
    if deviation_mb > MAX_LEFT * size_mb:
        problems.append(f"memory without adapters varies by {deviation_mb} MB, beside {size_mb:.0f} MB of an adapter")
    if after[-1] - after[0] > MAX_LEFT * size_mb:
        problems.append(f"memory without adapters went from {after[0]} to {after[-1]} MB")
    return {
        "samples_mb": samples,
        "adapter_files_mb": round(sum(file.stat().st_size for file in adapters[0].iterdir()) / 1e6, 1),
        "adapter_resident_mb": round(size_mb, 1),
        "deviation_mb": deviation_mb,
        "problems": problems,
    }


def _cycle(client: httpx.Client, core: psutil.Process, adapters: list[Path], number: int) -> tuple[float, float]:
    """Returns MB with an adapter and without."""
    for offset in range(2):
        path = adapters[(number + offset) % len(adapters)]
        body = {"lora_name": "large", "lora_path": str(path), "load_inplace": True}
        client.post("/v1/load_lora_adapter", json=body).raise_for_status()
        question = {"model": "large", "prompt": "w1 w2 w3", "max_tokens": 4, "ignore_eos": True}
        client.post("/v1/completions", json=question).raise_for_status()
    loaded = core.memory_info().rss
    client.post("/v1/unload_lora_adapter", json={"lora_name": "large"}).raise_for_status()
    return round(loaded / 1e6, 1), round(core.memory_info().rss / 1e6, 1)
