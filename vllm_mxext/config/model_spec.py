"""`ModelSpec`: a decoder's architecture as its `config.json` describes it, without torch."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vllm_mxext.config.checkpoint_fields import is_number, number, positive_int
from vllm_mxext.config.int4_spec import Int4Spec, parse_int4_spec
from vllm_mxext.config.rope_spec import RopeSpec, parse_rope_spec
from vllm_mxext.errors import ConfigError

__all__ = [
    "SUPPORTED_ARCHITECTURES",
    "CheckpointDType",
    "ModelSpec",
    "RopeSpec",
    "parse_model_spec",
    "read_default_sampling",
    "read_model_spec",
]

CheckpointDType = Literal["bfloat16", "float16", "float32"]


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
        max_position_embeddings: context length of the checkpoint, a yarn extension included; the most that
            `max_model_len` can be.
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
        int4: which layers have int4 weights; None if none has.
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
    checkpoint_dtype: CheckpointDType
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    int4: Int4Spec | None = None


@dataclass(frozen=True, slots=True)
class _Family:
    """What one architecture fixes or defaults, as in its transformers configuration class."""

    max_position_embeddings: int
    num_kv_heads: int | None = None
    head_dim: int | None = None
    qkv_bias: bool | Literal["attention_bias"] = False
    o_bias: bool | Literal["attention_bias"] = False
    mlp_bias: bool | Literal["mlp_bias"] = False
    has_qk_norm: bool = False
    window_rule: Literal["none", "all_layers", "upper_layers"] = "none"


_FAMILIES = {
    "LlamaForCausalLM": _Family(2048, qkv_bias="attention_bias", o_bias="attention_bias", mlp_bias="mlp_bias"),
    "MistralForCausalLM": _Family(131_072, num_kv_heads=8, window_rule="all_layers"),
    "Qwen2ForCausalLM": _Family(32_768, num_kv_heads=32, qkv_bias=True, window_rule="upper_layers"),
    "Qwen3ForCausalLM": _Family(
        32_768,
        num_kv_heads=32,
        head_dim=128,
        qkv_bias="attention_bias",
        o_bias="attention_bias",
        has_qk_norm=True,
        window_rule="upper_layers",
    ),
}
_MODEL_TYPES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
_DEFAULT_SAMPLING_FIELDS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
_DTYPE_NAMES: dict[str, CheckpointDType] = {"bfloat16": "bfloat16", "float16": "float16", "float32": "float32"}
_SAFETENSORS_DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}

SUPPORTED_ARCHITECTURES = tuple(_FAMILIES)
"""Names in `architectures` that the native engine runs."""


def read_model_spec(model_path: Path) -> ModelSpec:
    """Reads `config.json` and, if present, `generation_config.json` of a checkpoint folder.

    Raises:
        ConfigError: the folder or `config.json` is missing or broken, or the model is not supported.
    """
    if not model_path.is_dir():
        raise ConfigError(f"The model folder {model_path} does not exist; pass --model with a checkpoint folder.")
    config_path = model_path / "config.json"
    if not config_path.is_file():
        raise ConfigError(f"{model_path} has no config.json; --model needs a checkpoint in Hugging Face layout.")
    config = _read_json(config_path)
    if config.get("dtype") is None and config.get("torch_dtype") is None:
        config["dtype"] = _first_tensor_dtype(model_path)
    return parse_model_spec(config, _read_generation_config(model_path))


def read_default_sampling(model_path: Path) -> dict[str, float | int]:
    """Sampling parameters that `generation_config.json` sets, by `SamplingParams` name; empty without the file."""
    generation = _read_generation_config(model_path) or {}
    return {name: generation[name] for name in _DEFAULT_SAMPLING_FIELDS if is_number(generation.get(name))}


def parse_model_spec(config: Mapping[str, Any], generation_config: Mapping[str, Any] | None = None) -> ModelSpec:
    """Makes a `ModelSpec` of parsed `config.json` and `generation_config.json` contents.

    Both the older spelling (`rope_theta`, `rope_scaling`, `torch_dtype`) and that of transformers 5
    (`rope_parameters`, `dtype`, `layer_types`) are read, with transformers 5.23's defaults.

    Raises:
        ConfigError: a value is missing or wrong, or the model needs something that is not supported.
    """
    architecture = _architecture(config)
    family = _FAMILIES[architecture]
    _reject_unsupported(config)
    num_heads = positive_int(config, "num_attention_heads")
    num_layers = positive_int(config, "num_hidden_layers")
    num_kv_heads = positive_int(config, "num_key_value_heads", _default_kv_heads(config, family, num_heads))
    if num_heads % num_kv_heads:
        raise ConfigError(f"config.json: {num_heads} attention heads are not a multiple of {num_kv_heads} key heads.")
    trained_len = positive_int(config, "max_position_embeddings", family.max_position_embeddings)
    rope = parse_rope_spec(config, trained_len)
    if rope.rope_type == "yarn":
        trained_len = max(trained_len, int((rope.original_max_position_embeddings or trained_len) * rope.factor))
    return ModelSpec(
        architecture=architecture,
        vocab_size=positive_int(config, "vocab_size"),
        hidden_size=positive_int(config, "hidden_size"),
        intermediate_size=positive_int(config, "intermediate_size"),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=_head_dim(config, family, num_heads),
        max_position_embeddings=trained_len,
        rms_norm_eps=number(config, "rms_norm_eps", 1e-6),
        rope=rope,
        has_tied_embeddings=bool(config.get("tie_word_embeddings", False)),
        has_qkv_bias=_has_bias(config, family.qkv_bias),
        has_o_bias=_has_bias(config, family.o_bias),
        has_mlp_bias=_has_bias(config, family.mlp_bias),
        has_qk_norm=family.has_qk_norm,
        sliding_windows=_sliding_windows(config, family, num_layers),
        checkpoint_dtype=_checkpoint_dtype(config),
        bos_token_id=next(iter(_token_ids(config, "bos_token_id")), None),
        eos_token_ids=_eos_token_ids(config, generation_config or {}),
        int4=parse_int4_spec(config, num_layers),
    )


def _architecture(config: Mapping[str, Any]) -> str:
    names = config.get("architectures") or [_MODEL_TYPES.get(config.get("model_type", ""), config.get("model_type"))]
    for name in names:
        if name in _FAMILIES:
            return str(name)
    raise ConfigError(f"Architecture {names[0]} is not supported; the native engine runs {', '.join(_FAMILIES)}.")


def _reject_unsupported(config: Mapping[str, Any]) -> None:
    if config.get("hidden_act", "silu") not in ("silu", "swish"):
        raise ConfigError(f"hidden_act {config['hidden_act']!r} is not supported; the native engine runs silu.")
    if config.get("per_layer_config"):
        raise ConfigError("per_layer_config is not supported; the native engine runs models with equal layers.")


def _default_kv_heads(config: Mapping[str, Any], family: _Family, num_heads: int) -> int:
    if "num_key_value_heads" in config or family.num_kv_heads is None:
        return num_heads
    return family.num_kv_heads


def _head_dim(config: Mapping[str, Any], family: _Family, num_heads: int) -> int:
    default = family.head_dim if "head_dim" not in config else None
    if default is None and config.get("head_dim") is None:
        hidden_size = positive_int(config, "hidden_size")
        if hidden_size % num_heads:
            raise ConfigError(
                f"config.json: hidden_size {hidden_size} is not a multiple of {num_heads} heads; set head_dim."
            )
        default = hidden_size // num_heads
    head_dim = positive_int(config, "head_dim", default)
    if head_dim % 2:
        raise ConfigError(f"config.json: head_dim {head_dim} is odd; rotary embeddings need an even one.")
    return head_dim


def _has_bias(config: Mapping[str, Any], rule: bool | str) -> bool:
    return rule if isinstance(rule, bool) else bool(config.get(rule, False))


def _sliding_windows(config: Mapping[str, Any], family: _Family, num_layers: int) -> tuple[int | None, ...]:
    layer_types = config.get("layer_types")
    if layer_types is not None and (not isinstance(layer_types, list) or len(layer_types) != num_layers):
        raise ConfigError(f"config.json: layer_types must list one type for each of the {num_layers} layers.")
    window = None
    if family.window_rule == "all_layers":
        window = _window(config, 4096)
        layer_types = layer_types or ["full_attention" if window is None else "sliding_attention"] * num_layers
        if len(set(layer_types)) > 1:
            raise ConfigError("Mistral with mixed layer_types is not supported; all layers must be of one type.")
    elif family.window_rule == "upper_layers":
        window = _window(config, 4096) if config.get("use_sliding_window", False) else None
        first = config.get("max_window_layers", 28)
        layer_types = layer_types or [
            "sliding_attention" if window is not None and layer >= first else "full_attention"
            for layer in range(num_layers)
        ]
    windows = tuple(_layer_window(kind, window) for kind in layer_types or ["full_attention"] * num_layers)
    # transformers' Mistral masks every layer by `sliding_window`, whatever layer_types says.
    return (window,) * num_layers if family.window_rule == "all_layers" else windows


def _layer_window(kind: str, window: int | None) -> int | None:
    if kind == "full_attention":
        return None
    if kind != "sliding_attention":
        raise ConfigError(f"Layer type {kind!r} is not supported; layers may be full_attention or sliding_attention.")
    if window is None:
        raise ConfigError("config.json: layer_types has sliding_attention layers, but no sliding window is in use.")
    return window


def _window(config: Mapping[str, Any], default: int) -> int | None:
    return None if config.get("sliding_window", default) is None else positive_int(config, "sliding_window", default)


def _checkpoint_dtype(config: Mapping[str, Any]) -> CheckpointDType:
    name = str(config.get("dtype") or config.get("torch_dtype") or "float32").removeprefix("torch.")
    if name not in _DTYPE_NAMES:
        raise ConfigError(f"Checkpoint dtype {name} is not supported; use {', '.join(_DTYPE_NAMES)}.")
    return _DTYPE_NAMES[name]


def _first_tensor_dtype(model_path: Path) -> str | None:
    """Dtype of the first floating tensor, as transformers takes it when `config.json` names none."""
    for path in sorted(model_path.glob("*.safetensors")):
        with path.open("rb") as file:
            prefix = file.read(8)
            header_bytes = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
            header = file.read(header_bytes) if header_bytes <= path.stat().st_size else b""
        try:
            entries = json.loads(header)
        except ValueError:
            return None  # a broken file is reported when weights are loaded
        for name, entry in entries.items():
            if name != "__metadata__" and entry.get("dtype") in _SAFETENSORS_DTYPES:
                return _SAFETENSORS_DTYPES[entry["dtype"]]
    return None


def _eos_token_ids(config: Mapping[str, Any], generation: Mapping[str, Any]) -> tuple[int, ...]:
    return _token_ids(generation, "eos_token_id") or _token_ids(config, "eos_token_id")


def _token_ids(values: Mapping[str, Any], name: str) -> tuple[int, ...]:
    value = values.get(name)
    ids = () if value is None else tuple(value) if isinstance(value, list) else (value,)
    if any(isinstance(token_id, bool) or not isinstance(token_id, int) for token_id in ids):
        raise ConfigError(f"{name} must be a token id or a list of them, got {value!r}.")
    return ids


def _read_generation_config(model_path: Path) -> dict[str, Any] | None:
    path = model_path / "generation_config.json"
    return _read_json(path) if path.is_file() else None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} cannot be read as JSON ({error}); download the checkpoint again.") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must hold a JSON object.")
    return content
