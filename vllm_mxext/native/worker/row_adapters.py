"""`RowAdapters`: which row uses the adapter in which slot, and the ranges that a step's rows make up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from vllm_mxext.native.kernels.adapters import AdapterRange
from vllm_mxext.native.kernels.interface import Kernels
from vllm_mxext.native.layers.adapter_ends import AdapterEnds
from vllm_mxext.native.models.batch_adapters import AdaptedRows, BatchAdapters

_IntArray = npt.NDArray[np.integer[Any]]


class RowAdapters:
    """Columns of the persistent batch.

    Args:
        max_num_seqs: rows.
        kernels: what reads the ranges.
        ends: slot -> embedding and head of the adapters that have their own.
    """

    def __init__(self, max_num_seqs: int, kernels: Kernels, ends: Mapping[int, AdapterEnds]) -> None:
        self._slots = np.zeros(max_num_seqs, dtype=np.int32)
        self._scales = np.ones(max_num_seqs, dtype=np.float64)
        self._num_adapted = 0
        self._ends = ends
        self._tokens, self._samples, self._side = (kernels.make_adapter_ranges(max_num_seqs) for _ in range(3))

    @property
    def is_empty(self) -> bool:
        """Whether no row has an adapter."""
        return self._num_adapted == 0

    def set_row(self, row: int, slot: int, scale: float) -> None:
        """Takes in a row that was free."""
        self._slots[row], self._scales[row] = slot, scale
        self._num_adapted += slot > 0

    def drop_row(self, row: int) -> None:
        """Frees a row."""
        self._num_adapted -= int(self._slots[row] > 0)

    def move_row(self, source: int, target: int) -> None:
        """Moves a row to one that is free; the source is free afterwards."""
        self._slots[target], self._scales[target] = self._slots[source], self._scales[source]

    def order(self, rows: _IntArray) -> _IntArray:
        """Returns in which order rows have to come for those of an adapter and scale to be neighbours."""
        return np.lexsort((self._scales[rows], self._slots[rows]))

    def batch(self, rows: _IntArray, counts: _IntArray, samples: _IntArray, num_positions: _IntArray) -> BatchAdapters:
        """Writes the ranges of a step.

        Args:
            rows: `[n]` rows in an order that `order()` gave.
            counts: `[n]` tokens of each.
            samples: `[s]` which of them sample.
            num_positions: `[s]` at how many positions.
        """
        tokens, samples_ranges = self._ranges(rows, counts), self._ranges(rows[samples], num_positions)
        self._tokens.write(tokens)
        self._samples.write(samples_ranges)
        return BatchAdapters(
            AdaptedRows(self._tokens, tokens, self._ends),
            AdaptedRows(self._samples, samples_ranges, self._ends),
            self._side,
        )

    def _ranges(self, rows: _IntArray, counts: _IntArray) -> list[AdapterRange]:
        ranges: list[AdapterRange] = []
        end = 0
        columns = (self._slots[rows].tolist(), self._scales[rows].tolist(), counts.tolist())
        for slot, scale, count in zip(*columns, strict=True):
            start, end = end, end + count
            if not slot:
                continue
            if ranges and ranges[-1].end == start and ranges[-1][2:] == (slot, scale):
                start = ranges.pop().start
            ranges.append(AdapterRange(start, end, slot, scale))
        return ranges
