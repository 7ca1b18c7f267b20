"""Adapters on a GPU: a product with A and one with B for all ranges at once, as two Triton kernels.

A tile is some rows of one range: `[first row, rows, slot, scale]`, 32 bits each. The table has a line per slot: how
many parts it has (0: empty), where gain and bias lie (0: none), then `PART_FIELDS` numbers per part. Addresses in a
table let every adapter have memory of its own, of its own size.
"""

from __future__ import annotations

import triton
import triton.language as tl

TILE_FIELDS = tl.constexpr(4)
HEAD_FIELDS = tl.constexpr(3)
PART_FIELDS = tl.constexpr(7)
"""Addresses of A and B, first output, outputs, first rank among those of all parts, ranks, bits of the scaling."""


@triton.jit
def shrink(
    x,
    x_stride,
    in_features,
    sums,
    sums_stride,
    tiles,
    table,
    table_stride,
    ROWS: tl.constexpr,
    RANKS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """Writes `x @ A.T` of a tile's rows and of some ranks of a part, in float32."""
    tile = tiles + tl.program_id(0) * TILE_FIELDS
    first_row, rows, slot = tl.load(tile), tl.load(tile + 1), tl.load(tile + 2)
    line = table + slot * table_stride
    part = line + HEAD_FIELDS + tl.program_id(2) * PART_FIELDS
    first_rank = tl.program_id(1) * RANKS
    ranks = 0
    if tl.program_id(2) < tl.load(line):
        ranks = tl.load(part + 5).to(tl.int32)
    if first_rank < ranks:
        a = tl.load(part).to(tl.pointer_type(x.dtype.element_ty))
        row = (first_row + tl.arange(0, ROWS)).to(tl.int64)[:, None]
        is_row = tl.arange(0, ROWS)[:, None] < rows
        rank = (first_rank + tl.arange(0, RANKS))[None, :]
        total = tl.full((ROWS, RANKS), 0.0, tl.float32)
        for first in range(0, in_features, DEPTH):
            depth = first + tl.arange(0, DEPTH)
            is_left = is_row & (depth < in_features)[None, :]
            left = tl.load(x + row * x_stride + depth[None, :], mask=is_left, other=0.0)
            is_right = (rank < ranks) & (depth < in_features)[:, None]
            right = tl.load(a + rank * in_features + depth[:, None], mask=is_right, other=0.0)
            total = tl.dot(left, right, total, input_precision="ieee")
        place = sums + row * sums_stride + tl.load(part + 4) + rank
        tl.store(place, total, mask=is_row & (rank < ranks))


@triton.jit
def expand(
    sums,
    sums_stride,
    out,
    out_stride,
    tiles,
    table,
    table_stride,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    RANKS: tl.constexpr,
    WEIGHT: tl.constexpr,
):
    """Changes some outputs of a part in a tile's rows; the sums are rounded to the weights' type first."""
    tile = tiles + tl.program_id(0) * TILE_FIELDS
    first_row, rows, slot = tl.load(tile), tl.load(tile + 1), tl.load(tile + 2)
    scale = tl.load(tile + 3).to(tl.float32, bitcast=True)
    line = table + slot * table_stride
    part = line + HEAD_FIELDS + tl.program_id(2) * PART_FIELDS
    first_column = tl.program_id(1) * COLUMNS
    outputs = 0
    if tl.program_id(2) < tl.load(line):
        outputs = tl.load(part + 3).to(tl.int32)
    if first_column < outputs:
        ranks = tl.load(part + 5).to(tl.int32)
        b = tl.load(part + 1).to(tl.pointer_type(WEIGHT))
        row = (first_row + tl.arange(0, ROWS)).to(tl.int64)[:, None]
        is_row = tl.arange(0, ROWS)[:, None] < rows
        column = (first_column + tl.arange(0, COLUMNS))[None, :]
        is_column = column < outputs
        total = tl.full((ROWS, COLUMNS), 0.0, tl.float32)
        for first in range(0, ranks, RANKS):
            rank = first + tl.arange(0, RANKS)
            left_at = sums + row * sums_stride + tl.load(part + 4) + rank[None, :]
            left = tl.load(left_at, mask=is_row & (rank < ranks)[None, :], other=0.0).to(WEIGHT)
            right_at = b + column * ranks + rank[:, None]
            right = tl.load(right_at, mask=is_column & (rank < ranks)[:, None], other=0.0)
            total = tl.dot(left, right, total, input_precision="ieee")
        output = tl.load(part + 2) + column
        place = out + row * out_stride + output
        value = tl.load(place, mask=is_row & is_column, other=0.0).to(tl.float32)
        gain = tl.load(line + 1)
        if gain != 0:
            factor = tl.load(gain.to(tl.pointer_type(tl.float32)) + output, mask=is_column, other=1.0)
            value = value * (1 + scale * (factor - 1))
        scaling = tl.load(part + 6).to(tl.int32).to(tl.float32, bitcast=True)
        value += total * (scale * scaling)
        bias = tl.load(line + 2)
        if bias != 0:
            value += scale * tl.load(bias.to(tl.pointer_type(tl.float32)) + output, mask=is_column, other=0.0)
        tl.store(place, value.to(out.dtype.element_ty), mask=is_row & is_column)
