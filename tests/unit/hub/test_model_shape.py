"""Sizes of decoders from their config.json: parameters as transformers counts them, and what their caches hold."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.hub.machines import QWEN_8B
from vllm_mxext.errors import ConfigError
from vllm_mxext.hub.model_shape import parse_shape

SMALL = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "vocab_size": 1000}
FEW_HEADS = {**SMALL, "num_key_value_heads": 2, "intermediate_size": 96}
FAMILIES: list[tuple[dict[str, Any], int]] = [
    ({"model_type": "llama"}, 251_456),
    ({"model_type": "qwen2"}, 251_968),
    ({"model_type": "qwen3", "head_dim": 32, "tie_word_embeddings": True}, 236_864),
    ({"model_type": "mistral"}, 251_456),
    ({"model_type": "mixtral", "num_local_experts": 4}, 473_664),
    (
        {
            "model_type": "qwen3_moe",
            "moe_intermediate_size": 32,
            "num_experts": 8,
            "head_dim": 16,
            "mlp_only_layers": [0],
        },
        345_280,
    ),
    (
        {
            "model_type": "deepseek_v3",
            "num_key_value_heads": 4,
            "moe_intermediate_size": 32,
            "n_routed_experts": 8,
            "n_shared_experts": 2,
            "first_k_dense_replace": 1,
            "kv_lora_rank": 32,
            "q_lora_rank": 24,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 16,
            "v_head_dim": 16,
        },
        391_456,
    ),
]
"""Configurations -> parameters of what transformers 5.23 makes of them."""


@pytest.mark.promise("HUB-EST-1")
@pytest.mark.parametrize(("values", "num_parameters"), FAMILIES, ids=[values["model_type"] for values, _ in FAMILIES])
def test_parameters_are_those_that_transformers_allocates(values: dict[str, Any], num_parameters: int) -> None:
    assert parse_shape({**FEW_HEADS, **values}).num_parameters == num_parameters


def test_published_models_have_their_published_parameters() -> None:
    assert parse_shape(QWEN_8B).num_parameters == 8_190_735_360


@pytest.mark.promise("HUB-EST-1")
@pytest.mark.parametrize(
    ("changes", "elements"),
    [
        ({}, 36 * 10_000 * 2 * 8 * 128),
        ({"num_key_value_heads": None}, 36 * 10_000 * 2 * 32 * 128),
        ({"kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128}, 36 * 10_000 * 576),
        ({"model_type": "mistral", "sliding_window": 4096}, 36 * 4096 * 2 * 8 * 128),
        ({"sliding_window": 4096, "use_sliding_window": False}, 36 * 10_000 * 2 * 8 * 128),
        ({"model_type": "gemma2", "sliding_window": 4096}, 18 * (4096 + 10_000) * 2 * 8 * 128),
        ({"model_type": "gemma3_text", "sliding_window": 1024}, (30 * 1024 + 6 * 10_000) * 2 * 8 * 128),
        (
            {"sliding_window": 128, "layer_types": ["sliding_attention", "full_attention"] * 18},
            18 * (128 + 10_000) * 2 * 8 * 128,
        ),
        ({"layer_types": (["linear_attention"] * 3 + ["full_attention"]) * 9}, 9 * 10_000 * 2 * 8 * 128),
        (
            {"use_sliding_window": True, "sliding_window": 100, "max_window_layers": 30},
            (30 * 10_000 + 600) * 2 * 8 * 128,
        ),
    ],
    ids=["gqa", "mha", "mla", "window", "unused window", "gemma2", "gemma3", "layer types", "linear", "upper layers"],
)
def test_a_cache_holds_what_attention_of_each_kind_keeps(changes: dict[str, Any], elements: int) -> None:
    assert parse_shape({**QWEN_8B, **changes}).cached_elements(10_000) == elements


def test_sizes_of_a_model_with_images_are_those_of_its_text_part() -> None:
    inner = {name: value for name, value in QWEN_8B.items() if name != "architectures"}
    shape = parse_shape({"architectures": ["SomeVLForConditionalGeneration"], "text_config": inner})
    assert shape == parse_shape(QWEN_8B)
    assert shape.num_parameters == 8_190_735_360


@pytest.mark.parametrize(
    ("changes", "length"),
    [
        ({}, 40_960),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32_768}}, 131_072),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, 40_960),
        ({"max_position_embeddings": None, "n_positions": 1024}, 1024),
    ],
)
def test_the_context_is_what_the_model_was_made_for(changes: dict[str, Any], length: int) -> None:
    assert parse_shape({**QWEN_8B, **changes}).max_model_len == length


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"hidden_size": None}, "config.json: hidden_size is missing."),
        ({"num_hidden_layers": "36"}, "num_hidden_layers must be a positive integer, got '36'"),
        ({"vocab_size": -1}, "vocab_size must be a positive integer, got -1"),
        ({"layer_types": ["full_attention"]}, "layer_types must list one type for each of the 36 layers"),
    ],
)
def test_what_cannot_be_a_decoder_is_refused_by_field(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_shape({**QWEN_8B, **changes})
    assert complaint in str(caught.value)
