"""`TritonKernels`: the PyTorch kernels with adapters in Triton, for GPUs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import triton
import triton.language as tl

from vllm_mxext.native.kernels import triton_lora
from vllm_mxext.native.kernels.adapters import (
    AdapterLayer,
    AdapterRange,
    AdapterRanges,
    PackedAdapter,
    cover_outputs,
)
from vllm_mxext.native.kernels.torch_adapters import TorchAdapter
from vllm_mxext.native.kernels.torch_kernels import TorchKernels

_TILE_ROWS = 16
"""The fewest that tensor cores take: decoding has one row per range."""
_RANKS, _DEPTH, _COLUMNS = 16, 128, 64
_MAX_PARTS = 8
_WEIGHTS = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32}


class TritonAdapterLayer:
    """The slots of a linear layer: a table on the device of where their adapters lie (`triton_lora.py`)."""

    def __init__(self, in_features: int, out_features: int, num_slots: int, device: torch.device) -> None:
        """Makes them, all empty."""
        self._in_features = in_features
        self._out_features = out_features
        fields = triton_lora.HEAD_FIELDS.value + _MAX_PARTS * triton_lora.PART_FIELDS.value
        self._device = device
        self.table = torch.zeros(num_slots, fields, dtype=torch.int64, device=device)
        self._adapters: list[TorchAdapter | None] = [None] * num_slots
        self._sizes = np.zeros((num_slots, 4), dtype=np.int64)

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """The largest of all slots: ranks of all parts, parts, ranks of a part, outputs of a part."""
        ranks, parts, part_ranks, outputs = self._sizes.max(axis=0).tolist()
        return ranks, parts, part_ranks, outputs

    def set(self, slot: int, adapter: PackedAdapter | None) -> None:
        """See `AdapterLayer.set`."""
        assert slot > 0, "slot 0 stays empty"
        line = np.zeros(self.table.shape[1], dtype=np.int64)
        self._sizes[slot] = 0
        if adapter is not None:
            assert type(adapter) is TorchAdapter
            adapter = adapter.on(self._device)
            self._sizes[slot] = self._describe(adapter, line)
        self.table[slot].copy_(torch.from_numpy(line))
        self._adapters[slot] = adapter

    def _describe(self, adapter: TorchAdapter, line: np.ndarray) -> tuple[int, int, int, int]:
        """Fills the line of the table; returns the sizes."""
        weights = adapter.weights
        parts = list(cover_outputs(weights))
        assert len(parts) <= _MAX_PARTS
        head, width = triton_lora.HEAD_FIELDS.value, triton_lora.PART_FIELDS.value
        line[:head] = (len(parts), _address(weights.gain), _address(weights.bias))
        first_rank = 0
        for index, (first_output, outputs, part) in enumerate(parts):
            assert first_output + outputs <= self._out_features
            fields = [0, 0, first_output, outputs, first_rank, 0, 0]
            if part is not None:
                assert part.a.shape[1] == self._in_features
                fields[:2] = part.a.data_ptr(), part.b.data_ptr()
                fields[5:] = len(part.a), int(np.float32(part.scaling).view(np.int32))
                first_rank += len(part.a)
            line[head + index * width :][:width] = fields
        ranks = max((len(part.a) for part in weights.parts), default=0)
        return first_rank, len(parts), ranks, max((outputs for _, outputs, _ in parts), default=0)


class TritonAdapterRanges:
    """The ranges, cut into tiles of rows on the device."""

    def __init__(self, max_ranges: int, device: torch.device) -> None:
        """Makes an empty one."""
        self._max_ranges = max_ranges
        self._device = device
        self.tiles = torch.empty(0, triton_lora.TILE_FIELDS.value, dtype=torch.int32, device=device)

    def write(self, ranges: Sequence[AdapterRange]) -> None:
        """See `AdapterRanges.write`."""
        assert len(ranges) <= self._max_ranges
        tiles = [
            (row, min(_TILE_ROWS, end - row), slot, int(np.float32(scale).view(np.int32)))
            for start, end, slot, scale in ranges
            for row in range(start, end, _TILE_ROWS)
        ]
        fields = triton_lora.TILE_FIELDS.value
        self.tiles = torch.tensor(tiles, dtype=torch.int32).view(-1, fields).to(self._device)


class TritonKernels(TorchKernels):
    """The PyTorch kernels with adapters in Triton; needs a GPU, or Triton's interpreter."""

    name = "torch+triton"

    def make_adapter_layer(self, in_features: int, out_features: int, num_slots: int) -> AdapterLayer:
        """See `Kernels.make_adapter_layer`."""
        return TritonAdapterLayer(in_features, out_features, num_slots, self._device)

    def make_adapter_ranges(self, max_ranges: int) -> AdapterRanges:
        """See `Kernels.make_adapter_ranges`."""
        return TritonAdapterRanges(max_ranges, self._device)

    def adapt(self, x: torch.Tensor, layer: AdapterLayer, ranges: AdapterRanges, out: torch.Tensor) -> None:
        """See `Kernels.adapt`; between A and B, sums are rounded to the model's dtype."""
        assert type(layer) is TritonAdapterLayer
        assert type(ranges) is TritonAdapterRanges
        ranks, parts, part_ranks, outputs = layer.sizes
        num_tiles = len(ranges.tiles)
        if not num_tiles or not parts:
            return
        sums = torch.empty(x.shape[0], ranks, dtype=torch.float32, device=x.device)
        lines = (ranges.tiles, layer.table, layer.table.stride(0))
        if ranks:
            triton_lora.shrink[num_tiles, triton.cdiv(part_ranks, _RANKS), parts](
                x, x.stride(0), x.shape[1], sums, sums.stride(0), *lines, ROWS=_TILE_ROWS, RANKS=_RANKS, DEPTH=_DEPTH
            )
        triton_lora.expand[num_tiles, triton.cdiv(outputs, _COLUMNS), parts](
            sums,
            sums.stride(0),
            out,
            out.stride(0),
            *lines,
            ROWS=_TILE_ROWS,
            COLUMNS=_COLUMNS,
            RANKS=_RANKS,
            WEIGHT=_WEIGHTS[x.dtype],
        )


def _address(tensor: torch.Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()
