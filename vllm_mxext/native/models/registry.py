"""Where each architecture keeps its tensors in a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass

from vllm_mxext.errors import ConfigError


@dataclass(frozen=True, slots=True)
class CheckpointLayout:
    """Tensor names of a Llama-like checkpoint; names ending in `_proj` get `.weight` and `.bias` appended.

    Attributes:
        embedding: token embedding.
        final_norm: norm before the head.
        head: output head, absent when tied.
        layer_prefix: format of a layer's prefix.
        q_proj: query projection, as all that follow relative to the layer's prefix.
        k_proj: key projection.
        v_proj: value projection.
        o_proj: attention output projection.
        gate_proj: gate half of the gated MLP.
        up_proj: other half.
        down_proj: MLP output projection.
        q_norm: per-head query norm.
        k_norm: per-head key norm.
        attention_norm: norm before attention.
        mlp_norm: norm before the MLP.
        ignored_suffixes: tensors that older checkpoints carry and nobody reads.
    """

    embedding: str = "model.embed_tokens.weight"
    final_norm: str = "model.norm.weight"
    head: str = "lm_head.weight"
    layer_prefix: str = "model.layers.{layer}."
    q_proj: str = "self_attn.q_proj"
    k_proj: str = "self_attn.k_proj"
    v_proj: str = "self_attn.v_proj"
    o_proj: str = "self_attn.o_proj"
    gate_proj: str = "mlp.gate_proj"
    up_proj: str = "mlp.up_proj"
    down_proj: str = "mlp.down_proj"
    q_norm: str = "self_attn.q_norm.weight"
    k_norm: str = "self_attn.k_norm.weight"
    attention_norm: str = "input_layernorm.weight"
    mlp_norm: str = "post_attention_layernorm.weight"
    ignored_suffixes: tuple[str, ...] = ("rotary_emb.inv_freq",)


_LAYOUTS = {
    "LlamaForCausalLM": CheckpointLayout(),
    "MistralForCausalLM": CheckpointLayout(),
    "Qwen2ForCausalLM": CheckpointLayout(),
    "Qwen3ForCausalLM": CheckpointLayout(),
}


def checkpoint_layout(architecture: str) -> CheckpointLayout:
    """Looks up the layout of an architecture.

    Raises:
        ConfigError: the architecture is not known.
    """
    if architecture not in _LAYOUTS:
        raise ConfigError(
            f"Architecture {architecture} is not supported; the native engine runs {', '.join(_LAYOUTS)}."
        )
    return _LAYOUTS[architecture]
