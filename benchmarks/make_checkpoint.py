"""Writes a checkpoint with the shape of Qwen3-0.6B, seeded random weights and a tokenizer of one word per token.

    python benchmarks/make_checkpoint.py FOLDER

Benchmarks need real shapes, not meaning. Token i is the word `w<i>`, so prompts of an exact length can be written as
text too. The same seed writes the same bytes (1.2 GB).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

DEFAULT_FOLDER = Path(".cache/benchmarks/qwen3-0.6b-random")

VOCAB_SIZE = 151_936
HIDDEN, INNER = 1024, 3072
LAYERS, HEADS, KV_HEADS, HEAD_DIM = 28, 16, 8, 128

CONFIG = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "vocab_size": VOCAB_SIZE,
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
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
CHAT_TEMPLATE = "{% for message in messages %}{{ message.content }} {% endfor %}"


def parameter_shapes() -> dict[str, tuple[int, ...]]:
    """Returns the tensors of the checkpoint, in the names of transformers."""
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (VOCAB_SIZE, HIDDEN),
        "model.norm.weight": (HIDDEN,),
    }
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}"
        shapes |= {
            f"{prefix}.input_layernorm.weight": (HIDDEN,),
            f"{prefix}.post_attention_layernorm.weight": (HIDDEN,),
            f"{prefix}.self_attn.q_proj.weight": (HEADS * HEAD_DIM, HIDDEN),
            f"{prefix}.self_attn.k_proj.weight": (KV_HEADS * HEAD_DIM, HIDDEN),
            f"{prefix}.self_attn.v_proj.weight": (KV_HEADS * HEAD_DIM, HIDDEN),
            f"{prefix}.self_attn.o_proj.weight": (HIDDEN, HEADS * HEAD_DIM),
            f"{prefix}.self_attn.q_norm.weight": (HEAD_DIM,),
            f"{prefix}.self_attn.k_norm.weight": (HEAD_DIM,),
            f"{prefix}.mlp.gate_proj.weight": (INNER, HIDDEN),
            f"{prefix}.mlp.up_proj.weight": (INNER, HIDDEN),
            f"{prefix}.mlp.down_proj.weight": (HIDDEN, INNER),
        }
    return shapes


def make_checkpoint(folder: Path, seed: int = 0) -> None:
    """Writes config, tokenizer and weights; a folder that is complete is left as it is."""
    if (folder / "model.safetensors").is_file():
        return
    import torch  # noqa: PLC0415 - heavy, and not needed for --help
    from safetensors.torch import save_file  # noqa: PLC0415 - the same

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=2))
    _write_tokenizer(folder)
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in parameter_shapes().items():
        if len(shape) == 1:
            tensors[name] = torch.ones(shape, dtype=torch.bfloat16)
        else:
            tensors[name] = torch.empty(shape).normal_(std=0.02, generator=generator).to(torch.bfloat16)
    partial = folder / "model.safetensors.partial"
    save_file(tensors, partial, metadata={"format": "pt"})
    partial.rename(folder / "model.safetensors")


def _write_tokenizer(folder: Path) -> None:
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
    parser = argparse.ArgumentParser(description="Write a random checkpoint with the shape of Qwen3-0.6B.")
    parser.add_argument("folder", nargs="?", type=Path, default=DEFAULT_FOLDER)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    make_checkpoint(arguments.folder, arguments.seed)
    print(arguments.folder)


if __name__ == "__main__":
    main()
