"""Writes a checkpoint with the shape of a Qwen3 model, seeded random weights and a tokenizer of one word per token.

    python benchmarks/make_checkpoint.py FOLDER --shape qwen3-4b
    python benchmarks/make_checkpoint.py DRAFT --layers 2
    python benchmarks/make_checkpoint.py TARGET --faint-from 2

The last two are a draft model and a model that it guesses well: both begin with the same layers, and what the others
of the larger one add is faint.

Benchmarks need real shapes, not meaning. Token i is the word `w<i>`, so prompts of an exact length can be written as
text too. The same seed writes the same bytes (1.2 GB for 0.6B, 8 GB for 4B; one shard in memory at a time).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm_mxext.bench.workload import Workload

if TYPE_CHECKING:
    import torch

CHECKPOINTS = Path(".cache/benchmarks")
VOCAB_SIZE = 151_936
HEAD_DIM = 128
_SHARD_BYTES = 2 * 2**30

FAINT = 0.01
"""Scale of what faint layers add."""

CHAT_TEMPLATE = "{% for message in messages %}{{ message.content }} {% endfor %}"

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class ModelShape:
    """Dimensions in which the Qwen3 models with tied embeddings differ."""

    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int

    def config(self) -> dict[str, Any]:
        """Returns the checkpoint's `config.json`."""
        return {
            "architectures": ["Qwen3ForCausalLM"],
            "model_type": "qwen3",
            "vocab_size": VOCAB_SIZE,
            "hidden_size": self.hidden,
            "intermediate_size": self.inner,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": HEAD_DIM,
            "max_position_embeddings": 40_960,
            "rms_norm_eps": 1e-6,
            "rope_theta": 1_000_000,
            "hidden_act": "silu",
            "attention_bias": False,
            "tie_word_embeddings": True,
            "torch_dtype": "bfloat16",
            "eos_token_id": 151_645,
        }

    def parameter_shapes(self) -> Shapes:
        """Returns the tensors of the checkpoint, in the names of transformers."""
        shapes: Shapes = {"model.embed_tokens.weight": (VOCAB_SIZE, self.hidden), "model.norm.weight": (self.hidden,)}
        for layer in range(self.layers):
            prefix = f"model.layers.{layer}"
            shapes |= {
                f"{prefix}.input_layernorm.weight": (self.hidden,),
                f"{prefix}.post_attention_layernorm.weight": (self.hidden,),
                f"{prefix}.self_attn.q_proj.weight": (self.heads * HEAD_DIM, self.hidden),
                f"{prefix}.self_attn.k_proj.weight": (self.kv_heads * HEAD_DIM, self.hidden),
                f"{prefix}.self_attn.v_proj.weight": (self.kv_heads * HEAD_DIM, self.hidden),
                f"{prefix}.self_attn.o_proj.weight": (self.hidden, self.heads * HEAD_DIM),
                f"{prefix}.self_attn.q_norm.weight": (HEAD_DIM,),
                f"{prefix}.self_attn.k_norm.weight": (HEAD_DIM,),
                f"{prefix}.mlp.gate_proj.weight": (self.inner, self.hidden),
                f"{prefix}.mlp.up_proj.weight": (self.inner, self.hidden),
                f"{prefix}.mlp.down_proj.weight": (self.hidden, self.inner),
            }
        return shapes


SHAPES = {
    "qwen3-0.6b": ModelShape(hidden=1024, inner=3072, layers=28, heads=16, kv_heads=8),
    "qwen3-4b": ModelShape(hidden=2560, inner=9728, layers=36, heads=32, kv_heads=8),
    "tiny-28-layers": ModelShape(hidden=64, inner=64, layers=28, heads=2, kv_heads=1),  # of overhead.py
    "wide-4-layers": ModelShape(hidden=128, inner=32_768, layers=4, heads=1, kv_heads=1),  # of adapter_memory.py
}
DEFAULT_SHAPE = "qwen3-0.6b"


def default_folder(shape: str) -> Path:
    """Returns where the checkpoint of a shape goes."""
    return CHECKPOINTS / f"{shape}-random"


DEFAULT_FOLDER = default_folder(DEFAULT_SHAPE)


def make_checkpoint(
    folder: Path,
    seed: int = 0,
    shape: str = DEFAULT_SHAPE,
    *,
    num_layers: int | None = None,
    faint_from: int | None = None,
) -> None:
    """Writes config, tokenizer and weights; a folder that is complete is left as it is.

    Args:
        folder: made if it is missing.
        seed: of the weights.
        shape: a name of `SHAPES`.
        num_layers: as many of its layers, from the first on; None for all.
        faint_from: from this layer on, layers add little.
    """
    dimensions = SHAPES[shape] if num_layers is None else replace(SHAPES[shape], layers=num_layers)
    config_file = folder / "config.json"
    if config_file.is_file():
        return
    import torch  # noqa: PLC0415 - heavy, and not needed for --help
    from safetensors.torch import save_file  # noqa: PLC0415 - the same

    folder.mkdir(parents=True, exist_ok=True)
    write_tokenizer(folder)
    generator = torch.Generator().manual_seed(seed)
    shards = list(_shards(dimensions.parameter_shapes()))
    names = [f"model-{number:05}-of-{len(shards):05}.safetensors" for number in range(1, len(shards) + 1)]
    if len(shards) == 1:
        names = ["model.safetensors"]
    else:
        weight_map = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
        index = {"metadata": {}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    for name, shard in zip(names, shards, strict=True):
        tensors = {key: _random_tensor(size, generator) for key, size in shard.items()}
        for key in tensors:
            if faint_from is not None and _is_output_of_layer(key, faint_from):
                tensors[key] *= FAINT
        save_file(tensors, folder / name, metadata={"format": "pt"})
    config_file.write_text(json.dumps(dimensions.config(), indent=2))  # the last file: now it is complete


def _shards(shapes: Shapes) -> Iterator[Shapes]:
    """Splits the tensors, in their order, into files of about 2 GiB."""
    shard: Shapes = {}
    num_bytes = 0
    for name, shape in shapes.items():
        shard[name] = shape
        num_bytes += 2 * shape[0] * (shape[1] if len(shape) == 2 else 1)
        if num_bytes >= _SHARD_BYTES:
            yield shard
            shard, num_bytes = {}, 0
    if shard:
        yield shard


def _is_output_of_layer(key: str, first: int) -> bool:
    """Whether a parameter is the last one of attention or MLP in one of the layers from `first` on."""
    return key.endswith(("o_proj.weight", "down_proj.weight")) and int(key.split(".")[2]) >= first


def _random_tensor(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Ones for a norm; for a matrix, normal numbers with standard deviation 0.02."""
    import torch  # noqa: PLC0415 - heavy, and not needed for --help

    if len(shape) == 1:
        return torch.ones(shape, dtype=torch.bfloat16)
    return torch.empty(shape).normal_(std=0.02, generator=generator).to(torch.bfloat16)


def prompts_in_words(workload: Workload, seed: int) -> list[str]:
    """Returns prompts of words that are one token each for the checkpoint's tokenizer."""
    return [" ".join(f"w{token}" for token in prompt) for prompt in workload.prompts(range(VOCAB_SIZE), seed)]


def write_tokenizer(folder: Path) -> None:
    """Writes a tokenizer of one word per token, and its settings."""
    vocab = {f"w{index}": index for index in range(VOCAB_SIZE)}
    tokenizer: dict[str, Any] = {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "w0"},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": CHAT_TEMPLATE, "eos_token": "w151645"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def main() -> None:
    """Reads the arguments and writes the checkpoint."""
    parser = argparse.ArgumentParser(description="Write a random checkpoint with the shape of a Qwen3 model.")
    parser.add_argument("folder", nargs="?", type=Path, help=f"default: {CHECKPOINTS}/SHAPE-random")
    parser.add_argument("--shape", choices=list(SHAPES), default=DEFAULT_SHAPE)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--layers", type=int, help="only so many layers of the shape, the same as in the whole model")
    parser.add_argument("--faint-from", type=int, metavar="LAYER", help="layers from this one on add little")
    arguments = parser.parse_args()
    folder = arguments.folder or default_folder(arguments.shape)
    make_checkpoint(
        folder, arguments.seed, arguments.shape, num_layers=arguments.layers, faint_from=arguments.faint_from
    )
    print(folder)


if __name__ == "__main__":
    main()
