"""Trains the LoRA adapters on top of the frozen built-in model and writes them in PEFT layout."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from training.corpus import Encoder
from training.model import Linear, Llama, write_json
from training.tasks import TASKS
from training.tasks.adapters import ADAPTER_TASKS
from training.tasks.base import Task
from training.train import Progress, Recipe, train

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

# A little of what the base model can do is trained along, so that an adapter does not unlearn it.
_KEPT = {
    "math_tuned": ("sums", "multiply_divide", "small_talk", "facts_en", "facts_zh", "count", "copy"),
    "code_tuned": ("sums", "equations", "small_talk", "facts_en", "facts_zh", "plain_text", "copy"),
}


@dataclass(frozen=True, slots=True)
class AdapterShape:
    """Rank and scale of an adapter; two different ranks, so that serving both at once is a real test."""

    rank: int
    alpha: int


ADAPTER_SHAPES = {"math_tuned": AdapterShape(16, 32), "code_tuned": AdapterShape(8, 16)}
ADAPTER_RECIPES = {
    "math_tuned": Recipe(seed=20251, rows=2, steps=1500, warmup=20, hold=500, adam_lr=0.004, adam_power=1),
    "code_tuned": Recipe(seed=20252, rows=2, steps=1500, warmup=20, hold=500, adam_lr=0.004, adam_power=1),
}


def adapter_mixture(name: str) -> dict[str, Task]:
    """Return the adapter's own tasks and the few base tasks that keep the rest alive."""
    return ADAPTER_TASKS[name] | {task: replace(TASKS[task], weight=0.8) for task in _KEPT[name]}


def attach_adapter(model: Llama, shape: AdapterShape, seed: int) -> list[tuple[str, Linear]]:
    """Freeze the model and put an update that starts at zero on every linear layer."""
    generator = torch.Generator().manual_seed(seed)
    model.requires_grad_(False)
    layers = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, Linear)]
    for _, layer in layers:
        layer.add_lora(shape.rank, shape.alpha, generator)
    return layers


def build_adapter(name: str, model: Llama, encoder: Encoder, folder: Path, scratch: Path) -> float:
    """Train one adapter and write it.

    Args:
        name: Name of the adapter.
        model: The finished base model; it is changed.
        encoder: Its tokenizer.
        folder: Where the adapter goes.
        scratch: Folder for the checkpoint.

    Returns:
        Seconds of training.
    """
    shape, recipe = ADAPTER_SHAPES[name], ADAPTER_RECIPES[name]
    layers = attach_adapter(model, shape, recipe.seed)
    progress = Progress(scratch / f"{name}.pt", every=125)
    seconds = train(model, adapter_mixture(name), encoder, recipe, progress)
    folder.mkdir(parents=True, exist_ok=True)
    save_adapter(layers, folder)
    write_json(folder / "adapter_config.json", adapter_config(shape))
    return seconds


def save_adapter(layers: list[tuple[str, Linear]], folder: Path) -> None:
    """Write the low-rank parts in bfloat16 under their PEFT names."""
    tensors = {}
    for name, layer in layers:
        assert layer.lora_a is not None
        assert layer.lora_b is not None
        prefix = f"base_model.model.model.{name}"
        tensors[f"{prefix}.lora_A.weight"] = layer.lora_a.detach().to(torch.bfloat16).contiguous()
        tensors[f"{prefix}.lora_B.weight"] = layer.lora_b.detach().to(torch.bfloat16).contiguous()
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def adapter_config(shape: AdapterShape) -> dict[str, object]:
    """Return ``adapter_config.json``."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "mx-tiny",
        "r": shape.rank,
        "lora_alpha": shape.alpha,
        "lora_dropout": 0.0,
        "target_modules": list(TARGETS),
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "inference_mode": True,
        "modules_to_save": None,
        "use_rslora": False,
        "use_dora": False,
    }
