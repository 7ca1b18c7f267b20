"""Writes int4 checkpoints of the three methods, one number at a time, from the definitions of their tools.

The packing follows AutoGPTQ 0.7 (`QuantLinear.pack`), AutoAWQ 0.2 (`WQLinear_GEMM.from_linear`) and compressed-tensors
(`pack_to_int32`); nothing is shared with the reader.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

Tensors = dict[str, torch.Tensor]

_AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]


@dataclass(frozen=True)
class Int4Format:
    """One way to store int4 weights.

    Attributes:
        name: unique.
        method: `quant_method`.
        group_size: inputs per scale; -1 = all.
        symmetric: the zero is 8.
        desc_act: inputs are grouped in a shuffled order.
        is_v2: GPTQ's zeros are stored as they are.
        plain_suffix: modules whose names end so stay plain.
    """

    name: str
    method: str
    group_size: int
    symmetric: bool = False
    desc_act: bool = False
    is_v2: bool = False
    plain_suffix: str = "lm_head"

    def quantization_config(self) -> dict[str, Any]:
        """The entry of `config.json`, as the tool writes it."""
        if self.method == "gptq":
            dynamic = {} if self.plain_suffix == "lm_head" else {"dynamic": {f"-:.*{self.plain_suffix}$": {}}}
            return {
                "quant_method": "gptq",
                "bits": 4,
                "group_size": self.group_size,
                "sym": self.symmetric,
                "desc_act": self.desc_act,
                "checkpoint_format": "gptq_v2" if self.is_v2 else "gptq",
                "lm_head": False,
                **dynamic,
            }
        if self.method == "awq":
            plain = None if self.plain_suffix == "lm_head" else [self.plain_suffix]
            return {
                "quant_method": "awq",
                "bits": 4,
                "group_size": self.group_size,
                "zero_point": True,
                "version": "gemm",
                "modules_to_not_convert": plain,
            }
        weights = {
            "num_bits": 4,
            "type": "int",
            "symmetric": self.symmetric,
            "strategy": "channel" if self.group_size == -1 else "group",
            "group_size": None if self.group_size == -1 else self.group_size,
            "actorder": "group" if self.desc_act else None,
        }
        group = {"targets": ["Linear"], "weights": weights, "input_activations": None, "output_activations": None}
        ignore = ["lm_head"] if self.plain_suffix == "lm_head" else ["lm_head", f"re:.*{self.plain_suffix}$"]
        return {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "config_groups": {"group_0": group},
            "ignore": ignore,
            "kv_cache_scheme": None,
            "quantization_status": "compressed",
        }


FORMATS = (
    Int4Format("gptq_g32", "gptq", 32),
    Int4Format("gptq_g128_symmetric", "gptq", 128, symmetric=True),
    Int4Format("gptq_columns", "gptq", -1),
    Int4Format("gptq_v2_g64", "gptq", 64, is_v2=True),
    Int4Format("gptq_desc_act", "gptq", 32, desc_act=True),
    Int4Format("gptq_plain_down", "gptq", 32, plain_suffix="down_proj"),
    Int4Format("awq_g128", "awq", 128),
    Int4Format("awq_g32_plain_down", "awq", 32, plain_suffix="down_proj"),
    Int4Format("packed_g128", "compressed-tensors", 128, symmetric=True),
    Int4Format("packed_g32_zeros", "compressed-tensors", 32),
    Int4Format("packed_columns_plain_down", "compressed-tensors", -1, symmetric=True, plain_suffix="down_proj"),
    Int4Format("packed_desc_act", "compressed-tensors", 32, symmetric=True, desc_act=True),
)
"""Every format that is read."""


def save_int4(plain: Path, folder: Path, form: Int4Format, config: Mapping[str, Any] | None = None) -> Tensors:
    """Writes an int4 version of the checkpoint in `plain`.

    Returns:
        The dequantised weights in float32, and all other tensors as they are.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors, written, exact = load_file(plain / "model.safetensors"), {}, {}
    for name, tensor in tensors.items():
        module = name.removesuffix(".weight")
        exact[name] = tensor
        if not module.endswith("_proj") or module.endswith(form.plain_suffix):
            written[name] = tensor
            continue
        parts, exact[name] = _quantised(tensor, form)
        written |= {f"{module}.{part}": value for part, value in parts.items()}
    save_file({**written, **{name: tensors[name] for name in written if name in tensors}}, folder / "model.safetensors")
    values = json.loads((plain / "config.json").read_text()) if config is None else dict(config)
    (folder / "config.json").write_text(json.dumps({**values, "quantization_config": form.quantization_config()}))
    return exact


def save_exact(plain: Path, folder: Path, exact: Tensors) -> None:
    """Writes the model that an int4 checkpoint stands for, in float32."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.float() for name, tensor in exact.items()}, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(
        json.dumps({**json.loads((plain / "config.json").read_text()), "dtype": "float32"})
    )


def _quantised(weight: torch.Tensor, form: Int4Format) -> tuple[Tensors, torch.Tensor]:
    """Returns a layer's tensors, and the weight they stand for."""
    matrix = weight.double().numpy()
    inputs = matrix.shape[1]
    group_size = inputs if form.group_size == -1 else min(form.group_size, inputs)
    index = np.arange(inputs) // group_size
    if form.desc_act:
        index = np.random.default_rng(inputs).permutation(index)
    groups = index.max() + 1
    scales = np.empty((matrix.shape[0], groups), np.float16)
    zeros = np.full((matrix.shape[0], groups), 8)
    values = np.empty(matrix.shape, np.int64)
    for group in range(groups):
        part = matrix[:, index == group]
        low, high = np.minimum(part.min(1), 0), np.maximum(part.max(1), 0)
        scales[:, group] = np.abs(part).max(1) / 7.5 if form.symmetric else (high - low) / 15
        scale = scales[:, group].astype(np.float64)
        if not form.symmetric:
            zeros[:, group] = np.clip(np.rint(-low / scale), 1, 15)
        rounded = np.rint(part / scale[:, None]) + zeros[:, group, None]
        values[:, index == group] = np.clip(rounded, 0, 15)
    exact = (values - zeros[:, index]) * scales.astype(np.float64)[:, index]
    pack = {"gptq": _gptq, "awq": _awq, "compressed-tensors": _compressed_tensors}[form.method]
    parts = pack(values, zeros, scales, index, form)
    return {name: torch.from_numpy(np.ascontiguousarray(part)) for name, part in parts.items()}, torch.tensor(
        exact, dtype=torch.float32
    )


def _gptq(values: Any, zeros: Any, scales: Any, index: Any, form: Int4Format) -> dict[str, Any]:
    by_input = values.T.astype(np.uint32)
    qweight = np.zeros((by_input.shape[0] // 8, by_input.shape[1]), np.uint32)
    for row in range(qweight.shape[0]):
        for nibble in range(8):
            qweight[row] |= by_input[8 * row + nibble] << np.uint32(4 * nibble)
    stored = (zeros.T - (0 if form.is_v2 else 1)).astype(np.uint32)
    qzeros = np.zeros((stored.shape[0], stored.shape[1] // 8), np.uint32)
    for column in range(qzeros.shape[1]):
        for nibble in range(8):
            qzeros[:, column] |= stored[:, 8 * column + nibble] << np.uint32(4 * nibble)
    return {
        "qweight": qweight.view(np.int32),
        "qzeros": qzeros.view(np.int32),
        "scales": scales.T,
        "g_idx": index.astype(np.int32),
        "bias": np.zeros(values.shape[0], np.float16),
    }


def _awq(values: Any, zeros: Any, scales: Any, index: Any, form: Int4Format) -> dict[str, Any]:
    def packed(matrix: Any) -> Any:
        words = np.zeros((matrix.shape[0], matrix.shape[1] // 8), np.uint32)
        for column in range(words.shape[1]):
            for nibble in range(8):
                words[:, column] |= matrix[:, 8 * column + _AWQ_ORDER[nibble]].astype(np.uint32) << np.uint32(
                    4 * nibble
                )
        return words.view(np.int32)

    return {"qweight": packed(values.T), "qzeros": packed(zeros.T), "scales": scales.T}


def _compressed_tensors(values: Any, zeros: Any, scales: Any, index: Any, form: Int4Format) -> dict[str, Any]:
    def packed(signed: Any) -> Any:
        unsigned = (signed + 8).astype(np.uint32)
        words = np.zeros((unsigned.shape[0], -(-unsigned.shape[1] // 8)), np.uint32)
        for column in range(unsigned.shape[1]):
            words[:, column // 8] |= unsigned[:, column] << np.uint32(4 * (column % 8))
        return words.view(np.int32)

    parts = {
        "weight_packed": packed(values - 8),
        "weight_scale": scales,
        "weight_shape": np.array(values.shape, np.int64),
    }
    if not form.symmetric:
        parts["weight_zero_point"] = packed((zeros - 8).T).T
    if form.desc_act:
        parts["weight_g_idx"] = index.astype(np.int32)
    return parts
