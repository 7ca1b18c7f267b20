"""`quantization_config`: what is read from it, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from tests.int4_checkpoints import FORMATS, Int4Format
from vllm_mxext.config.int4_spec import Int4Spec, parse_int4_spec
from vllm_mxext.errors import ConfigError

GPTQ: dict[str, Any] = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True}
AWQ: dict[str, Any] = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"}
WEIGHTS: dict[str, Any] = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 128}
PACKED: dict[str, Any] = {
    "quant_method": "compressed-tensors",
    "format": "pack-quantized",
    "config_groups": {"group_0": {"targets": ["Linear"], "weights": WEIGHTS}},
    "ignore": ["lm_head"],
}


def parsed(values: dict[str, Any], num_layers: int = 2) -> Int4Spec:
    spec = parse_int4_spec({"quantization_config": values}, num_layers)
    assert spec is not None
    return spec


def packed(**weights: Any) -> dict[str, Any]:
    return {**PACKED, "config_groups": {"group_0": {"targets": ["Linear"], "weights": {**WEIGHTS, **weights}}}}


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
def test_every_format_is_recognised(form: Int4Format) -> None:
    spec = parsed(form.quantization_config())
    assert spec.method == form.method
    assert spec.group_size == (None if form.group_size == -1 else form.group_size)
    assert spec.has_input_order == form.desc_act
    assert spec.covers("model.layers.1.self_attn.q_proj")
    assert spec.covers("model.layers.1.mlp.down_proj") == (form.plain_suffix == "lm_head")
    assert not spec.covers("lm_head")


def test_a_checkpoint_without_quantization_has_none() -> None:
    assert parse_int4_spec({}, 2) is None
    assert parse_int4_spec({"quantization_config": None}, 2) is None


def test_zeros_are_stored_less_one_unless_the_format_says_otherwise() -> None:
    assert parsed(GPTQ).zero_offset == 1
    assert parsed({**GPTQ, "checkpoint_format": "gptq"}).zero_offset == 1
    assert parsed({**GPTQ, "checkpoint_format": "gptq_v2"}).zero_offset == 0
    assert parsed(AWQ).zero_offset == 0


def test_an_order_of_inputs_means_nothing_to_whole_columns() -> None:
    assert parsed({**GPTQ, "desc_act": True}).has_input_order
    assert not parsed({**GPTQ, "desc_act": True, "group_size": -1}).has_input_order
    assert parsed(packed(actorder="group")).has_input_order
    assert not parsed(packed(actorder="weight")).has_input_order


def test_older_spellings_of_awq_are_read() -> None:
    spec = parsed({"quant_method": "AWQ", "w_bit": 4, "q_group_size": 64, "version": "GEMM"})
    assert (spec.method, spec.group_size) == ("awq", 64)


def test_gptq_names_the_modules_it_converts() -> None:
    names = [["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"], ["self_attn.o_proj"]]
    spec = parsed({**GPTQ, "modules_in_block_to_quantize": names})
    assert spec.covers("model.layers.0.self_attn.o_proj")
    assert not spec.covers("model.layers.0.mlp.down_proj")


def test_heads_are_int4_only_if_the_checkpoint_says_so() -> None:
    assert parsed({**GPTQ, "lm_head": True}).covers("lm_head")
    assert parsed({**PACKED, "ignore": []}).covers("lm_head")
    assert not parsed(AWQ).covers("lm_head")


@pytest.mark.parametrize(
    ("group_size", "in_features", "expected"),
    [(32, 64, 32), (64, 192, 64), (96, 192, 32), (256, 512, 128), (64, 64, 128)],
)
def test_blocks_are_as_large_as_the_groups_allow(group_size: int, in_features: int, expected: int) -> None:
    assert parsed({**GPTQ, "group_size": group_size}).packed_group_size(in_features) == expected


@pytest.mark.promise("INT4-2")
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"quant_method": "fp8"}, r"quantised \(fp8\); the native engine runs int4 checkpoints of gptq, awq"),
        ({"bits": 4}, r"quantised \(unknown\)"),
        ({**GPTQ, "bits": 8}, r"\(gptq\) has bits 8; the native engine runs 4: use another"),
        ({**GPTQ, "bits": 3}, "bits 3"),
        ({**GPTQ, "group_size": 16}, "group_size 16; .* multiples of 32, and -1"),
        ({**GPTQ, "group_size": "big"}, "group_size 'big'"),
        ({**GPTQ, "checkpoint_format": "marlin"}, "checkpoint_format 'marlin'; .* gptq and gptq_v2"),
        ({**GPTQ, "dynamic": {r"+:.*down.*": {"bits": 8}}}, "dynamic rule .*down.*leave modules out"),
        ({**GPTQ, "dynamic": {r"-:.*k_proj": {}}}, "int4 for some of model.layers.0.self_attn.q_proj, .* only"),
        ({**GPTQ, "dynamic": {r"-:(": {}}}, "is no regular expression"),
        ({**AWQ, "bits": 8}, "bits 8"),
        ({**AWQ, "version": "gemv"}, "version 'gemv'; .* gemm"),
        ({**AWQ, "zero_point": False}, "zero_point False"),
        ({**PACKED, "format": "float-quantized"}, "format 'float-quantized'; .* pack-quantized"),
        (packed(num_bits=8), "num_bits 8"),
        (packed(type="float"), "type 'float'"),
        (packed(strategy="tensor"), "strategy 'tensor'; .* group and channel"),
        ({**PACKED, "config_groups": {}}, "number of config_groups 0"),
        ({**PACKED, "kv_cache_scheme": {"num_bits": 8}}, "kv_cache_scheme"),
        (
            {**PACKED, "config_groups": {"a": {"weights": WEIGHTS, "input_activations": {"num_bits": 8}}}},
            "input_activations",
        ),
    ],
    ids=str,
)
def test_what_is_not_supported_is_refused_in_one_sentence(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        parsed(values)
    assert "\n" not in str(caught.value)
