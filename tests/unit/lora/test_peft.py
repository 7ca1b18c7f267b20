"""Reading adapters of PEFT."""

from __future__ import annotations

import json
import math
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.adapter_files import (
    PREFIX,
    SPEC,
    model_spec,
    peft_tensors,
    plain_adapter,
    random_pairs,
    write_peft,
)
from vllm_mxext.config.model_spec import ModelSpec
from vllm_mxext.errors import AdapterError
from vllm_mxext.lora.files import EMBEDDING, HEAD, LAYER_MODULES, AdapterFiles, ModuleKey
from vllm_mxext.lora.source import inspect_adapter

pytestmark = pytest.mark.promise("LORA-FORMAT-1", "LORA-FORMAT-2")
Q0 = f"{PREFIX}.0.self_attn.q_proj"
QWEN2 = model_spec("Qwen2ForCausalLM")
TIED = model_spec(has_tied_embeddings=True)


def inspect(path: Path, spec: ModelSpec = SPEC, **options: Any) -> AdapterFiles:
    return inspect_adapter(path, spec, max_rank=options.pop("max_rank", 16), **options)


def refusal(path: Path, spec: ModelSpec = SPEC, **options: Any) -> str:
    with pytest.raises(AdapterError) as caught:
        inspect(path, spec, **options)
    assert caught.value.param == "lora_path"
    return str(caught.value)


def q_tensors(rank: int = 4) -> dict[str, torch.Tensor]:
    return {f"{Q0}.lora_A.weight": torch.randn(rank, 32), f"{Q0}.lora_B.weight": torch.randn(64, rank)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("is_bin", [False, True])
def test_all_linear_layers_are_read_as_they_were_saved(tmp_path: Path, dtype: torch.dtype, is_bin: bool) -> None:
    pairs = random_pairs(dict.fromkeys(LAYER_MODULES, 4))
    write_peft(tmp_path, peft_tensors(pairs, dtype), is_bin=is_bin, target_modules="all-linear")
    adapter = inspect(tmp_path, allows_pickle=is_bin)
    assert adapter.rank == 4
    assert {(key.layer, key.name) for key in adapter.modules} == set(pairs)
    for (layer, name), pair in pairs.items():
        module = adapter.modules[ModuleKey(layer, name)]
        assert module.a.dtype == str(dtype).removeprefix("torch.")
        assert np.array_equal(module.a.read_float32(), pair.a)
        assert np.array_equal(module.b.read_float32(), pair.b)
        assert module.scaling == 2


@pytest.mark.parametrize(
    "prefix",
    [
        "base_model.model.model.",
        "base_model.model.",
        "base_model.model.model.language_model.",
        "base_model.model.language_model.model.",
        "model.",
        "",
    ],
)
@pytest.mark.parametrize("name", ["", ".default", ".my-adapter"])
def test_modules_are_found_by_every_spelling_of_their_names(tmp_path: Path, prefix: str, name: str) -> None:
    module = f"{prefix}layers.1.mlp.up_proj"
    tensors = {f"{module}.lora_A{name}.weight": torch.ones(4, 32), f"{module}.lora_B{name}.weight": torch.ones(64, 4)}
    assert list(inspect(write_peft(tmp_path, tensors)).modules) == [ModuleKey(1, "up_proj")]


def test_rank_and_alpha_patterns_are_matched_as_peft_matches_them(tmp_path: Path) -> None:
    ranks = {"q_proj": 4, "k_proj": 3, "up_proj": 2}
    tensors = peft_tensors(random_pairs(ranks, layers=(0,)) | random_pairs(ranks | {"q_proj": 7}, layers=(1,)))
    write_peft(
        tmp_path,
        tensors,
        r=4,
        lora_alpha=8,
        rank_pattern={"layers.1.self_attn.q_proj": 7, "k_proj": 3, r"^model\.layers\.\d\.mlp\..*_proj": 2},
        alpha_pattern={"proj": 99, "self_attn.k_proj": 6, r".*\.layers\.(0|5)\.self_attn\.q_proj": 1},
    )
    scalings = {(key.layer, key.name): module.scaling for key, module in inspect(tmp_path).modules.items()}
    assert scalings == {
        (0, "q_proj"): 1 / 4,
        (1, "q_proj"): 8 / 7,
        (0, "k_proj"): 2,
        (1, "k_proj"): 2,
        (0, "up_proj"): 4,
        (1, "up_proj"): 4,
    }


def test_rslora_divides_by_the_root_of_each_rank(tmp_path: Path) -> None:
    write_peft(tmp_path, q_tensors(9), r=9, lora_alpha=6, use_rslora=True)
    assert inspect(tmp_path).modules[ModuleKey(0, "q_proj")].scaling == 6 / math.sqrt(9)


@pytest.mark.parametrize("spelling", ["", ".weight", ".default", ".default.weight"])
def test_magnitudes_of_dora_are_found_by_every_spelling(tmp_path: Path, spelling: str) -> None:
    tensors = q_tensors() | {f"{Q0}.lora_magnitude_vector{spelling}": torch.full((64,), 3.0)}
    magnitude = inspect(write_peft(tmp_path, tensors, use_dora=True)).modules[ModuleKey(0, "q_proj")].magnitude
    assert magnitude is not None
    assert magnitude.read_float32().tolist() == [3] * 64


def test_biases_of_the_base_replace_and_biases_of_b_are_added(tmp_path: Path) -> None:
    tensors = q_tensors() | {
        f"{Q0}.base_layer.bias": torch.ones(64),
        f"{Q0}.lora_B.bias": torch.zeros(64),
        f"{PREFIX}.1.self_attn.k_proj.bias": torch.ones(32),
    }
    adapter = inspect(write_peft(tmp_path, tensors, bias="all", lora_bias=True), QWEN2)
    module = adapter.modules[ModuleKey(0, "q_proj")]
    assert module.base_bias is not None
    assert module.b_bias is not None
    assert list(adapter.base_biases) == [ModuleKey(1, "k_proj")]
    assert "q_proj of layer 0, which has none" in refusal(tmp_path)


@pytest.mark.parametrize("spelling", ["weight", "modules_to_save.weight", "modules_to_save.default.weight"])
def test_replaced_embedding_and_head_are_read(tmp_path: Path, spelling: str) -> None:
    tensors = q_tensors() | {
        f"base_model.model.model.embed_tokens.{spelling}": torch.ones(40, 32),
        f"base_model.model.lm_head.{spelling}": torch.zeros(40, 32),
    }
    adapter = inspect(write_peft(tmp_path, tensors, modules_to_save=["embed_tokens", "lm_head"]))
    assert adapter.saved.keys() == {EMBEDDING, HEAD}
    assert adapter.saved[EMBEDDING].read_float32().mean() == 1
    assert adapter.num_bytes == 4 * (4 * (32 + 64) + 2 * 40 * 32)


def embedding_tensors(spelling: str = "") -> dict[str, torch.Tensor]:
    name = "base_model.model.model.embed_tokens"
    a, b = torch.randn(4, 40), torch.randn(32, 4)
    return {f"{name}.lora_embedding_A{spelling}": a, f"{name}.lora_embedding_B{spelling}": b}


@pytest.mark.parametrize("spelling", ["", ".default"])
def test_an_adapted_embedding_is_read_and_the_copy_of_its_base_is_not(tmp_path: Path, spelling: str) -> None:
    tensors = embedding_tensors(spelling) | {
        "base_model.model.model.embed_tokens.base_layer.weight": torch.ones(40, 32)
    }
    adapter = inspect(write_peft(tmp_path, tensors))
    assert list(adapter.modules) == [ModuleKey(None, EMBEDDING)]
    assert not adapter.saved


def test_of_tied_embeddings_only_the_one_that_is_named_changes(tmp_path: Path) -> None:
    assert list(inspect(write_peft(tmp_path / "a", embedding_tensors()), TIED).modules) == [ModuleKey(None, EMBEDDING)]
    saved = {"base_model.model.model.embed_tokens.weight": torch.ones(40, 32)}
    path = write_peft(tmp_path / "b", saved, modules_to_save=["embed_tokens"])
    assert inspect(path, TIED).saved.keys() == {EMBEDDING}


def test_tied_embeddings_stay_tied_where_peft_was_told_so(tmp_path: Path) -> None:
    tensors = embedding_tensors()
    adapter = inspect(write_peft(tmp_path / "a", tensors, ensure_weight_tying=True), TIED)
    head = adapter.modules[ModuleKey(None, HEAD)]
    assert np.array_equal(head.a.read(), tensors["base_model.model.model.embed_tokens.lora_embedding_B"].numpy().T)
    assert np.array_equal(head.b.read(), tensors["base_model.model.model.embed_tokens.lora_embedding_A"].numpy().T)
    saved = {"base_model.model.model.embed_tokens.weight": torch.ones(40, 32)}
    path = write_peft(tmp_path / "b", saved, modules_to_save=["embed_tokens"], ensure_weight_tying=True)
    assert inspect(path, TIED).saved.keys() == {EMBEDDING, HEAD}


def test_an_embedding_saved_because_it_was_resized_is_the_head_of_a_tied_model_too(tmp_path: Path) -> None:
    tensors = q_tensors() | {"base_model.model.model.embed_tokens.weight": torch.ones(40, 32)}
    assert inspect(write_peft(tmp_path, tensors), TIED).saved.keys() == {EMBEDDING, HEAD}
    assert inspect(tmp_path, SPEC).saved.keys() == {EMBEDDING}


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"peft_type": "LOHA"}, "type LOHA"),
        ({"peft_type": "IA3"}, "type IA3"),
        ({"alora_invocation_tokens": [1]}, "aLoRA"),
        ({"layer_replication": [[0, 1]]}, "layer_replication"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"target_parameters": ["experts"]}, "target_parameters"),
        ({"init_lora_weights": "pissa_niter_4"}, "path_initial_model_for_weight_conversion"),
        ({"r": 8}, "rank 8"),
        ({"r": 0}, "r must be a positive"),
        ({"lora_alpha": "much"}, "lora_alpha must be a number"),
        ({"lora_alpha": math.inf}, "lora_alpha must be a number"),
        ({"rank_pattern": {"(a+)+": 1}}, "not understood"),
        ({"rank_pattern": {"[": 1}}, "not understood"),
        ({"rank_pattern": [1]}, "rank_pattern must be"),
        ({"use_dora": True}, "holds no magnitude"),
        ({"modules_to_save": 1}, "modules_to_save must be"),
    ],
)
def test_kinds_that_are_not_served_are_refused_by_name(tmp_path: Path, config: dict[str, Any], text: str) -> None:
    assert text in refusal(write_peft(tmp_path, q_tensors(), **config))


@pytest.mark.parametrize(
    ("tensors", "text"),
    [
        ({f"{Q0}.lora_A.weight": torch.ones(4, 32)}, "A of q_proj of layer 0 without its B"),
        ({f"{Q0}.lora_B.weight": torch.ones(64, 4)}, "B of q_proj of layer 0 without its A"),
        (q_tensors() | {f"{Q0}.lora_magnitude_vector": torch.ones(64)}, "without DoRA"),
        (q_tensors() | {f"{Q0}.lora_A.other.weight": torch.ones(4, 32)}, "more than once"),
        (q_tensors() | {f"{Q0}.lora_diag": torch.ones(4)}, "lora_diag, a part"),
        (q_tensors() | {f"{Q0}.weight": torch.ones(64, 32)}, "replaces base_model"),
        (q_tensors() | {"base_model.model.model.norm.weight": torch.ones(32)}, "model.norm.weight, and only embed"),
        ({f"{PREFIX}.2.mlp.up_proj.lora_A.weight": torch.ones(4, 32)}, "without its B"),
        (
            {"base_model.model.transformer.h.0.attn.c_attn.lora_A.weight": torch.ones(4, 32)},
            "made for some/model",
        ),
        ({f"{PREFIX}.0.mlp.q_proj.lora_A.weight": torch.ones(4, 32)}, "mlp.q_proj.lora_A.weight, a part"),
        (embedding_tensors() | {"model.embed_tokens.weight": torch.ones(40, 32)}, "both replaces embed_tokens"),
        ({}, "no weights"),
        ({f"{Q0}.lora_A.weight": torch.ones(4, 32, dtype=torch.float64)}, "as F64"),
        ({"model.embed_tokens.weight": torch.ones(41, 32)}, "embed_tokens is 41 x 32, the model's 40 x 32"),
    ],
)
def test_tensors_that_make_no_adapter_are_refused(tmp_path: Path, tensors: dict[str, torch.Tensor], text: str) -> None:
    assert text in refusal(write_peft(tmp_path, tensors, base_model_name_or_path="some/model"))


@pytest.mark.parametrize(
    ("a", "b", "text"),
    [
        ((4, 33), (64, 4), "A of q_proj of layer 0 is 4 x 33 instead of 4 x 32; it says that it was made for some/m"),
        ((4, 32), (63, 4), "B of q_proj of layer 0 is 63 x 4 instead of 64 x 4"),
        ((4,), (64, 4), "A of q_proj of layer 0 is 4 instead of 4 x 32"),
    ],
)
def test_an_adapter_of_another_model_is_refused_with_its_name(
    tmp_path: Path, a: tuple[int, ...], b: tuple[int, ...], text: str
) -> None:
    tensors = {f"{Q0}.lora_A.weight": torch.ones(a), f"{Q0}.lora_B.weight": torch.ones(b)}
    assert text in refusal(write_peft(tmp_path, tensors, base_model_name_or_path="some/model"))


def test_layers_that_the_model_does_not_have_are_refused(tmp_path: Path) -> None:
    write_peft(tmp_path, peft_tensors(random_pairs({"q_proj": 4}, layers=(5,))))
    assert "it changes layer 5, and the last layer is 1" in refusal(tmp_path)


def test_a_rank_over_the_limit_names_the_flag(tmp_path: Path) -> None:
    plain_adapter(tmp_path, rank=17)
    assert "rank 17, and at most 16 is served; start the server with --max-lora-rank 17" in refusal(tmp_path)
    assert inspect(tmp_path, max_rank=17).rank == 17


def test_pickles_are_read_only_when_allowed(tmp_path: Path) -> None:
    write_peft(tmp_path, q_tensors(), is_bin=True)
    assert "start the server with --lora-allow-pickle" in refusal(tmp_path)
    assert inspect(tmp_path, allows_pickle=True).rank == 4


def test_parameters_and_slices_of_storages_are_read_from_torch_archives(tmp_path: Path) -> None:
    whole = torch.randn(6, 32)
    tensors = {
        f"{Q0}.lora_A.weight": torch.nn.Parameter(whole[2:]),
        f"{Q0}.lora_B.weight": torch.ones(64, 4),
    }
    adapter = inspect(write_peft(tmp_path, tensors, is_bin=True), allows_pickle=True)
    assert np.array_equal(adapter.modules[ModuleKey(0, "q_proj")].a.read(), whole[2:].numpy())


class _Runs:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch {}",)


@pytest.mark.parametrize(
    "content",
    [
        {"a": _Runs()},
        {"a": torch.nn.Linear(2, 2)},
        {"a": [torch.ones(2)]},
        {"a": torch.ones(2, 2).T[:, :1]},
        {"a": torch.ones(3, 2).T},
        {1: torch.ones(2)},
        {"a": "text"},
        [torch.ones(2)],
        {"a": torch.ones(2, dtype=torch.int64)},
    ],
)
def test_a_pickle_can_neither_run_anything_nor_hold_anything_else(tmp_path: Path, content: object) -> None:
    write_peft(tmp_path, q_tensors(), is_bin=True)
    torch.save(content, tmp_path / "adapter_model.bin")
    refusal(tmp_path, allows_pickle=True)


def test_other_pickles_and_old_archives_are_refused(tmp_path: Path) -> None:
    write_peft(tmp_path, q_tensors(), is_bin=True)
    path = tmp_path / "adapter_model.bin"
    torch.save(q_tensors(), path, _use_new_zipfile_serialization=False)
    assert "torch 1.6 or later" in refusal(tmp_path, allows_pickle=True)
    path.write_bytes(pickle.dumps(_Runs()))
    assert "torch 1.6 or later" in refusal(tmp_path, allows_pickle=True)


def test_compressed_members_of_torch_archives_are_refused(tmp_path: Path) -> None:
    write_peft(tmp_path, q_tensors(), is_bin=True)
    path = tmp_path / "adapter_model.bin"
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    assert "compressed" in refusal(tmp_path, allows_pickle=True)


def test_a_description_that_is_not_json_is_refused(tmp_path: Path) -> None:
    plain_adapter(tmp_path)
    for content in ("{", "[]", "[" * 100_000, json.dumps({"r": 10**30})):
        (tmp_path / "adapter_config.json").write_text(content)
        refusal(tmp_path)
