"""`Linear`: the one place every matrix product of a model goes through."""

from __future__ import annotations

import torch

from vllm_mxext.native.kernels.adapters import AdapterLayer, AdapterRanges
from vllm_mxext.native.kernels.interface import Kernels, PackedLinear


class Linear:
    """A linear layer with packed weights.

    Args:
        kernels: kernel set that packed the weights.
        packed: weights and bias.

    Attributes:
        adapters: its adapter slots; None if the model is served without adapters.
    """

    __slots__ = ("_kernels", "adapters", "packed")

    def __init__(self, kernels: Kernels, packed: PackedLinear) -> None:
        self._kernels = kernels
        self.packed = packed
        self.adapters: AdapterLayer | None = None

    @property
    def num_bytes(self) -> int:
        """Bytes of weights and bias."""
        return self.packed.num_bytes

    def __call__(self, x: torch.Tensor, out: torch.Tensor, ranges: AdapterRanges | None = None) -> None:
        """Writes the product: `x: [M, in_features]`, `out: [M, out_features]` in x's dtype or float32.

        With `ranges`, these rows get what their adapters add.
        """
        self._kernels.linear(x, self.packed, out)
        if ranges is not None:
            assert self.adapters is not None, "The model was loaded without adapter slots."
            self._kernels.adapt(x, self.adapters, ranges, out)
