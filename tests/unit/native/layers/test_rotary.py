"""The rotary table against transformers' own frequencies."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from vllm_mxext.config.model_spec import RopeSpec, parse_model_spec
from vllm_mxext.native.layers.rotary import cos_sin_table, inverse_frequencies

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}
VARIANTS: list[dict[str, Any]] = [
    {"rope_type": "default"},
    {"rope_type": "linear", "factor": 3.0},
    {"rope_type": "dynamic", "factor": 2.0},
    {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 1024,
    },
    YARN,
    {**YARN, "truncate": False},
    {**YARN, "mscale": 1.0, "mscale_all_dim": 0.5},
    {**YARN, "mscale": 1.0},
    {**YARN, "attention_factor": 0.7},
    {**YARN, "beta_fast": 8, "beta_slow": 2},
    {**YARN, "factor": 1.0},
    {"rope_type": "yarn", "factor": None, "original_max_position_embeddings": 1024},
]


@pytest.mark.promise("LOAD-1")
@pytest.mark.parametrize("theta", [10_000.0, 1_000_000])
@pytest.mark.parametrize("head_dim", [16, 64, 128])
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_frequencies_and_table_are_those_of_transformers(variant: dict[str, Any], head_dim: int, theta: float) -> None:
    values = {
        "vocab_size": 32,
        "hidden_size": 4 * head_dim,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "head_dim": head_dim,
        "max_position_embeddings": 4096,
        "rope_parameters": {"rope_theta": theta, **variant},
    }
    theirs = LlamaRotaryEmbedding(LlamaConfig(**{**values, "rope_parameters": dict(values["rope_parameters"])}))
    rope = parse_model_spec({**values, "architectures": ["LlamaForCausalLM"]}).rope
    inv_freq, attention_factor = inverse_frequencies(rope, head_dim)
    assert torch.equal(inv_freq, theirs.inv_freq)
    assert attention_factor == pytest.approx(theirs.attention_scaling, rel=1e-12)

    positions = torch.arange(4096)
    cos, sin = theirs(torch.empty(1, dtype=torch.float32), positions[None])
    half = head_dim // 2
    table = cos_sin_table(rope, head_dim, 4096, torch.device("cpu"))
    assert table.shape == (4096, head_dim)
    torch.testing.assert_close(table, torch.cat((cos[0, :, :half], sin[0, :, :half]), dim=1), rtol=0, atol=1e-6)


def test_scaling_without_an_original_length_is_our_own_bug() -> None:
    with pytest.raises(ValueError, match="original_max_position_embeddings"):
        inverse_frequencies(RopeSpec(rope_type="yarn", factor=2.0), 16)
