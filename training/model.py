"""Implements the Llama architecture for training on CPU, and its export to the Hugging Face layout."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Sizes of the model; every attention head has ``head_dim`` channels."""

    vocab_size: int = 2048
    hidden_size: int = 256
    intermediate_size: int = 512
    num_layers: int = 5
    num_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 64
    max_positions: int = 2048
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-5


class Linear(nn.Linear):
    """A bias-free linear layer that computes in bfloat16 from float32 weights.

    With ``lora_rank`` it adds a trainable low-rank update, ``y += scale * B(A(x))`` (LoRA, Hu et al. 2021).
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)
        self.lora_a: nn.Parameter | None = None
        self.lora_b: nn.Parameter | None = None
        self.lora_scale = 0.0

    def add_lora(self, rank: int, alpha: int, generator: torch.Generator) -> None:
        """Attach a fresh update that starts at zero and freeze the weight."""
        bound = math.sqrt(3.0 / self.in_features)
        start = (torch.rand(rank, self.in_features, generator=generator) * 2 - 1) * bound
        self.lora_a = nn.Parameter(start)
        self.lora_b = nn.Parameter(torch.zeros(self.out_features, rank))
        self.lora_scale = alpha / rank
        self.weight.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """Multiply ``x: [..., in_features]`` in bfloat16."""
        y = F.linear(x, self.weight.to(x.dtype))
        if self.lora_a is None or self.lora_b is None:
            return y
        low = F.linear(x, self.lora_a.to(x.dtype))
        return y + F.linear(low, self.lora_b.to(x.dtype)) * self.lora_scale


class Norm(nn.Module):
    """RMS norm with a learned scale."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x: [..., size]`` in float32 and return bfloat16."""
        return (F.rms_norm(x, (x.shape[-1],), eps=self.eps) * self.weight).to(torch.bfloat16)


class Attention(nn.Module):
    """Grouped-query attention with rotary positions."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.shape = shape
        size = shape.head_dim
        self.q_proj = Linear(shape.hidden_size, shape.num_heads * size)
        self.k_proj = Linear(shape.hidden_size, shape.num_kv_heads * size)
        self.v_proj = Linear(shape.hidden_size, shape.num_kv_heads * size)
        self.o_proj = Linear(shape.num_heads * size, shape.hidden_size)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        """Attend within ``x: [rows, length, hidden]`` under the additive ``mask: [rows, 1, length, length]``."""
        rows, length, _ = x.shape
        size, groups = self.shape.head_dim, self.shape.num_heads // self.shape.num_kv_heads
        q = self.q_proj(x).view(rows, length, -1, size).transpose(1, 2)
        k = self.k_proj(x).view(rows, length, -1, size).transpose(1, 2)
        v = self.v_proj(x).view(rows, length, -1, size).transpose(1, 2)
        q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
        # Plain products: on CPU the fused attention takes twice their time in bfloat16, most of it going backward.
        grouped = (q * size**-0.5).view(-1, groups * length, size)
        scores = torch.bmm(grouped, k.view(-1, length, size).transpose(1, 2))
        shares = torch.softmax(scores.view(rows, -1, length, length) + mask, -1)
        out = torch.bmm(shares.view(grouped.shape[0], -1, length), v.reshape(-1, length, size))
        result: Tensor = self.o_proj(out.view(rows, -1, length, size).transpose(1, 2).reshape(rows, length, -1))
        return result


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)


class Mlp(nn.Module):
    """The gated feed-forward part."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.gate_proj = Linear(shape.hidden_size, shape.intermediate_size)
        self.up_proj = Linear(shape.hidden_size, shape.intermediate_size)
        self.down_proj = Linear(shape.intermediate_size, shape.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x: [..., hidden]`` to the same shape."""
        result: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return result


class Block(nn.Module):
    """One transformer layer."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.input_layernorm = Norm(shape.hidden_size, shape.rms_norm_eps)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = Norm(shape.hidden_size, shape.rms_norm_eps)
        self.mlp = Mlp(shape)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        """Map the float32 stream ``x: [rows, length, hidden]`` to the same shape."""
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, mask)
        result: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return result


class Llama(nn.Module):
    """The model, with parameter names as in Hugging Face (without the leading ``model.``)."""

    def __init__(self, shape: ModelShape, generator: torch.Generator) -> None:
        super().__init__()
        self.shape = shape
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.layers = nn.ModuleList(Block(shape) for _ in range(shape.num_layers))
        self.norm = Norm(shape.hidden_size, shape.rms_norm_eps)
        half = shape.head_dim // 2
        speeds = shape.rope_theta ** (-torch.arange(half, dtype=torch.float32) / half)
        angles = torch.outer(torch.arange(shape.max_positions, dtype=torch.float32), speeds)
        self.register_buffer("cos", angles.cos().to(torch.bfloat16), persistent=False)
        self.register_buffer("sin", angles.sin().to(torch.bfloat16), persistent=False)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if parameter.ndim == 2:
                    is_output = name.endswith(("o_proj.weight", "down_proj.weight"))
                    std = 0.02 / math.sqrt(2 * shape.num_layers) if is_output else 0.04
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)

    def forward(self, ids: Tensor, mask: Tensor, wanted: Tensor) -> Tensor:
        """Compute the logits after the wanted tokens.

        Args:
            ids: Token ids, ``[rows, length]`` int64.
            mask: Additive attention mask, ``[rows, 1, length, length]`` bfloat16.
            wanted: Flat indices into ``ids`` whose next token is predicted, ``[count]`` int64.

        Returns:
            Logits ``[count, vocab_size]`` float32.
        """
        length = ids.shape[1]
        cos, sin = self.cos[:length], self.sin[:length]  # type: ignore[index]
        x = self.embed_tokens(ids)
        for layer in self.layers:
            x = layer(x, cos, sin, mask)
        x = self.norm(x.view(-1, x.shape[-1])[wanted])
        return F.linear(x, self.embed_tokens.weight.to(x.dtype)).float()


def hf_config(shape: ModelShape, end_ids: list[int], pad_id: int) -> dict[str, Any]:
    """Return ``config.json``."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": shape.max_positions,
        "rope_theta": shape.rope_theta,
        "rms_norm_eps": shape.rms_norm_eps,
        "initializer_range": 0.02,
        "attention_bias": False,
        "mlp_bias": False,
        "attention_dropout": 0.0,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": end_ids,
        "pad_token_id": pad_id,
        "dtype": "bfloat16",
        "torch_dtype": "bfloat16",
        "use_cache": True,
    }


def write_json(path: Path, content: object) -> None:
    """Write a JSON file with a final line break."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def save_weights(model: Llama, path: Path) -> None:
    """Write the weights in bfloat16 under their Hugging Face names."""
    tensors = {
        f"model.{name}": tensor.detach().to(torch.bfloat16).contiguous() for name, tensor in model.state_dict().items()
    }
    save_file(tensors, path, metadata={"format": "pt"})


def load_weights(model: Llama, path: Path) -> None:
    """Read weights written by ``save_weights``."""
    tensors = {name.removeprefix("model."): tensor.float() for name, tensor in load_file(path).items()}
    model.load_state_dict(tensors)
