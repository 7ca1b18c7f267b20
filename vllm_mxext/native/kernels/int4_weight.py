"""`Int4Weight`: the int4 weights of one linear layer as a checkpoint stores them, on their way to a kernel set."""

from __future__ import annotations

from dataclasses import dataclass

import torch

WORD_NIBBLES = 8
"""Weights in one 32-bit word."""

AWQ_COLUMNS = (0, 2, 4, 6, 1, 3, 5, 7)
"""Column in its eight of each nibble of an AWQ word, lowest first."""


@dataclass(frozen=True, slots=True)
class Int4Weight:
    """Weights `(q - zero) * scale`, with q in 0 to 15.

    Attributes:
        words: int32. If `is_packed_by_inputs`, `[ceil(K / 8), N]`: eight neighbouring inputs of one column, lowest four
            bits first. Otherwise `[K, N / 8]`: eight neighbouring columns of one input, in the order `AWQ_COLUMNS`.
        is_packed_by_inputs: which of the two.
        scales: `[groups, N]` float16, contiguous.
        zeros: `[groups, N]` uint8, contiguous, 0 to 15.
        input_order: `[K]` int32, the inputs group by group; None if neighbours form a group.
        scale_depth: inputs that share a scale, in that order.
        group_size: inputs of one packed block, a divisor of `scale_depth` unless there is only one group.
        in_features: K.
        out_features: N.
    """

    words: torch.Tensor
    is_packed_by_inputs: bool
    scales: torch.Tensor
    zeros: torch.Tensor
    input_order: torch.Tensor | None
    scale_depth: int
    group_size: int
    in_features: int
    out_features: int

    def values(self) -> torch.Tensor:
        """The q of every weight, `[N, K]` uint8, inputs in the order of `input_order`."""
        if self.is_packed_by_inputs:
            values = unpack_nibbles(self.words.t(), range(WORD_NIBBLES))[:, : self.in_features]
        else:
            values = unpack_nibbles(self.words, AWQ_COLUMNS).t()
        return values if self.input_order is None else values[:, self.input_order.long()]


def unpack_nibbles(words: torch.Tensor, places: range | tuple[int, ...]) -> torch.Tensor:
    """The four-bit numbers of 32-bit words: `[M, W]` int32 -> `[M, 8 * W]` uint8.

    Args:
        words: the words.
        places: where in its eight each nibble goes, lowest first.
    """
    shifts = torch.empty(WORD_NIBBLES, dtype=torch.int32)
    for nibble, place in enumerate(places):
        shifts[place] = 4 * nibble
    return (words.unsqueeze(-1) >> shifts & 15).to(torch.uint8).flatten(1)
