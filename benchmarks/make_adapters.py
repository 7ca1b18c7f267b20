"""Writes random adapters of a checkpoint in PEFT's layout: seeded, faint, on all linear layers.

    python benchmarks/make_adapters.py CHECKPOINT FOLDER --count 100 --rank 16

Each lies in a folder of its own, `a000`, `a001`, and so on; the same seed writes the same bytes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vllm_mxext.config.model_spec import ModelSpec, read_model_spec

if TYPE_CHECKING:
    import torch

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_FAINT = 0.02


def make_adapters(checkpoint: Path, folder: Path, ranks: Sequence[int]) -> list[Path]:
    """Writes one adapter per rank; folders that are there already stay as they are. Returns them."""
    spec = read_model_spec(checkpoint)
    adapters = []
    for index, rank in enumerate(ranks):
        adapter = folder / f"a{index:03d}"
        if not (adapter / "adapter_config.json").is_file():
            _write(spec, adapter, rank, index)
        adapters.append(adapter)
    return adapters


def _write(spec: ModelSpec, folder: Path, rank: int, seed: int) -> None:
    import torch  # noqa: PLC0415 - the adapters may be there already
    from safetensors.torch import save_file  # noqa: PLC0415

    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    for layer in range(spec.num_layers):
        for module, (out_features, in_features) in _shapes(spec).items():
            group = "mlp" if module in ("gate_proj", "up_proj", "down_proj") else "self_attn"
            prefix = f"base_model.model.model.layers.{layer}.{group}.{module}"
            a = torch.randn(rank, in_features, generator=generator) / in_features**0.5
            b = torch.randn(out_features, rank, generator=generator) * _FAINT
            tensors[f"{prefix}.lora_A.weight"] = a.bfloat16()
            tensors[f"{prefix}.lora_B.weight"] = b.bfloat16()
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "random",
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "target_modules": list(TARGETS),
        "bias": "none",
        "modules_to_save": None,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))


def _shapes(spec: ModelSpec) -> dict[str, tuple[int, int]]:
    q_width, kv_width = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    hidden, inner = spec.hidden_size, spec.intermediate_size
    shapes = ((q_width, hidden), (kv_width, hidden), (kv_width, hidden), (hidden, q_width))
    return dict(zip(TARGETS, (*shapes, (inner, hidden), (inner, hidden), (hidden, inner)), strict=True))


def main() -> None:
    """Reads the arguments and writes."""
    parser = argparse.ArgumentParser(description="Write random adapters.")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--rank", type=int, default=16)
    arguments = parser.parse_args()
    make_adapters(arguments.checkpoint, arguments.folder, [arguments.rank] * arguments.count)


if __name__ == "__main__":
    main()
