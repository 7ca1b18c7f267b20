"""Reading `config.json` and `generation_config.json`."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from vllm_mxext.config.model_spec import RopeSpec, parse_model_spec, read_default_sampling, read_model_spec
from vllm_mxext.errors import ConfigError

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "torch_dtype": "bfloat16",
}
CONFIG_CLASSES: dict[str, type[Any]] = {
    "LlamaForCausalLM": LlamaConfig,
    "MistralForCausalLM": MistralConfig,
    "Qwen2ForCausalLM": Qwen2Config,
    "Qwen3ForCausalLM": Qwen3Config,
}


def config(**changes: Any) -> dict[str, Any]:
    return {**LLAMA, **changes}


def without(*names: str, **changes: Any) -> dict[str, Any]:
    return {name: value for name, value in config(**changes).items() if name not in names}


def write(folder: Path, name: str, content: Mapping[str, Any]) -> None:
    (folder / name).write_text(json.dumps(content))


def transformers_windows(architecture: str, raw: Mapping[str, Any]) -> tuple[int | None, ...]:
    """What transformers' own configuration class makes of the same file."""
    theirs = CONFIG_CLASSES[architecture](**{key: value for key, value in raw.items() if key != "architectures"})
    if architecture == "MistralForCausalLM":
        return (theirs.sliding_window,) * theirs.num_hidden_layers
    return tuple(theirs.sliding_window if kind == "sliding_attention" else None for kind in theirs.layer_types)


def test_old_and_new_spelling_give_the_same_spec() -> None:
    scaling = {"factor": 4.0, "original_max_position_embeddings": 128}
    old = config(rope_theta=5e5, rope_scaling={"type": "yarn", **scaling})
    new = without("torch_dtype", dtype="bfloat16", rope_parameters={"rope_type": "yarn", "rope_theta": 5e5, **scaling})
    assert parse_model_spec(old) == parse_model_spec(new)


@pytest.mark.parametrize("architecture", CONFIG_CLASSES)
def test_files_written_by_transformers_are_read_as_meant(architecture: str, tmp_path: Path) -> None:
    theirs = CONFIG_CLASSES[architecture](
        vocab_size=300,
        hidden_size=64,
        intermediate_size=100,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        architectures=[architecture],
        dtype="float16",
        eos_token_id=[5, 7],
        bos_token_id=3,
        rope_parameters={"rope_type": "linear", "rope_theta": 2e4, "factor": 2.0},
    )
    theirs.save_pretrained(tmp_path)
    spec = read_model_spec(tmp_path)
    assert spec.architecture == architecture
    assert spec.head_dim == (getattr(theirs, "head_dim", None) or 16)
    assert spec.max_position_embeddings == theirs.max_position_embeddings
    assert spec.rms_norm_eps == theirs.rms_norm_eps
    assert spec.checkpoint_dtype == "float16"
    assert spec.rope == RopeSpec(theta=2e4, rope_type="linear", factor=2.0)
    assert (spec.bos_token_id, spec.eos_token_ids) == (3, (5, 7))
    assert spec.has_qkv_bias == (architecture == "Qwen2ForCausalLM")
    assert spec.has_qk_norm == (architecture == "Qwen3ForCausalLM")


@pytest.mark.parametrize("architecture", CONFIG_CLASSES)
@pytest.mark.parametrize("absent", ["head_dim", "num_key_value_heads", "max_position_embeddings", "rms_norm_eps"])
@pytest.mark.parametrize("is_null", [False, True])
def test_absent_values_default_as_in_transformers(architecture: str, absent: str, is_null: bool) -> None:
    sizes = {"hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8, "sliding_window": None}
    raw = config(architectures=[architecture], **sizes)
    raw.pop(absent, None)
    may_be_null = {"head_dim": ("Llama", "Mistral", "Qwen2"), "num_key_value_heads": ("Llama", "Qwen2", "Qwen3")}
    if is_null and architecture.startswith(may_be_null.get(absent, ())):
        raw[absent] = None
    theirs = CONFIG_CLASSES[architecture](**{key: value for key, value in raw.items() if key != "architectures"})
    spec = parse_model_spec(raw)
    assert spec.head_dim == (getattr(theirs, "head_dim", None) or 128)
    assert spec.num_kv_heads == theirs.num_key_value_heads
    assert spec.max_position_embeddings == theirs.max_position_embeddings
    assert spec.rms_norm_eps == theirs.rms_norm_eps


@pytest.mark.parametrize("architecture", ["MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"])
@pytest.mark.parametrize(
    "window",
    [
        {},
        {"sliding_window": None},
        {"sliding_window": 64},
        {"sliding_window": 64, "use_sliding_window": False},
        {"sliding_window": 64, "use_sliding_window": True, "max_window_layers": 1},
        {"sliding_window": 64, "use_sliding_window": True, "max_window_layers": 0},
        {"sliding_window": 64, "use_sliding_window": True, "max_window_layers": 3},
        {"sliding_window": 64, "use_sliding_window": True},
    ],
    ids=str,
)
def test_sliding_windows_are_those_of_transformers(architecture: str, window: dict[str, Any]) -> None:
    raw = config(architectures=[architecture], head_dim=16, **window)
    assert parse_model_spec(raw).sliding_windows == transformers_windows(architecture, raw)


def test_explicit_layer_types_decide_which_layers_slide() -> None:
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    raw = config(
        architectures=["Qwen3ForCausalLM"], layer_types=kinds, use_sliding_window=True, sliding_window=32, head_dim=16
    )
    assert parse_model_spec(raw).sliding_windows == (32, None, 32) == transformers_windows("Qwen3ForCausalLM", raw)


def test_biases_follow_the_family() -> None:
    flags = {"attention_bias": True, "mlp_bias": True}
    llama = parse_model_spec(config(**flags))
    assert (llama.has_qkv_bias, llama.has_o_bias, llama.has_mlp_bias) == (True, True, True)
    mistral = parse_model_spec(config(architectures=["MistralForCausalLM"], **flags))
    assert (mistral.has_qkv_bias, mistral.has_o_bias, mistral.has_mlp_bias) == (False, False, False)
    qwen2 = parse_model_spec(config(architectures=["Qwen2ForCausalLM"]))
    assert (qwen2.has_qkv_bias, qwen2.has_o_bias) == (True, False)


def test_yarn_extends_the_context_to_factor_times_the_original_length() -> None:
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}
    assert parse_model_spec(config(rope_scaling=scaling)).max_position_embeddings == 2048


def test_yarn_without_original_length_scales_max_position_embeddings() -> None:
    spec = parse_model_spec(config(rope_scaling={"rope_type": "yarn", "factor": 2.0}))
    assert spec.rope.original_max_position_embeddings == 512
    assert spec.max_position_embeddings == 1024


def test_dynamic_rope_is_served_up_to_the_trained_length_only() -> None:
    spec = parse_model_spec(config(rope_scaling={"type": "dynamic", "factor": 8.0}))
    assert spec.rope.rope_type == "dynamic"
    assert spec.max_position_embeddings == 512


def test_the_original_length_beside_the_rope_parameters_wins() -> None:
    scaling = {
        "rope_type": "llama3",
        "factor": 8,
        "low_freq_factor": 1,
        "high_freq_factor": 4,
        "original_max_position_embeddings": 64,
    }
    spec = parse_model_spec(config(rope_scaling=scaling, original_max_position_embeddings=128))
    assert spec.rope.original_max_position_embeddings == 128


def test_generation_config_overrides_end_of_text_ids() -> None:
    assert parse_model_spec(config(eos_token_id=2), {"eos_token_id": [4, 5]}).eos_token_ids == (4, 5)
    assert parse_model_spec(config(eos_token_id=2), {}).eos_token_ids == (2,)
    assert parse_model_spec(config()).eos_token_ids == ()


def test_architecture_is_found_by_model_type_when_not_listed() -> None:
    spec = parse_model_spec(without("architectures", model_type="qwen3", head_dim=16))
    assert spec.architecture == "Qwen3ForCausalLM"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel is not supported.*LlamaForCausalLM"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantised .fp8.*bfloat16"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported.*silu"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.25}}, "partial_rotary_factor 0.25"),
        ({"rope_scaling": {"type": "longrope", "factor": 2}}, "'longrope' is not supported; use default, linear"),
        ({"rope_scaling": {"type": "mrope"}}, "'mrope' is not supported"),
        ({"rope_scaling": {"type": "linear"}}, "factor is missing"),
        ({"rope_scaling": {"type": "linear", "factor": 0}}, "greater than 0"),
        ({"rope_scaling": {"type": "llama3", "factor": 8}}, "low_freq_factor is missing"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "per layer type"),
        ({"torch_dtype": "float8_e4m3fn"}, "float8_e4m3fn is not supported; use bfloat16"),
        ({"num_key_value_heads": 3}, "4 attention heads are not a multiple of 3"),
        ({"head_dim": 15}, "head_dim 15 is odd"),
        ({"hidden_size": 66}, "66 is not a multiple of 4 heads"),
        ({"hidden_size": "64"}, "hidden_size must be a positive integer, got '64'"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be a positive integer, got 0"),
        ({"vocab_size": None}, "vocab_size is missing"),
        ({"rms_norm_eps": "tiny"}, "rms_norm_eps must be a number"),
        ({"eos_token_id": "</s>"}, "eos_token_id must be a token id"),
        ({"layer_types": ["full_attention"]}, "one type for each of the 3 layers"),
        ({"layer_types": ["linear_attention"] * 3}, "'linear_attention' is not supported"),
        ({"layer_types": ["sliding_attention"] * 3}, "no sliding window is in use"),
    ],
    ids=str,
)
def test_what_is_not_supported_is_one_clear_error(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_model_spec(config(**changes))


def test_mixed_layers_of_mistral_are_refused() -> None:
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    with pytest.raises(ConfigError, match="must be of one type"):
        parse_model_spec(config(architectures=["MistralForCausalLM"], layer_types=kinds))


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere does not exist; pass --model"):
        read_model_spec(tmp_path / "nowhere")


def test_a_folder_without_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no config\.json"):
        read_model_spec(tmp_path)


@pytest.mark.parametrize("text", ["{", "[1]", "\x00"])
def test_broken_json_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=r"config\.json (cannot be read as JSON|must hold a JSON object)"):
        read_model_spec(tmp_path)


def test_a_broken_generation_config_is_named(tmp_path: Path) -> None:
    write(tmp_path, "config.json", LLAMA)
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"generation_config\.json cannot be read"):
        read_model_spec(tmp_path)


def test_without_a_declared_dtype_the_first_tensor_decides(tmp_path: Path) -> None:
    write(tmp_path, "config.json", without("torch_dtype"))
    header = json.dumps({"__metadata__": {}, "a": {"dtype": "I64"}, "b": {"dtype": "F16"}}).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    assert read_model_spec(tmp_path).checkpoint_dtype == "float16"


@pytest.mark.parametrize("content", [b"", b"\xff" * 64, struct.pack("<Q", 4) + b"{{{{"])
def test_without_any_dtype_float32_is_assumed(tmp_path: Path, content: bytes) -> None:
    write(tmp_path, "config.json", without("torch_dtype"))
    (tmp_path / "model.safetensors").write_bytes(content)
    assert read_model_spec(tmp_path).checkpoint_dtype == "float32"


def test_default_sampling_comes_from_the_generation_config(tmp_path: Path) -> None:
    assert read_default_sampling(tmp_path) == {}
    content = {"temperature": 0.6, "top_k": 20, "top_p": None, "do_sample": True, "eos_token_id": 3}
    write(tmp_path, "generation_config.json", content)
    assert read_default_sampling(tmp_path) == {"temperature": 0.6, "top_k": 20}
