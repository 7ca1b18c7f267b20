"""`ModelSpec`: a decoder's architecture as its `config.json` describes it, without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

RopeType = Literal["default", "linear", "dynamic", "llama3", "yarn"]


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """Rotary position embedding.

    Attributes:
        theta: base of the frequencies.
        rope_type: scaling variant, as in transformers' `rope_parameters` / `rope_scaling`.
        factor: context extension factor.
        original_max_position_embeddings: context length the model was trained with before scaling.
        low_freq_factor: llama3 only.
        high_freq_factor: llama3 only.
        beta_fast: yarn only.
        beta_slow: yarn only.
        attention_factor: yarn only; None = derived from `factor`.
        mscale: yarn only.
        mscale_all_dim: yarn only.
        truncate: yarn only; round the correction range to integers.
    """

    theta: float = 10_000.0
    rope_type: RopeType = "default"
    factor: float = 1.0
    original_max_position_embeddings: int | None = None
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A Llama-like decoder.

    Attributes:
        architecture: name in `architectures`, for example `Qwen3ForCausalLM`.
        vocab_size: rows of the embedding (logits may be wider than the tokenizer).
        hidden_size: H.
        intermediate_size: width of the gated MLP.
        num_layers: decoder layers.
        num_heads: query heads.
        num_kv_heads: key/value heads.
        head_dim: elements per head.
        max_position_embeddings: context length of the checkpoint.
        rms_norm_eps: epsilon of every RMS norm.
        rope: position embedding.
        has_tied_embeddings: the output head is the embedding.
        has_qkv_bias: biases on q, k and v.
        has_o_bias: bias on the attention output.
        has_mlp_bias: biases in the MLP.
        has_qk_norm: per-head RMS norm on q and k before rotation (Qwen3).
        sliding_windows: per layer, tokens seen, or None for all; length `num_layers`.
        checkpoint_dtype: `bfloat16`, `float16` or `float32` as the checkpoint declares.
        bos_token_id: beginning of text, if any.
        eos_token_ids: end-of-text ids of `generation_config.json`, else of `config.json`.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope: RopeSpec
    has_tied_embeddings: bool
    has_qkv_bias: bool
    has_o_bias: bool
    has_mlp_bias: bool
    has_qk_norm: bool
    sliding_windows: tuple[int | None, ...]
    checkpoint_dtype: Literal["bfloat16", "float16", "float32"]
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
