"""What adapters (LoRA) cost beside the linear layers they change, against the machine's limits (`roofline.py`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch

from vllm_mxext.bench.kernels import HEAD_DIM, HEADS, HIDDEN, INNER, KV_HEADS
from vllm_mxext.bench.roofline import COLD_BYTES, LAYERS, Operation
from vllm_mxext.native.kernels.adapters import (
    AdapterLayer,
    AdapterPart,
    AdapterRange,
    AdapterRanges,
    AdapterWeights,
)
from vllm_mxext.native.kernels.interface import Kernels

ADAPTED = {
    "qkv": (HIDDEN, (HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM)),
    "attention out": (HEADS * HEAD_DIM, (HIDDEN,)),
    "gate up": (HIDDEN, (INNER, INNER)),
    "down": (INNER, (HIDDEN,)),
}
"""Inputs, and outputs of every part, of the layers that adapters change."""

RANKS = (8, 16, 64)
BATCHES = ((1, 1), (8, 1), (8, 4), (1, 512))
"""Adapters and rows of each."""


@dataclass(frozen=True, slots=True)
class AdapterStep:
    """The linear layers of a step all of whose rows have an adapter.

    Attributes:
        adapters: how many different ones.
        rows_each: rows of each.
        rank: of all of them.
    """

    adapters: int
    rows_each: int
    rank: int

    @property
    def name(self) -> str:
        """For the report."""
        return f"{self.adapters} x rank {self.rank}, {self.rows_each} rows each"

    @property
    def num_rows(self) -> int:
        """Rows of the activations."""
        return self.adapters * self.rows_each


def adapter_steps() -> tuple[AdapterStep, ...]:
    """Returns what is measured."""
    return tuple(AdapterStep(adapters, rows, rank) for adapters, rows in BATCHES for rank in RANKS)


def adapter_operations(kernels: Kernels, dtype: torch.dtype, step: AdapterStep) -> Iterator[Operation]:
    """Yields the adapter calls of one layer, recorded as those of a decode step are."""
    ranges = kernels.make_adapter_ranges(step.adapters)
    ranges.write([AdapterRange(i * step.rows_each, (i + 1) * step.rows_each, i + 1, 1.0) for i in range(step.adapters)])
    for name, (in_features, outputs) in ADAPTED.items():
        weights = _random_adapter(in_features, outputs, step.rank, dtype)
        num_bytes = sum(part.a.nbytes + part.b.nbytes for part in weights.parts) * step.adapters
        copies = max(2, -(-COLD_BYTES // num_bytes))
        packed = iter(kernels.pack_adapter([weights] * (copies * step.adapters)))
        x = torch.randn(step.num_rows, in_features).to(dtype)
        out = torch.zeros(step.num_rows, sum(outputs), dtype=dtype)
        runs = []
        for _ in range(copies):
            layer = kernels.make_adapter_layer(in_features, sum(outputs), step.adapters + 1)
            for slot in range(1, step.adapters + 1):
                layer.set(slot, next(packed))
            runs.append(_recorded(kernels, x, layer, ranges, out))
        flops = 2 * step.rows_each * num_bytes // dtype.itemsize
        moved = num_bytes + x.nbytes + 2 * out.nbytes
        yield Operation(f"adapters {name}", LAYERS, moved, flops, runs, is_linear=True)


def _recorded(
    kernels: Kernels, x: torch.Tensor, layer: AdapterLayer, ranges: AdapterRanges, out: torch.Tensor
) -> Callable[[], object]:
    with kernels.recording() as recording:
        kernels.adapt(x, layer, ranges, out)
    if recording is None:
        return partial(kernels.adapt, x, layer, ranges, out)
    operands = (x, layer, ranges, out)  # what is recorded keeps nothing alive
    return lambda: recording.replay(len(operands[0]))


def _random_adapter(in_features: int, outputs: tuple[int, ...], rank: int, dtype: torch.dtype) -> AdapterWeights:
    parts, first = [], 0
    for count in outputs:
        a, b = torch.randn(rank, in_features), torch.randn(count, rank) / 1000
        parts.append(AdapterPart(first, a.to(dtype), b.to(dtype), 1.0))
        first += count
    return AdapterWeights(tuple(parts))
