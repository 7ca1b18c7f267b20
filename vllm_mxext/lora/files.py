"""`AdapterFiles`: what the files of an adapter hold, in one form whatever their format; weights are read later."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

AdapterFormat = Literal["huggingface", "nemo", "trtllm", "gguf"]
StoredDType = Literal["float32", "float16", "bfloat16"]

LAYER_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Linear layers of every decoder layer, by the names of the glossary."""

EMBEDDING = "embed_tokens"
HEAD = "lm_head"

ITEM_BYTES: dict[StoredDType, int] = {"float32": 4, "float16": 2, "bfloat16": 2}
"""Bytes of an element."""


class ModuleKey(NamedTuple):
    """A part of the model that an adapter can change.

    Attributes:
        layer: index of the decoder layer; None for the embedding and the head.
        name: one of `LAYER_MODULES`, or `EMBEDDING` or `HEAD`.
    """

    layer: int | None
    name: str


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor in a file.

    Attributes:
        shape: its shape.
        dtype: its type.
        read: reads it, `shape`, C order, native byte order; bfloat16 comes as uint16.
    """

    shape: tuple[int, ...]
    dtype: StoredDType
    read: Callable[[], npt.NDArray[Any]] = field(repr=False, compare=False)

    @property
    def num_bytes(self) -> int:
        """Bytes of its elements."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]

    def read_float32(self) -> npt.NDArray[np.float32]:
        """Reads it as float32."""
        values = self.read()
        if self.dtype == "bfloat16":
            return (values.astype(np.uint32) << 16).view(np.float32)
        return values.astype(np.float32)


@dataclass(frozen=True, slots=True)
class ModuleAdapter:
    """What an adapter adds to one module: `y += scaling * (b @ (a @ x) + b_bias)`.

    Attributes:
        rank: r.
        scaling: alpha / r, or alpha / sqrt(r) with rsLoRA; 1 if the file's weights have it already.
        a: `[r, in_features]`; of the embedding `[r, vocab_size]`.
        b: `[out_features, r]`; of the embedding `[hidden_size, r]`.
        b_bias: `[out_features]` (PEFT's `lora_bias`), or None.
        magnitude: `[out_features]` lengths of the rows of the changed weight (DoRA), or None.
        base_bias: `[out_features]` what takes the place of the module's own bias (PEFT's `bias`), or None.
    """

    rank: int
    scaling: float
    a: StoredTensor
    b: StoredTensor
    b_bias: StoredTensor | None = None
    magnitude: StoredTensor | None = None
    base_bias: StoredTensor | None = None


@dataclass(frozen=True, slots=True)
class AdapterFiles:
    """An adapter whose files have been looked at, but not its weights.

    Attributes:
        path: folder or file it was found at.
        format: how it is stored.
        fingerprint: of its files as they are now: changes when one of them is written.
        modules: what it adds to which modules.
        saved: `EMBEDDING` or `HEAD` -> `[vocab_size, hidden_size]` weight that takes the model's place
            (`modules_to_save`).
        base_biases: modules without a low-rank part whose bias is replaced -> `[out_features]` bias.
        base_model_name: the model that it says it was made for.
    """

    path: Path
    format: AdapterFormat
    fingerprint: str
    modules: Mapping[ModuleKey, ModuleAdapter]
    saved: Mapping[str, StoredTensor] = field(default_factory=dict)
    base_biases: Mapping[ModuleKey, StoredTensor] = field(default_factory=dict)
    base_model_name: str | None = None

    @property
    def rank(self) -> int:
        """Largest rank of its modules; 0 if it has none."""
        return max((module.rank for module in self.modules.values()), default=0)

    @property
    def num_bytes(self) -> int:
        """Bytes of all its tensors as they are stored."""
        tensors = [*self.saved.values(), *self.base_biases.values()]
        for module in self.modules.values():
            tensors += [module.a, module.b]
            tensors += [one for one in (module.b_bias, module.magnitude, module.base_bias) if one is not None]
        return sum(tensor.num_bytes for tensor in tensors)
