"""`Linear`: the one place every matrix product of a model goes through."""

from __future__ import annotations

import torch

from vllm_mxext.native.kernels.interface import Kernels, PackedLinear


class Linear:
    """A linear layer with packed weights.

    Args:
        kernels: kernel set that packed the weights.
        packed: weights and bias.
    """

    __slots__ = ("_kernels", "packed")

    def __init__(self, kernels: Kernels, packed: PackedLinear) -> None:
        self._kernels = kernels
        self.packed = packed

    @property
    def num_bytes(self) -> int:
        """Bytes of weights and bias."""
        return self.packed.num_bytes

    def __call__(self, x: torch.Tensor, out: torch.Tensor) -> None:
        """Writes the product: `x: [M, in_features]`, `out: [M, out_features]` in x's dtype or float32."""
        self._kernels.linear(x, self.packed, out)
