"""Writing adapters in other layouts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.adapter_files import PREFIX, SPEC, model_spec, peft_tensors, plain_adapter, random_pairs, write_peft
from vllm_mxext.config.model_spec import ModelSpec
from vllm_mxext.errors import AdapterError
from vllm_mxext.lora.convert import write_adapter
from vllm_mxext.lora.files import LAYER_MODULES, AdapterFiles, StoredTensor
from vllm_mxext.lora.source import inspect_adapter

pytestmark = pytest.mark.promise("LORA-FORMAT-4")
Q0 = f"{PREFIX}.0.self_attn.q_proj"
K1 = f"{PREFIX}.1.self_attn.k_proj"
EMBED, HEAD = "base_model.model.model.embed_tokens", "base_model.model.lm_head"


def inspect(path: Path, spec: ModelSpec = SPEC) -> AdapterFiles:
    return inspect_adapter(path, spec, max_rank=16)


def tensors_of(adapter: AdapterFiles) -> dict[str, StoredTensor]:
    found = {f"saved {name}": tensor for name, tensor in adapter.saved.items()}
    found |= {f"bias of {key}": tensor for key, tensor in adapter.base_biases.items()}
    for key, module in adapter.modules.items():
        for part in ("a", "b", "b_bias", "magnitude", "base_bias"):
            if getattr(module, part) is not None:
                found[f"{part} of {key}"] = getattr(module, part)
    return found


def assert_equal(left: AdapterFiles, right: AdapterFiles) -> None:
    stored, again = tensors_of(left), tensors_of(right)
    assert stored.keys() == again.keys()
    for name, tensor in stored.items():
        assert (tensor.shape, tensor.dtype) == (again[name].shape, again[name].dtype)
        assert tensor.read().tobytes() == again[name].read().tobytes(), name
    for key, module in left.modules.items():
        assert right.modules[key].scaling == pytest.approx(module.scaling, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_peft_to_tensorrt_llm_and_back_keeps_every_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    ranks = dict(zip(LAYER_MODULES, (1, 4, 4, 2, 3, 4, 16), strict=True))
    original = inspect(
        write_peft(
            tmp_path / "a",
            peft_tensors(random_pairs(ranks), dtype),
            rank_pattern=ranks,
            alpha_pattern=ranks,
        )
    )
    write_adapter(original, tmp_path / "b", "trtllm")
    middle = inspect(tmp_path / "b")
    assert middle.format == "trtllm"
    assert_equal(original, middle)
    write_adapter(middle, tmp_path / "c", "huggingface")
    assert_equal(original, inspect(tmp_path / "c"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_scaling_goes_into_b_where_the_layout_has_no_place_for_it(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = peft_tensors(random_pairs({"q_proj": 3}), dtype)
    write_adapter(inspect(write_peft(tmp_path / "a", tensors, r=3, lora_alpha=8)), tmp_path / "b", "trtllm")
    for key, module in inspect(tmp_path / "b").modules.items():
        name = f"{PREFIX}.{key.layer}.self_attn.q_proj.lora_B.weight"
        expected = (tensors[name].float() * np.float32(8 / 3)).to(dtype)
        assert module.scaling == 1
        assert np.array_equal(module.b.read_float32(), expected.float().numpy())


def everything() -> dict[str, torch.Tensor]:
    return {
        f"{Q0}.lora_A.weight": torch.randn(4, 32),
        f"{Q0}.lora_B.weight": torch.randn(64, 4).bfloat16(),
        f"{Q0}.base_layer.bias": torch.randn(64),
        f"{K1}.bias": torch.randn(32),
        f"{EMBED}.weight": torch.randn(40, 32).half(),
        f"{HEAD}.lora_A.weight": torch.randn(4, 32),
        f"{HEAD}.lora_B.weight": torch.randn(40, 4),
    }


@pytest.mark.parametrize(
    ("changes", "config"),
    [
        ({}, {"bias": "all", "modules_to_save": ["embed_tokens"]}),
        (
            {f"{Q0}.lora_B.bias": torch.randn(64)},
            {"lora_bias": True, "bias": "all", "modules_to_save": ["embed_tokens"]},
        ),
        (
            {f"{Q0}.lora_magnitude_vector": torch.ones(64), f"{HEAD}.lora_magnitude_vector": torch.ones(40)},
            {"use_dora": True, "bias": "all", "modules_to_save": ["embed_tokens"]},
        ),
    ],
)
@pytest.mark.parametrize("is_tied", [False, True])
def test_peft_to_peft_keeps_everything(
    tmp_path: Path, changes: dict[str, torch.Tensor], config: dict[str, Any], is_tied: bool
) -> None:
    spec = model_spec("Qwen2ForCausalLM", has_tied_embeddings=is_tied)
    path = write_peft(tmp_path / "a", everything() | changes, use_rslora=True, base_model_name_or_path="x/y", **config)
    original = inspect(path, spec)
    write_adapter(original, tmp_path / "b", "huggingface")
    again = inspect(tmp_path / "b", spec)
    assert_equal(original, again)
    assert again.base_model_name == "x/y"


def test_an_adapted_embedding_is_written_for_peft(tmp_path: Path) -> None:
    tensors = {f"{EMBED}.lora_embedding_A": torch.randn(4, 40), f"{EMBED}.lora_embedding_B": torch.randn(32, 4)}
    original = inspect(write_peft(tmp_path / "a", tensors))
    write_adapter(original, tmp_path / "b", "huggingface")
    assert_equal(original, inspect(tmp_path / "b"))


@pytest.mark.parametrize(
    ("changes", "config", "text"),
    [
        ({f"{EMBED}.weight": torch.ones(40, 32)}, {}, "a replaced embed_tokens"),
        (
            {f"{HEAD}.lora_A.weight": torch.ones(4, 32), f"{HEAD}.lora_B.weight": torch.ones(40, 4)},
            {},
            "adapted lm_head",
        ),
        ({f"{Q0}.lora_magnitude_vector": torch.ones(64)}, {"use_dora": True}, "DoRA"),
        ({f"{Q0}.lora_B.bias": torch.ones(64)}, {"lora_bias": True}, "a bias of q_proj of layer 0"),
        ({f"{K1}.bias": torch.ones(32)}, {"bias": "all"}, "a bias of k_proj of layer 1"),
    ],
)
def test_what_tensorrt_llm_has_no_place_for_is_refused(
    tmp_path: Path, changes: dict[str, torch.Tensor], config: dict[str, Any], text: str
) -> None:
    tensors = {f"{Q0}.lora_A.weight": torch.ones(4, 32), f"{Q0}.lora_B.weight": torch.ones(64, 4)} | changes
    adapter = inspect(write_peft(tmp_path / "a", tensors, **config), model_spec("Qwen2ForCausalLM"))
    with pytest.raises(AdapterError, match=text):
        write_adapter(adapter, tmp_path / "b", "trtllm")
    assert not (tmp_path / "b").exists()


def test_nothing_is_overwritten_and_nothing_half_written_stays(tmp_path: Path) -> None:
    adapter = inspect(plain_adapter(tmp_path / "a"))
    with pytest.raises(AdapterError, match="exists already"):
        write_adapter(adapter, tmp_path / "a", "huggingface")
    large = peft_tensors(random_pairs({"q_proj": 4}), torch.float16)
    large[f"{Q0}.lora_B.weight"].fill_(60_000)
    for form in ("trtllm", "huggingface"):
        adapter = inspect(write_peft(tmp_path / "large", large))
        if form == "huggingface":
            (tmp_path / "large" / "adapter_model.safetensors").unlink()
        with pytest.raises(AdapterError, match="could not be written"):
            write_adapter(adapter, tmp_path / "b", form)
        assert not (tmp_path / "b").exists()
