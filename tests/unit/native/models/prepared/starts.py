"""Starts of a tiny model, for the tests of prepared files."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from vllm_mxext.config.engine import EngineConfig, ModelConfig, PreparedConfig
from vllm_mxext.config.model_spec import parse_model_spec
from vllm_mxext.native.kernels.compiled import CompiledKernels
from vllm_mxext.native.kernels.library import best_library
from vllm_mxext.native.models.prepared.parts import PreparedParts
from vllm_mxext.native.models.prepared.store import PreparedWeights, find_prepared_weights
from vllm_mxext.native.models.registry import checkpoint_layout
from vllm_mxext.native.models.weights import expected_tensors, load_weights

CPU = torch.device("cpu")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
LIMIT = 2**30
SPEC = parse_model_spec(
    {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 70,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "attention_bias": True,
    }
)


def save_checkpoint(folder: Path, seed: int = 0) -> Path:
    folder.mkdir(exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    shapes = expected_tensors(SPEC, checkpoint_layout(SPEC.architecture))
    file = folder / "model.safetensors"
    save_file({name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}, file)
    return file


def make_kernels(model: ModelConfig) -> CompiledKernels:
    library = best_library()
    assert library is not None
    return CompiledKernels(library, DTYPES[model.dtype])


def prepared_weights(model: ModelConfig, cache: Path, limit: int = LIMIT) -> PreparedWeights:
    found = find_prepared_weights(EngineConfig(model, prepared=PreparedConfig(cache, limit)), make_kernels(model))
    assert found is not None
    return found


def start(model: ModelConfig, cache: Path, limit: int = LIMIT) -> tuple[bool, torch.Tensor]:
    """Loads a model as a start does; returns whether a prepared file was used, and an output of the model's head."""
    prepared = prepared_weights(model, cache, limit)
    parts = prepared.open()
    dtype = DTYPES[model.dtype]
    weights = load_weights(model, make_kernels(model), dtype, CPU, lambda _share: None, parts)
    writer = prepared.save()
    if writer is not None:
        writer.join()
    out = torch.empty(3, SPEC.vocab_size)
    weights.head(torch.linspace(-1, 1, 3 * SPEC.hidden_size).view(3, -1).to(dtype), out)
    return isinstance(parts, PreparedParts), out


def files(cache: Path) -> list[Path]:
    return sorted(cache.iterdir()) if cache.exists() else []


def only_file(cache: Path) -> Path:
    (file,) = files(cache)
    return file
