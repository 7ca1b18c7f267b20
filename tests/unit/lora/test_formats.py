"""Reading adapters of NeMo, TensorRT-LLM and llama.cpp, against the arrangement that these programs make."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.adapter_files import (
    GGUF_ADAPTER,
    GGUF_NAMES,
    SPEC,
    Matrix,
    Pair,
    gguf_bytes,
    model_spec,
    nemo_name,
    random_pairs,
    write_nemo,
    write_trtllm,
)
from vllm_mxext.config.model_spec import ModelSpec
from vllm_mxext.errors import AdapterError
from vllm_mxext.lora.files import EMBEDDING, HEAD, LAYER_MODULES, AdapterFiles, ModuleKey
from vllm_mxext.lora.formats.trtllm import MODULE_IDS
from vllm_mxext.lora.source import inspect_adapter

pytestmark = pytest.mark.promise("LORA-FORMAT-1")
PAIRS = random_pairs(dict.fromkeys(LAYER_MODULES, 4))


def inspect(path: Path, spec: ModelSpec = SPEC, **options: Any) -> AdapterFiles:
    return inspect_adapter(path, spec, max_rank=16, **{"allows_pickle": True, **options})


def refusal(path: Path, spec: ModelSpec = SPEC, **options: Any) -> str:
    with pytest.raises(AdapterError) as caught:
        inspect(path, spec, **options)
    return str(caught.value)


def assert_holds(adapter: AdapterFiles, pairs: dict[tuple[int, str], Pair], scaling: float) -> None:
    assert {(key.layer, key.name) for key in adapter.modules} == set(pairs)
    for (layer, name), pair in pairs.items():
        module = adapter.modules[ModuleKey(layer, name)]
        assert np.array_equal(module.a.read_float32(), pair.a), name
        assert np.array_equal(module.b.read_float32(), pair.b), name
        assert module.scaling == scaling


# NeMo


def fused_qkv(parts: Sequence[Matrix]) -> Matrix:
    """Rows as Megatron has them: for each key head its query heads, itself, and its value head."""
    q, k, v = (part.reshape(-1, SPEC.head_dim, part.shape[1]) for part in parts)
    num_queries = SPEC.num_heads // SPEC.num_kv_heads
    heads = []
    for group in range(SPEC.num_kv_heads):
        heads += [q[group * num_queries + index] for index in range(num_queries)] + [k[group], v[group]]
    return np.concatenate(heads)


def nemo_pairs(layer: int = 0) -> tuple[dict[str, torch.Tensor], dict[tuple[int, str], Pair]]:
    pair = {name: PAIRS[layer, name] for name in LAYER_MODULES}
    for fused in (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")):
        for name in fused:
            pair[name] = Pair(pair[fused[0]].a, pair[name].b)
    stored = {
        "lora_kqv_adapter": (pair["q_proj"].a, fused_qkv([pair[name].b for name in ("q_proj", "k_proj", "v_proj")])),
        "lora_hto4h_adapter": (
            pair["gate_proj"].a,
            np.concatenate([pair["gate_proj"].b, pair["up_proj"].b]),
        ),
        "lora_dense_attention_adapter": (pair["o_proj"].a, pair["o_proj"].b),
        "lora_4htoh_adapter": (pair["down_proj"].a, pair["down_proj"].b),
    }
    tensors = {}
    for name, (a, b) in stored.items():
        tensors[nemo_name(layer, name, "in")] = torch.from_numpy(a)
        tensors[nemo_name(layer, name, "out")] = torch.from_numpy(b)
    return tensors, {(layer, name): one for name, one in pair.items()}


@pytest.mark.parametrize("prefix", ["./", ""])
def test_fused_layers_of_nemo_are_taken_apart(tmp_path: Path, prefix: str) -> None:
    tensors, pairs = nemo_pairs()
    path = write_nemo(tmp_path / "a.nemo", tensors, {"adapter_dim": 4, "alpha": 12}, prefix)
    adapter = inspect(path)
    assert adapter.format == "nemo"
    assert_holds(adapter, pairs, scaling=3)
    assert_holds(inspect(tmp_path), pairs, scaling=3)
    assert_holds(inspect(path.rename(tmp_path / "blob")), pairs, scaling=3)


def test_unfused_adapters_of_nemo_are_read_and_alpha_is_the_rank_by_default(tmp_path: Path) -> None:
    names = {
        "q_proj": "lora_unfused_kqv_adapter.q_adapter",
        "k_proj": "lora_unfused_kqv_adapter.k_adapter",
        "v_proj": "lora_unfused_kqv_adapter.v_adapter",
        "gate_proj": "lora_unfused_hto4h_adapter.gate_adapter",
        "up_proj": "lora_unfused_hto4h_adapter.up_adapter",
    }
    tensors = {}
    for name, stored in names.items():
        tensors[nemo_name(1, stored, "in")] = torch.from_numpy(PAIRS[1, name].a)
        tensors[nemo_name(1, stored, "out")] = torch.from_numpy(PAIRS[1, name].b)
    pairs = {(1, name): PAIRS[1, name] for name in names}
    assert_holds(inspect(write_nemo(tmp_path / "a.nemo", tensors)), pairs, scaling=1)


def add_member(path: Path, member: tarfile.TarInfo, content: bytes = b"") -> Path:
    member.size = len(content)
    with tarfile.open(path, "a:") as archive:
        archive.addfile(member, io.BytesIO(content))
    return path


def link(name: str, target: str) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = tarfile.SYMTYPE, target
    return member


def test_archives_of_nemo_that_reach_outside_are_refused(tmp_path: Path) -> None:
    def archive(name: str) -> Path:
        return write_nemo(tmp_path / name, nemo_pairs()[0])

    assert "link or a device" in refusal(add_member(archive("a.nemo"), link("more", "/etc/passwd")))
    assert "outside of the archive" in refusal(add_member(archive("b.nemo"), tarfile.TarInfo("../more")))
    assert "outside of the archive" in refusal(add_member(archive("c.nemo"), tarfile.TarInfo("/more")))
    assert "parts for several GPUs" in refusal(add_member(archive("d.nemo"), tarfile.TarInfo("mp/model_weights.ckpt")))
    packed = tmp_path / "e.nemo"
    with tarfile.open(packed, "w:gz") as file:
        file.addfile(tarfile.TarInfo("model_config.yaml"))
    assert "gzip -d" in refusal(packed)


def test_archives_of_nemo_that_are_no_lora_are_refused(tmp_path: Path) -> None:
    tensors, _ = nemo_pairs()
    path = tmp_path / "a.nemo"
    assert "--lora-allow-pickle" in refusal(write_nemo(path, tensors), allows_pickle=False)
    assert "alpha" in refusal(write_nemo(path, tensors, {"alpha": "x"}))
    assert "weight_tying" in refusal(write_nemo(path, tensors, {"weight_tying": True}))
    name = nemo_name(0, "lora_kqv_adapter", "out")
    assert "only linear_in" in refusal(write_nemo(path, {key: one for key, one in tensors.items() if key != name}))
    assert "should have 128 rows" in refusal(write_nemo(path, tensors | {name: torch.ones(96, 4)}))
    assert "not served" in refusal(write_nemo(path, tensors | {"model.norm.weight": torch.ones(4)}))
    doubled = {nemo_name(0, "lora_unfused_kqv_adapter.q_adapter", side): torch.ones(4, 4) for side in ("in", "out")}
    assert "twice" in refusal(write_nemo(path, tensors | doubled))


# TensorRT-LLM


def trtllm_row(pair: Pair) -> Matrix:
    return np.concatenate([pair.a.ravel(), pair.b.ravel()])


@pytest.mark.parametrize(("kind", "dtype"), [("<f4", "float32"), ("<f2", "float16"), ("|V2", "bfloat16")])
@pytest.mark.parametrize("flags", [(), (0,)])
def test_rows_of_tensorrt_llm_are_read(tmp_path: Path, kind: str, dtype: str, flags: tuple[int, ...]) -> None:
    rows = [(MODULE_IDS[name], layer, 4, *flags) for layer, name in PAIRS]
    adapter = inspect(write_trtllm(tmp_path, rows, [trtllm_row(pair) for pair in PAIRS.values()], kind))
    assert adapter.format == "trtllm"
    assert {module.a.dtype for module in adapter.modules.values()} == {dtype}
    assert_holds(adapter, PAIRS, scaling=1)


def test_fused_rows_of_tensorrt_llm_are_taken_apart(tmp_path: Path) -> None:
    def fused(*names: str) -> Matrix:
        return np.concatenate([PAIRS[0, names[0]].a.ravel(), *(PAIRS[0, name].b.ravel() for name in names)])

    rows = [fused("q_proj", "k_proj", "v_proj"), fused("up_proj", "gate_proj")]
    pairs = {(0, name): Pair(PAIRS[0, "q_proj"].a, PAIRS[0, name].b) for name in ("q_proj", "k_proj", "v_proj")}
    pairs |= {(0, name): Pair(PAIRS[0, "up_proj"].a, PAIRS[0, name].b) for name in ("up_proj", "gate_proj")}
    assert_holds(inspect(write_trtllm(tmp_path, [(0, 0, 4), (18, 0, 4)], rows)), pairs, scaling=1)


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        ([(1, 0, 4, 1)], "DoRA"),
        ([(13, 0, 4)], "module 13"),
        ([(1, 0, 0)], "rank 0"),
        ([(1, -1, 4)], "layer -1"),
        ([(1, 0, 5)], "too short"),
        ([(1, 7, 4)], "layer 7"),
        ([(1, 0, 4), (1, 0, 4)], "describes 2 rows"),
        ([(1, 0)], "not a table"),
    ],
)
def test_rows_of_tensorrt_llm_that_do_not_fit_are_refused(
    tmp_path: Path, rows: list[tuple[int, ...]], text: str
) -> None:
    assert text in refusal(write_trtllm(tmp_path, rows, [trtllm_row(PAIRS[0, "q_proj"])]))


def test_arrays_of_tensorrt_llm_are_never_unpickled(tmp_path: Path) -> None:
    write_trtllm(tmp_path, [(1, 0, 4)], [trtllm_row(PAIRS[0, "q_proj"])])
    np.save(tmp_path / "model.lora_weights.npy", np.array([[{}]], dtype=object), allow_pickle=True)
    assert "type object" in refusal(tmp_path)


# llama.cpp


def reordered(b: Matrix, num_heads: int) -> Matrix:
    """`LlamaModel.permute` of llama.cpp's converter, one row after the other."""
    half = b.shape[0] // num_heads // 2
    rows = [
        head * 2 * half + side * half + place for head in range(num_heads) for place in range(half) for side in (0, 1)
    ]
    return b[rows]


def gguf_tensors(pairs: dict[tuple[int, str], Pair], kind: int, *, reorders: bool) -> dict[str, tuple[int, Matrix]]:
    tensors = {}
    for (layer, name), pair in pairs.items():
        num_heads = {"q_proj": SPEC.num_heads, "k_proj": SPEC.num_kv_heads}.get(name)
        b = reordered(pair.b, num_heads) if reorders and num_heads else pair.b
        tensors[f"blk.{layer}.{GGUF_NAMES[name]}.weight.lora_a"] = (kind, pair.a)
        tensors[f"blk.{layer}.{GGUF_NAMES[name]}.weight.lora_b"] = (kind, b)
    return tensors


def write_gguf(path: Path, tensors: dict[str, tuple[int, Matrix]], **values: str | float | int) -> Path:
    named = {name.replace("_", ".", 1): value for name, value in values.items()}
    path.write_bytes(gguf_bytes({**GGUF_ADAPTER, "adapter.lora.alpha": 8.0, **named}, tensors))
    return path


@pytest.mark.parametrize("kind", [0, 1, 30])
@pytest.mark.parametrize(
    ("architecture", "name", "reorders"),
    [
        ("LlamaForCausalLM", "llama", True),
        ("MistralForCausalLM", "llama", True),
        ("Qwen2ForCausalLM", "qwen2", False),
        ("Qwen3ForCausalLM", "qwen3", False),
    ],
)
def test_adapters_of_llama_cpp_are_read_in_the_order_of_transformers(
    tmp_path: Path, kind: int, architecture: str, name: str, reorders: bool
) -> None:
    tensors = gguf_tensors(PAIRS, kind, reorders=reorders)
    path = write_gguf(tmp_path / "a.gguf", tensors, general_architecture=name)
    adapter = inspect(path, model_spec(architecture))
    assert adapter.format == "gguf"
    assert_holds(adapter, PAIRS, scaling=2)


def test_quantized_adapters_of_llama_cpp_are_dequantized(tmp_path: Path) -> None:
    pairs = random_pairs({"down_proj": 32}, layers=(0,))
    path = write_gguf(tmp_path / "a.gguf", gguf_tensors(pairs, 8, reorders=True), adapter_lora_alpha=32.0)
    module = inspect_adapter(path, SPEC, max_rank=32).modules[ModuleKey(0, "down_proj")]
    assert np.abs(module.a.read_float32() - pairs[0, "down_proj"].a).max() < 0.02
    assert np.abs(module.b.read_float32() - pairs[0, "down_proj"].b).max() < 0.02


def test_embedding_and_head_of_llama_cpp_are_read(tmp_path: Path) -> None:
    a, b = np.ones((4, 40), dtype=np.float32), np.arange(128, dtype=np.float32).reshape(32, 4)
    tensors = {
        "token_embd.weight.lora_a": (0, np.ascontiguousarray(a.T)),
        "token_embd.weight.lora_b": (0, b),
        "output.weight.lora_a": (0, np.ascontiguousarray(b.T)),
        "output.weight.lora_b": (0, np.ascontiguousarray(a.T)),
    }
    adapter = inspect(write_gguf(tmp_path / "a.gguf", tensors))
    assert np.array_equal(adapter.modules[ModuleKey(None, EMBEDDING)].a.read(), a)
    assert np.array_equal(adapter.modules[ModuleKey(None, EMBEDDING)].b.read(), b)
    assert adapter.modules[ModuleKey(None, HEAD)].b.shape == (40, 4)


def test_an_alpha_of_zero_means_no_scaling_as_in_llama_cpp(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(gguf_bytes(GGUF_ADAPTER, gguf_tensors(PAIRS, 0, reorders=True)))
    assert_holds(inspect(path), PAIRS, scaling=1)


@pytest.mark.parametrize(
    ("values", "tensors", "text"),
    [
        ({"general_type": "model"}, {}, "type 'model', not an adapter"),
        ({"adapter_type": "control_vector"}, {}, "type 'control_vector'"),
        ({"general_architecture": "gemma", "general_base_model.0.name": "Gemma"}, {}, "made for Gemma"),
        ({"adapter_alora.invocation_tokens": 7}, {}, "aLoRA"),
        ({}, {"blk.0.attn_norm.weight": (0, np.ones(32, dtype=np.float32))}, "attn_norm"),
        ({}, {"blk.0.attn_q.weight.lora_a": (0, np.ones((4, 32), dtype=np.float32))}, "only lora_a"),
        ({}, {"blk.0.attn_q.weight.lora_a": (2, np.ones((4, 32), dtype=np.float32))}, "type 2"),
        ({}, {}, "no weights"),
        ({"general_alignment": 7}, {}, "alignment"),
        ({"adapter_lora.alpha": "x"}, {}, "alpha"),
    ],
)
def test_gguf_files_that_are_no_adapters_are_refused(
    tmp_path: Path, values: dict[str, Any], tensors: dict[str, tuple[int, Matrix]], text: str
) -> None:
    assert text in refusal(write_gguf(tmp_path / "a.gguf", tensors, **values))


def test_gguf_files_of_other_versions_are_refused(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "a.gguf", {})
    content = bytearray(path.read_bytes())
    content[4] = 1
    path.write_bytes(content)
    assert "version 1" in refusal(path)
