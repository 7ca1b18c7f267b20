"""Adapters for the compiled kernels: packed side by side in memory of their own, in slots that recorded calls read."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain

import torch

from vllm_mxext.native.kernels.adapters import (
    AdapterLayer,
    AdapterPart,
    AdapterRange,
    AdapterRanges,
    AdapterWeights,
    PackedAdapter,
    cover_outputs,
)
from vllm_mxext.native.kernels.lazy_memory import anonymous_memory, large_page_memory
from vllm_mxext.native.kernels.library import DTYPE_CODES, FORMAT_CODES, KernelLibrary, Operation

_ALIGNMENT = 64
_INPUT_MULTIPLE = 32
"""Rows of A begin at multiples of so many elements (`a_stride` of csrc/kernels.h)."""
_LARGE_PAGES_FROM = 8 * 2**20
"""Large pages cost 1 MB at the end of an adapter on average: too much for a small one."""


class AdapterStruct(ctypes.Structure):
    """`MxAdapter` of `csrc/kernels.h`."""

    _fields_ = [
        ("a", ctypes.c_void_p),
        ("gain_change", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("parts", ctypes.c_void_p),
        ("in_features", ctypes.c_int64),
        ("a_stride", ctypes.c_int64),
        ("ranks", ctypes.c_int64),
        ("num_parts", ctypes.c_int64),
    ]


class PartStruct(ctypes.Structure):
    """`MxAdapterPart` of `csrc/kernels.h`."""

    _fields_ = [
        ("b", ctypes.c_void_p),
        ("first_output", ctypes.c_int32),
        ("outputs", ctypes.c_int32),
        ("first_rank", ctypes.c_int32),
        ("ranks", ctypes.c_int32),
        ("scaling", ctypes.c_float),
        ("unused", ctypes.c_int32),
    ]


@dataclass(frozen=True, slots=True)
class CompiledAdapter:
    """One layer's share of an adapter.

    Attributes:
        address: of its `MxAdapter`.
        in_features: K; 0 without parts.
        end: one more than the last output that it changes.
        num_bytes: bytes it takes.
        memory: what the whole adapter lies in; kept alive.
    """

    address: int
    in_features: int
    end: int
    num_bytes: int
    memory: torch.Tensor


class CompiledAdapterLayer:
    """The slots of a linear layer: an array of pointers to `MxAdapter`."""

    def __init__(self, in_features: int, out_features: int, num_slots: int) -> None:
        """Makes them, all empty."""
        self._in_features = in_features
        self._out_features = out_features
        self._pointers = (ctypes.c_void_p * num_slots)()
        self._adapters: list[PackedAdapter | None] = [None] * num_slots
        self.address = ctypes.addressof(self._pointers)

    def set(self, slot: int, adapter: PackedAdapter | None) -> None:
        """See `AdapterLayer.set`."""
        assert slot > 0, "slot 0 stays empty"
        if adapter is not None:
            assert type(adapter) is CompiledAdapter
            assert adapter.in_features in (0, self._in_features)
            assert adapter.end <= self._out_features
        self._pointers[slot] = None if adapter is None else adapter.address
        self._adapters[slot] = adapter


class CompiledAdapterRanges:
    """`MxAdapterRanges` of `csrc/kernels.h`."""

    def __init__(self, max_ranges: int) -> None:
        """Makes room for so many."""
        self._buffer = ctypes.create_string_buffer(_ranges_format(max_ranges).size)
        self.address = ctypes.addressof(self._buffer)

    def write(self, ranges: Sequence[AdapterRange]) -> None:
        """See `AdapterRanges.write`."""
        count = len(ranges)
        _ranges_format(count).pack_into(self._buffer, 0, count, *chain.from_iterable(ranges))


class CompiledAdapterKernels:
    """The adapter operations of `CompiledKernels`.

    Attributes:
        library: the loaded library.
    """

    def __init__(self, library: KernelLibrary, dtype: torch.dtype) -> None:
        """Binds `library` to an element type that it has kernels for."""
        self.library = library
        self._dtype = dtype
        self._code = DTYPE_CODES[dtype]
        self._adapt = library.operation("mx_adapt")

    def pack_adapter(self, layers: Sequence[AdapterWeights]) -> list[CompiledAdapter]:
        """See `Kernels.pack_adapter`; may run beside a forward pass, in another thread."""
        plans: list[_LayerPlan] = []
        end = 0
        for weights in layers:
            plans.append(_LayerPlan(self.library, self._dtype, weights, end))
            end = plans[-1].end
        if not end:
            return []
        memory = large_page_memory(end) if end >= _LARGE_PAGES_FROM else anonymous_memory(end)
        pack = self.library.operation("mx_pack_linear")  # of this thread alone
        return [plan.fill(memory, pack) for plan in plans]

    def make_adapter_layer(self, in_features: int, out_features: int, num_slots: int) -> CompiledAdapterLayer:
        """See `Kernels.make_adapter_layer`."""
        return CompiledAdapterLayer(in_features, out_features, num_slots)

    def make_adapter_ranges(self, max_ranges: int) -> CompiledAdapterRanges:
        """See `Kernels.make_adapter_ranges`."""
        return CompiledAdapterRanges(max_ranges)

    def adapt(self, x: torch.Tensor, layer: AdapterLayer, ranges: AdapterRanges, out: torch.Tensor) -> None:
        """See `Kernels.adapt`; between A and B, bfloat16 instructions round to bfloat16."""
        assert type(layer) is CompiledAdapterLayer
        assert type(ranges) is CompiledAdapterRanges
        self._adapt(
            layer.address,
            ranges.address,
            x.data_ptr(),
            x.stride(0),
            out.data_ptr(),
            out.stride(0),
            self._code,
            out.dtype is torch.float32,
        )


@dataclass(frozen=True, slots=True)
class _PartPlan:
    """Where B of a part goes; None for outputs that only gain and bias change."""

    part: AdapterPart | None
    b: int
    struct: PartStruct


class _LayerPlan:
    """Where everything of one layer goes, in bytes from the start of the adapter's memory."""

    def __init__(self, library: KernelLibrary, dtype: torch.dtype, weights: AdapterWeights, start: int) -> None:
        self._dtype = dtype
        self._weights = weights
        self._start = self.end = start
        parts = list(cover_outputs(weights))
        in_features = weights.parts[0].a.shape[1] if weights.parts else 0
        self._stride = _round_up(in_features, _INPUT_MULTIPLE)
        self._struct_at = self._take(ctypes.sizeof(AdapterStruct))
        self._parts_at = self._take(len(parts) * ctypes.sizeof(PartStruct))
        self._parts: list[_PartPlan] = []
        self._ranks = 0
        for first_output, outputs, part in parts:
            ranks = 0 if part is None else part.a.shape[0]
            packed = library.packed_bytes(DTYPE_CODES[dtype], FORMAT_CODES["none"], outputs, ranks) if ranks else 0
            scaling = 0.0 if part is None else part.scaling
            fields = PartStruct(None, first_output, outputs, self._ranks, ranks, scaling)
            self._parts.append(_PartPlan(part, self._take(packed), fields))
            self._ranks += _round_up(ranks, 2)
        self._a_at = self._take(self._ranks * self._stride * dtype.itemsize)
        self._vectors_at = [
            None if vector is None else self._take(vector.numel() * 4) for vector in (weights.gain, weights.bias)
        ]
        self._in_features = in_features

    def fill(self, memory: torch.Tensor, pack: Operation) -> CompiledAdapter:
        """Copies the layer into its place."""
        base = memory.data_ptr()
        a_bytes = self._ranks * self._stride * self._dtype.itemsize
        a = memory[self._a_at : self._a_at + a_bytes].view(self._dtype).view(self._ranks, self._stride)
        for index, planned in enumerate(self._parts):
            part, fields = planned.part, planned.struct
            if part is not None:
                a[fields.first_rank : fields.first_rank + fields.ranks, : self._in_features] = part.a
                fields.b = base + planned.b
                b = part.b.detach().to(device="cpu", dtype=self._dtype).contiguous()
                code = DTYPE_CODES[self._dtype]
                pack(b.data_ptr(), b.stride(0), fields.outputs, fields.ranks, fields.b, code, FORMAT_CODES["none"])
            place = base + self._parts_at + index * ctypes.sizeof(PartStruct)
            ctypes.memmove(place, ctypes.addressof(fields), ctypes.sizeof(PartStruct))
        gain, bias = self._weights.gain, self._weights.bias
        change = None if gain is None else gain.detach() - 1
        vectors = [self._copy(memory, at, vector) for at, vector in zip(self._vectors_at, (change, bias), strict=True)]
        struct = AdapterStruct(
            base + self._a_at,
            *vectors,
            base + self._parts_at,
            self._in_features,
            self._stride,
            self._ranks,
            len(self._parts),
        )
        ctypes.memmove(base + self._struct_at, ctypes.addressof(struct), ctypes.sizeof(AdapterStruct))
        last = self._parts[-1].struct if self._parts else PartStruct()
        end = last.first_output + last.outputs
        return CompiledAdapter(base + self._struct_at, self._in_features, end, self.end - self._start, memory)

    def _take(self, num_bytes: int) -> int:
        start = self.end
        self.end += _round_up(num_bytes, _ALIGNMENT)
        return start

    @staticmethod
    def _copy(memory: torch.Tensor, at: int | None, vector: torch.Tensor | None) -> int | None:
        if at is None or vector is None:
            return None
        memory[at : at + vector.numel() * 4].view(torch.float32).copy_(vector)
        return memory.data_ptr() + at


@cache
def _ranges_format(count: int) -> struct.Struct:
    """`MxAdapterRanges` with so many ranges."""
    return struct.Struct("q" + "iiif" * count)


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
