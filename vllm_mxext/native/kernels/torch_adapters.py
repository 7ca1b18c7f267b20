"""Adapters in plain PyTorch, on any device: the reference to read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from vllm_mxext.native.kernels.adapters import (
    AdapterLayer,
    AdapterPart,
    AdapterRange,
    AdapterRanges,
    AdapterWeights,
    PackedAdapter,
)
from vllm_mxext.native.kernels.lazy_memory import anonymous_memory

_ALIGNMENT = 64


@dataclass(frozen=True, slots=True)
class TorchAdapter:
    """One layer's share of an adapter.

    Attributes:
        weights: views of the adapter's memory, on the host; of memory on the device once it is in a slot.
    """

    weights: AdapterWeights

    def on(self, device: torch.device) -> TorchAdapter:
        """Returns it on a device, with memory of its own unless it is there already."""
        weights = self.weights
        parts = tuple(
            AdapterPart(part.first_output, part.a.to(device), part.b.to(device), part.scaling) for part in weights.parts
        )
        gain, bias = (None if one is None else one.to(device) for one in (weights.gain, weights.bias))
        return TorchAdapter(AdapterWeights(parts, gain, bias))

    @property
    def num_bytes(self) -> int:
        """Bytes of its tensors."""
        return sum(map(_padded_bytes, _tensors(self.weights)))


class TorchAdapterLayer:
    """The slots of a linear layer."""

    def __init__(self, in_features: int, out_features: int, num_slots: int, device: torch.device) -> None:
        """Makes them, all empty."""
        self._in_features = in_features
        self._out_features = out_features
        self._device = device
        self.adapters: list[TorchAdapter | None] = [None] * num_slots

    def set(self, slot: int, adapter: PackedAdapter | None) -> None:
        """See `AdapterLayer.set`."""
        assert slot > 0, "slot 0 stays empty"
        if adapter is not None:
            assert type(adapter) is TorchAdapter
            for part in adapter.weights.parts:
                assert part.a.shape[1] == self._in_features
                assert part.first_output + len(part.b) <= self._out_features
            adapter = adapter.on(self._device)
        self.adapters[slot] = adapter


class TorchAdapterRanges:
    """The ranges, as they were written."""

    def __init__(self, max_ranges: int) -> None:
        """Makes an empty one."""
        self._max_ranges = max_ranges
        self.ranges: tuple[AdapterRange, ...] = ()

    def write(self, ranges: Sequence[AdapterRange]) -> None:
        """See `AdapterRanges.write`."""
        assert len(ranges) <= self._max_ranges
        self.ranges = tuple(ranges)


class TorchAdapterKernels:
    """The adapter operations of `TorchKernels`."""

    def __init__(self, device: torch.device) -> None:
        """Binds them to the device of one model."""
        self._device = device

    def pack_adapter(self, layers: Sequence[AdapterWeights]) -> Sequence[PackedAdapter]:
        """Copies the tensors to host memory, side by side; see `Kernels.pack_adapter`."""
        num_bytes = sum(_padded_bytes(tensor) for weights in layers for tensor in _tensors(weights))
        memory = anonymous_memory(num_bytes) if num_bytes else torch.empty(0, dtype=torch.uint8)
        end = 0

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal end
            kept = memory[end : end + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
            end += _padded_bytes(tensor)
            return kept.copy_(tensor.detach())

        return [
            TorchAdapter(
                AdapterWeights(
                    tuple(AdapterPart(part.first_output, keep(part.a), keep(part.b), part.scaling) for part in w.parts),
                    None if w.gain is None else keep(w.gain),
                    None if w.bias is None else keep(w.bias),
                )
            )
            for w in layers
        ]

    def make_adapter_layer(self, in_features: int, out_features: int, num_slots: int) -> AdapterLayer:
        """See `Kernels.make_adapter_layer`."""
        return TorchAdapterLayer(in_features, out_features, num_slots, self._device)

    def make_adapter_ranges(self, max_ranges: int) -> AdapterRanges:
        """See `Kernels.make_adapter_ranges`."""
        return TorchAdapterRanges(max_ranges)

    def adapt(self, x: torch.Tensor, layer: AdapterLayer, ranges: AdapterRanges, out: torch.Tensor) -> None:
        """See `Kernels.adapt`."""
        assert type(layer) is TorchAdapterLayer
        assert type(ranges) is TorchAdapterRanges
        for start, end, slot, scale in ranges.ranges:
            adapter = layer.adapters[slot]
            if adapter is not None and end > start:
                out[start:end] = self._adapted(x[start:end].float(), adapter.weights, scale, out[start:end].float())

    def _adapted(self, x: torch.Tensor, weights: AdapterWeights, scale: float, y: torch.Tensor) -> torch.Tensor:
        """What becomes of the layer's output y, which may be overwritten; float32."""
        if weights.gain is not None:
            y = y * (1 + scale * (weights.gain - 1))
        for part in weights.parts:
            product = self._product(self._product(x, part.a.float()), part.b.float())
            y[:, part.first_output : part.first_output + len(part.b)] += product * (scale * part.scaling)
        return y if weights.bias is None else y + scale * weights.bias

    def _product(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """`x @ weight.T + bias` in their type."""
        return functional.linear(x, weight, bias)


def _tensors(weights: AdapterWeights) -> list[torch.Tensor]:
    tensors = [tensor for part in weights.parts for tensor in (part.a, part.b)]
    return tensors + [vector for vector in (weights.gain, weights.bias) if vector is not None]


def _padded_bytes(tensor: torch.Tensor) -> int:
    return -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
