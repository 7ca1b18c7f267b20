"""`ModelShape`: the sizes of any decoder that its `config.json` gives, from which memory is estimated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vllm_mxext.config.checkpoint_fields import number, positive_int
from vllm_mxext.errors import ConfigError

_LENGTH_FIELDS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "seq_length")
_EXPERT_FIELDS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")

_PLAIN_MLPS = frozenset(
    {"gpt2", "gptj", "gpt_neox", "gpt_bigcode", "opt", "bloom", "mpt", "falcon", "phi", "starcoder2", "nemotron"}
)
"""`model_type`s whose MLP has two matrices instead of three."""

_ALTERNATING_WINDOWS = {"gemma2": 2, "gemma3": 6, "gemma3_text": 6, "cohere2": 4}
"""`model_type` -> every how manyth layer sees all tokens while the others see a window, where the file has no list."""

_ALWAYS_TIED = frozenset({"gemma", "gemma2", "gemma3", "gemma3_text", "gpt2"})
"""`model_type`s that leave out `tie_word_embeddings` because it is their default."""


@dataclass(frozen=True, slots=True)
class Experts:
    """The mixture of experts in place of an MLP.

    Attributes:
        num_experts: of a layer.
        inner_size: width of each.
        shared_inner_size: width of what every token goes through besides; 0 = nothing.
        num_layers: layers that have experts; the others have an MLP.
    """

    num_experts: int
    inner_size: int
    shared_inner_size: int
    num_layers: int


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A decoder's sizes.

    Attributes:
        vocab_size: rows of the embedding.
        hidden_size: H.
        inner_size: width of the MLP.
        num_layers: decoder layers.
        num_heads: query heads.
        num_kv_heads: key/value heads.
        head_dim: elements per head.
        max_model_len: tokens that the model was made for.
        windows: per layer, tokens whose keys and values it keeps; None = all, 0 = no keys and values at all.
        has_tied_embeddings: the output head is the embedding.
        latent_size: elements per token and layer that are kept instead of keys and values (MLA); 0 = keys and values.
        layer_parameters: of all layers together.
        num_parameters: of the model, in all.
    """

    vocab_size: int
    hidden_size: int
    inner_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_model_len: int
    windows: tuple[int | None, ...]
    has_tied_embeddings: bool
    latent_size: int
    layer_parameters: int
    num_parameters: int

    @property
    def embedding_parameters(self) -> int:
        """Of embedding and output head, which quantised checkpoints leave as they are."""
        return self.vocab_size * self.hidden_size * (1 if self.has_tied_embeddings else 2)

    def cached_elements(self, num_tokens: int, share_of_kv_heads: float = 1.0) -> int:
        """Returns the elements of keys and values, or of what MLA keeps, of one request over all layers.

        Args:
            num_tokens: of the request.
            share_of_kv_heads: heads on one device; what MLA keeps is whole on each.
        """
        per_token = float(self.latent_size or 2 * self.num_kv_heads * self.head_dim * share_of_kv_heads)
        kept = sum(num_tokens if window is None else min(window, num_tokens) for window in self.windows)
        return round(kept * per_token)


def parse_shape(config: Mapping[str, Any]) -> ModelShape:
    """Reads the fields of a `config.json`; those of a model with images too are in `text_config`.

    Raises:
        ConfigError: a field that nothing can stand in for is missing, or a value is not what it should be.
    """
    outer = config
    config = _text_part(config)
    num_layers = _first_int(config, ("num_hidden_layers", "n_layer", "n_layers", "num_layers"))
    num_heads = _first_int(config, ("num_attention_heads", "n_head", "n_heads"))
    hidden_size = _first_int(config, ("hidden_size", "n_embd", "d_model"))
    num_kv_heads = _num_kv_heads(config, num_heads)
    latent_size = 0
    if config.get("kv_lora_rank"):
        latent_size = positive_int(config, "kv_lora_rank") + positive_int(config, "qk_rope_head_dim")
    head_dim = positive_int(config, "head_dim", hidden_size // num_heads)
    is_tied = bool(config.get("tie_word_embeddings", outer.get("tie_word_embeddings", _kind(config) in _ALWAYS_TIED)))
    vocab_size = _first_int(config, ("vocab_size", "padded_vocab_size"))
    experts = _experts(config, num_layers)
    inner_size = _inner_size(config, hidden_size)
    attention = _attention_parameters(config, hidden_size, num_heads, num_kv_heads, head_dim)
    layers = num_layers * (attention + 2 * hidden_size)
    layers += _mlp_parameters(config, hidden_size, inner_size, num_layers, experts)
    return ModelShape(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        inner_size=inner_size,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        max_model_len=_max_model_len(config),
        windows=_windows(config, num_layers),
        has_tied_embeddings=is_tied,
        latent_size=latent_size,
        layer_parameters=layers,
        num_parameters=layers + hidden_size + vocab_size * hidden_size * (1 if is_tied else 2),
    )


def _text_part(config: Mapping[str, Any]) -> Mapping[str, Any]:
    for name in ("text_config", "llm_config", "language_config"):
        nested = config.get(name)
        if isinstance(nested, Mapping) and nested:
            return nested
    return config


def _kind(config: Mapping[str, Any]) -> str:
    return str(config.get("model_type", ""))


def _first_int(config: Mapping[str, Any], names: tuple[str, ...]) -> int:
    """Returns the first of the fields that is there; all of them mean the same."""
    return positive_int(config, next((name for name in names if config.get(name) is not None), names[0]))


def _num_kv_heads(config: Mapping[str, Any], num_heads: int) -> int:
    if _kind(config) == "falcon" and config.get("multi_query") and not config.get("new_decoder_architecture"):
        return 1
    for name in ("num_key_value_heads", "num_kv_heads", "n_head_kv", "multi_query_group_num"):
        if config.get(name) is not None:
            return positive_int(config, name)
    return num_heads


def _inner_size(config: Mapping[str, Any], hidden_size: int) -> int:
    for name in ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size"):
        if config.get(name) is not None:
            return positive_int(config, name)
    return 4 * hidden_size


def _experts(config: Mapping[str, Any], num_layers: int) -> Experts | None:
    num_experts = next((positive_int(config, name) for name in _EXPERT_FIELDS if config.get(name) is not None), 0)
    if num_experts <= 1:
        return None
    name = "moe_intermediate_size" if config.get("moe_intermediate_size") is not None else "intermediate_size"
    inner_size = positive_int(config, name)
    shared = config.get("shared_expert_intermediate_size") or (config.get("n_shared_experts") or 0) * inner_size
    step = config.get("decoder_sparse_step") or config.get("moe_layer_freq") or 1
    plain = set(config.get("mlp_only_layers") or ()) | set(range(config.get("first_k_dense_replace") or 0))
    with_experts = (layer not in plain and (layer + 1) % step == 0 for layer in range(num_layers))
    return Experts(num_experts, inner_size, int(shared), sum(with_experts))


def _attention_parameters(
    config: Mapping[str, Any], hidden_size: int, num_heads: int, num_kv_heads: int, head_dim: int
) -> int:
    if not config.get("kv_lora_rank"):
        kv_width = num_kv_heads * head_dim
        biases = num_heads * head_dim + 2 * kv_width if _kind(config) == "qwen2" or config.get("attention_bias") else 0
        norms = 2 * head_dim if _kind(config).startswith(("qwen3", "gemma3")) else 0
        return hidden_size * (2 * num_heads * head_dim + 2 * kv_width) + biases + norms
    latent, rope = positive_int(config, "kv_lora_rank"), positive_int(config, "qk_rope_head_dim")
    plain, value = positive_int(config, "qk_nope_head_dim"), positive_int(config, "v_head_dim")
    query_width = num_heads * (plain + rope)
    query_rank = config.get("q_lora_rank")
    queries = query_rank * (hidden_size + query_width + 1) if query_rank else hidden_size * query_width
    keys = hidden_size * (latent + rope) + latent + latent * num_heads * (plain + value)
    return int(queries + keys + num_heads * value * hidden_size)


def _mlp_parameters(
    config: Mapping[str, Any], hidden_size: int, inner_size: int, num_layers: int, experts: Experts | None
) -> int:
    per_width = (2 if _kind(config) in _PLAIN_MLPS else 3) * hidden_size
    if experts is None:
        return num_layers * per_width * inner_size
    widths = experts.num_experts * experts.inner_size + experts.shared_inner_size
    mixed = per_width * widths + hidden_size * experts.num_experts
    return experts.num_layers * mixed + (num_layers - experts.num_layers) * per_width * inner_size


def _max_model_len(config: Mapping[str, Any]) -> int:
    name = next((name for name in _LENGTH_FIELDS if config.get(name) is not None), None)
    length = 2048 if name is None else positive_int(config, name)
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if isinstance(rope, Mapping) and (rope.get("rope_type") or rope.get("type")) == "yarn":
        original = positive_int(rope, "original_max_position_embeddings", length)
        length = max(length, int(original * number(rope, "factor", 1.0)))
    return length


def _windows(config: Mapping[str, Any], num_layers: int) -> tuple[int | None, ...]:
    window = config.get("sliding_window")
    if window is None or config.get("use_sliding_window") is False:
        window = None
    else:
        window = positive_int(config, "sliding_window")
    chunk = config.get("attention_chunk_size")
    kinds = config.get("layer_types")
    if kinds:
        if not isinstance(kinds, (list, tuple)) or len(kinds) != num_layers:
            raise ConfigError(f"config.json: layer_types must list one type for each of the {num_layers} layers.")
        seen = {"full_attention": None, "sliding_attention": window, "chunked_attention": chunk}
        return tuple(seen.get(str(kind), 0) for kind in kinds)  # other types keep a state of fixed size
    if window is None:
        return (None,) * num_layers
    period = config.get("sliding_window_pattern") or _ALTERNATING_WINDOWS.get(_kind(config))
    if isinstance(period, int) and period > 0:
        return tuple(None if (layer + 1) % period == 0 else window for layer in range(num_layers))
    if _kind(config) in ("qwen2", "qwen3", "qwen2_moe", "qwen3_moe"):
        if not config.get("use_sliding_window"):
            return (None,) * num_layers
        first = config.get("max_window_layers", num_layers)
        return tuple(window if layer >= first else None for layer in range(num_layers))
    return (window,) * num_layers
