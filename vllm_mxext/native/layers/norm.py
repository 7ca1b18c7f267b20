"""`RMSNorm`: root mean square normalisation of the residual stream, alone or fused with the addition before it."""

from __future__ import annotations

import torch

from vllm_mxext.native.kernels.interface import Kernels


class RMSNorm:
    """RMS norm over the last dimension.

    Args:
        kernels: kernel set to run on.
        weight: `[H]` in the model's dtype.
        eps: added to the mean square.
    """

    __slots__ = ("_eps", "_kernels", "weight")

    def __init__(self, kernels: Kernels, weight: torch.Tensor, eps: float) -> None:
        self._kernels = kernels
        self._eps = eps
        self.weight = weight

    def __call__(self, residual: torch.Tensor, out: torch.Tensor) -> None:
        """Writes the norm of `residual: [M, H]` float32 to `out: [M, H]`."""
        self._kernels.rms_norm(residual, self.weight, self._eps, out)

    def add(self, x: torch.Tensor, residual: torch.Tensor, out: torch.Tensor) -> None:
        """`residual += x`, then the norm of `residual` to `out`; all `[M, H]`."""
        self._kernels.add_rms_norm(x, residual, self.weight, self._eps, out)
