"""`BatchAdapters`: which rows of a forward pass have adapters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from vllm_mxext.native.kernels.adapters import AdapterRange, AdapterRanges
from vllm_mxext.native.layers.adapter_ends import AdapterEnds


@dataclass(frozen=True, slots=True)
class AdaptedRows:
    """The ranges of some rows.

    Attributes:
        place: where kernels read them; None if there are none.
        ranges: what it holds.
        ends: slot -> embedding and head of those adapters that have their own.
    """

    place: AdapterRanges | None = None
    ranges: Sequence[AdapterRange] = ()
    ends: Mapping[int, AdapterEnds] = field(default_factory=dict)

    def with_ends(self) -> Iterator[tuple[slice, AdapterEnds, float]]:
        """Rows whose adapters have their own embedding or head, and the scale of these."""
        if self.ends:
            for one in self.ranges:
                if one.slot in self.ends:
                    yield slice(one.start, one.end), self.ends[one.slot], one.scale


UNADAPTED = AdaptedRows()
"""No rows with adapters."""


@dataclass(frozen=True, slots=True)
class BatchAdapters:
    """The rows of one forward pass.

    Attributes:
        tokens: of all rows.
        samples: of the rows whose logits are wanted.
        side_place: where to put the ranges of other rows.
    """

    tokens: AdaptedRows
    samples: AdaptedRows
    side_place: AdapterRanges

    @property
    def has_ends(self) -> bool:
        """Whether an adapter of these rows has an embedding or a head of its own."""
        return next(self.tokens.with_ends(), None) is not None

    def of_rows(self, indices: torch.Tensor) -> AdaptedRows:
        """Returns those of other rows, `[n]` ascending; valid until it is called again."""
        rows = indices.cpu().numpy()
        ranges = []
        for one in self.tokens.ranges:
            start, end = np.searchsorted(rows, (one.start, one.end)).tolist()
            if start < end:
                ranges.append(AdapterRange(start, end, one.slot, one.scale))
        self.side_place.write(ranges)
        return AdaptedRows(self.side_place, ranges, self.tokens.ends)
