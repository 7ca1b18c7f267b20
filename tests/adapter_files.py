"""Makes adapters in every format that is read, from the same random matrices."""

from __future__ import annotations

import io
import json
import struct
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import yaml
from safetensors.torch import save_file

from vllm_mxext.config.model_spec import ModelSpec, parse_model_spec

Matrix = npt.NDArray[np.float32]
PREFIX = "base_model.model.model.layers"
BLOCKS = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj", "o_proj"), "self_attn"),
    **dict.fromkeys(("gate_proj", "up_proj", "down_proj"), "mlp"),
}
GGUF_NAMES = {
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "o_proj": "attn_output",
    "gate_proj": "ffn_gate",
    "up_proj": "ffn_up",
    "down_proj": "ffn_down",
}


def model_spec(architecture: str = "LlamaForCausalLM", **changes: Any) -> ModelSpec:
    config = {
        "architectures": [architecture],
        "vocab_size": 40,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 64,
    }
    return replace(parse_model_spec(config), **changes)


SPEC = model_spec()
SHAPES = {
    "q_proj": (64, 32),
    "k_proj": (32, 32),
    "v_proj": (32, 32),
    "o_proj": (32, 64),
    "gate_proj": (64, 32),
    "up_proj": (64, 32),
    "down_proj": (32, 64),
}


@dataclass
class Pair:
    a: Matrix
    b: Matrix


def random_pairs(ranks: Mapping[str, int], layers: Sequence[int] = (0, 1)) -> dict[tuple[int, str], Pair]:
    """Low-rank pairs for some modules, values that bfloat16 holds exactly."""
    generator = np.random.default_rng(7)

    def matrix(*shape: int) -> Matrix:
        return generator.integers(-127, 128, shape).astype(np.float32) / 64

    return {
        (layer, name): Pair(matrix(rank, SHAPES[name][1]), matrix(SHAPES[name][0], rank))
        for layer in layers
        for name, rank in ranks.items()
    }


def peft_tensors(pairs: Mapping[tuple[int, str], Pair], dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    tensors = {}
    for (layer, name), pair in pairs.items():
        module = f"{PREFIX}.{layer}.{BLOCKS[name]}.{name}"
        tensors[f"{module}.lora_A.weight"] = torch.from_numpy(pair.a).to(dtype)
        tensors[f"{module}.lora_B.weight"] = torch.from_numpy(pair.b).to(dtype)
    return tensors


def write_peft(folder: Path, tensors: Mapping[str, torch.Tensor], *, is_bin: bool = False, **config: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    content = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], **config}
    (folder / "adapter_config.json").write_text(json.dumps(content))
    if is_bin:
        torch.save(dict(tensors), folder / "adapter_model.bin")
    else:
        save_file(dict(tensors), folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return folder


def plain_adapter(folder: Path, rank: int = 4, **config: Any) -> Path:
    return write_peft(folder, peft_tensors(random_pairs({"q_proj": rank, "down_proj": rank})), r=rank, **config)


def nemo_name(layer: int, adapter: str, side: str) -> str:
    block = "mlp" if "4h" in adapter else "self_attention"
    return f"model.decoder.layers.{layer}.{block}.adapter_layer.{adapter}.linear_{side}.weight"


def write_nemo(
    path: Path, tensors: Mapping[str, torch.Tensor], lora: Mapping[str, Any] | None = None, prefix: str = "./"
) -> Path:
    weights = io.BytesIO()
    torch.save(dict(tensors), weights)
    config = yaml.safe_dump({"peft": {"peft_scheme": "lora", "lora_tuning": dict(lora or {})}}).encode()
    with tarfile.open(path, "w:") as archive:
        for name, content in (("model_config.yaml", config), ("model_weights.ckpt", weights.getvalue())):
            member = tarfile.TarInfo(prefix + name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def write_trtllm(folder: Path, rows: Sequence[tuple[int, ...]], weights: Sequence[Matrix], kind: str = "<f4") -> Path:
    """As `hf_lora_convert.py` does: rows of flattened A and B, padded to one length."""
    folder.mkdir(parents=True, exist_ok=True)
    length = max(row.size for row in weights)
    table = np.stack([np.pad(row, (0, length - row.size)) for row in weights])[None]
    if kind == "|V2":
        table = torch.from_numpy(table).to(torch.bfloat16).view(torch.int16).numpy().view(np.dtype("V2"))
    np.save(folder / "model.lora_weights.npy", table if kind == "|V2" else table.astype(kind))
    np.save(folder / "model.lora_config.npy", np.array([rows], dtype=np.int32))
    return folder


GGUF_ADAPTER = {"general.type": "adapter", "general.architecture": "llama", "adapter.type": "lora"}


def gguf_bytes(values: Mapping[str, str | float | int], tensors: Mapping[str, tuple[int, Matrix]]) -> bytes:
    """A GGUF file; tensors by name as (type, values), where types are F32 = 0, F16 = 1, Q8_0 = 8 and BF16 = 30."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    header = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(values))
    for name, value in values.items():
        header += text(name)
        if isinstance(value, str):
            header += struct.pack("<I", 8) + text(value)
        else:
            header += struct.pack("<If", 6, value) if isinstance(value, float) else struct.pack("<II", 4, value)
    data = b""
    for name, (kind, matrix) in tensors.items():
        header += text(name) + struct.pack("<I", matrix.ndim) + struct.pack(f"<{matrix.ndim}Q", *matrix.shape[::-1])
        header += struct.pack("<IQ", kind, len(data))
        data += gguf_data(kind, matrix)
        data += b"\0" * (-len(data) % 32)
    return header + b"\0" * (-len(header) % 32) + data


def gguf_data(kind: int, matrix: Matrix) -> bytes:
    if kind == 8:
        blocks = matrix.reshape(-1, 32)
        scales = (np.abs(blocks).max(axis=1) / 127).astype(np.float16)
        values = np.round(blocks / np.maximum(scales.astype(np.float32), 1e-6)[:, None]).astype(np.int8)
        return b"".join(scale.tobytes() + row.tobytes() for scale, row in zip(scales, values, strict=True))
    if kind == 30:
        return (matrix.view(np.uint32) >> 16).astype(np.uint16).tobytes()
    return matrix.astype(np.float16 if kind == 1 else np.float32).tobytes()
