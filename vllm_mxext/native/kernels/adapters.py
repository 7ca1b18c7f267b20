"""Adapters (LoRA) as kernels see them: what is packed, the slots of a linear layer, and whose rows are whose."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch


@dataclass(frozen=True, slots=True)
class AdapterPart:
    """A low-rank product that is added to some neighbouring outputs of a linear layer.

    Attributes:
        first_output: the first of these outputs.
        a: `[r, in_features]`.
        b: `[n, r]` for n outputs.
        scaling: factor on the product.
    """

    first_output: int
    a: torch.Tensor
    b: torch.Tensor
    scaling: float


@dataclass(frozen=True, slots=True)
class AdapterWeights:
    """What an adapter does to one linear layer: `y = gain * y + sum of parts + bias`.

    A request's scale c multiplies everything that is added: `y = (1 + c * (gain - 1)) * y + c * (parts + bias)`.

    Attributes:
        parts: over outputs that do not overlap, in ascending order; their ranks may differ.
        gain: `[out_features]` float32 (DoRA), or None for 1.
        bias: `[out_features]` float32, or None for 0.
    """

    parts: tuple[AdapterPart, ...]
    gain: torch.Tensor | None = None
    bias: torch.Tensor | None = None


def cover_outputs(weights: AdapterWeights) -> Iterator[tuple[int, int, AdapterPart | None]]:
    """Yields first output and number of outputs of every part; with gain or bias also of the outputs between parts."""
    vector = weights.bias if weights.gain is None else weights.gain
    end = 0
    for part in weights.parts:
        if vector is not None and part.first_output > end:
            yield end, part.first_output - end, None
        yield part.first_output, part.b.shape[0], part
        end = part.first_output + part.b.shape[0]
    if vector is not None and end < len(vector):
        yield end, len(vector) - end, None


class PackedAdapter(Protocol):
    """`AdapterWeights` in the layout that its kernel set reads."""

    @property
    def num_bytes(self) -> int:
        """Bytes it takes."""
        ...


class AdapterLayer(Protocol):
    """The adapter slots of one linear layer; slot 0 is "no adapter" and stays empty."""

    def set(self, slot: int, adapter: PackedAdapter | None) -> None:
        """Puts an adapter into a slot, or empties it; seen by the next call, recorded ones included.

        Where the device is not the host, the slot has a copy there, which goes with it.
        """
        ...


class AdapterRange(NamedTuple):
    """Rows `[start, end)` whose requests use the adapter in a slot with one scale."""

    start: int
    end: int
    slot: int
    scale: float


class AdapterRanges(Protocol):
    """The ranges of one step, at a fixed place in memory that recorded calls read anew."""

    def write(self, ranges: Sequence[AdapterRange]) -> None:
        """Takes the ranges of a step: ascending, disjoint, without those of slot 0."""
        ...
