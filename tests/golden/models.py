"""Tiny random checkpoints of every family and variant, made with transformers from a seed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

_CLASSES: dict[str, tuple[type[Any], type[Any]]] = {
    "Llama": (LlamaConfig, LlamaForCausalLM),
    "Mistral": (MistralConfig, MistralForCausalLM),
    "Qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "Qwen3": (Qwen3Config, Qwen3ForCausalLM),
}
_SHAPE = {
    "vocab_size": 301,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}


@dataclass(frozen=True)
class TinyModel:
    """One random model.

    Attributes:
        name: unique.
        family: `Llama`, `Mistral`, `Qwen2` or `Qwen3`.
        values: what its configuration changes.
        seed: of its weights.
        shard_size: largest file of its checkpoint.
    """

    name: str
    family: str
    values: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    shard_size: str = "1GB"

    def save(self, folder: Path, dtype: torch.dtype) -> None:
        """Writes the checkpoint."""
        model = self._make().to(dtype)
        model.save_pretrained(folder, max_shard_size=self.shard_size)

    def _make(self) -> PreTrainedModel:
        config_class, model_class = _CLASSES[self.family]
        config = config_class(**{**_SHAPE, "tie_word_embeddings": False, **self.values})
        model: PreTrainedModel = model_class(config)
        generator = torch.Generator().manual_seed(self.seed)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                if name.endswith("norm.weight"):
                    parameter.copy_(1 + 0.2 * noise)
                elif name.endswith("bias"):
                    parameter.copy_(0.2 * noise)
                elif "embed_tokens" in name:
                    parameter.copy_(noise)
                else:  # keeps the scale of activations, and makes attention and logits far from uniform
                    parameter.copy_(1.5 * noise / parameter.shape[1] ** 0.5)
        return model.eval()


def rope(rope_type: str, **values: Any) -> dict[str, Any]:
    """Configuration values of a rope variant."""
    return {"rope_parameters": {"rope_type": rope_type, "rope_theta": 10_000.0, **values}}


_YARN = {"factor": 4.0, "original_max_position_embeddings": 64}
_LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}

MODELS = (
    TinyModel("llama", "Llama"),
    TinyModel("llama_mha_tied", "Llama", {"num_key_value_heads": 4, "tie_word_embeddings": True}),
    TinyModel("llama_biases_mqa", "Llama", {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 1}),
    TinyModel("llama_sharded", "Llama", {"head_dim": 32, "vocab_size": 320}, shard_size="60KB"),
    TinyModel("llama_linear", "Llama", rope("linear", factor=3.0)),
    TinyModel("llama_dynamic", "Llama", rope("dynamic", factor=2.0)),
    TinyModel(
        "llama_llama3",
        "Llama",
        {"head_dim": 64, "hidden_size": 96, "num_hidden_layers": 2, **rope("llama3", **_LLAMA3)},
    ),
    TinyModel("llama_yarn", "Llama", rope("yarn", **_YARN)),
    TinyModel("llama_yarn_mscale", "Llama", rope("yarn", **_YARN, mscale=1.0, mscale_all_dim=0.7, truncate=False)),
    TinyModel("llama_yarn_factor", "Llama", rope("yarn", **_YARN, attention_factor=1.2, beta_fast=16.0, beta_slow=2.0)),
    TinyModel("mistral_window", "Mistral", {"sliding_window": 11}),
    TinyModel("mistral_full", "Mistral", {"sliding_window": None, "head_dim": 32}),
    TinyModel("qwen2", "Qwen2", {"tie_word_embeddings": True}),
    TinyModel(
        "qwen2_upper_windows", "Qwen2", {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1}
    ),
    TinyModel("qwen2_yarn", "Qwen2", rope("yarn", **_YARN)),
    TinyModel("qwen3", "Qwen3", {"head_dim": 32, "tie_word_embeddings": True}),
    TinyModel(
        "qwen3_mixed_windows",
        "Qwen3",
        {
            "head_dim": 16,
            "attention_bias": True,
            "use_sliding_window": True,
            "sliding_window": 7,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
)
"""Every model of the golden tests."""

FAMILY_MODELS = tuple(model for model in MODELS if model.name in ("llama", "mistral_window", "qwen2", "qwen3"))
"""One model per family."""
