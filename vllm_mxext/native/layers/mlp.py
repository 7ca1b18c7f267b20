"""`GatedMLP`: the SwiGLU feed-forward block with gate and up projections fused."""

from __future__ import annotations

import torch

from vllm_mxext.native.kernels.adapters import AdapterRanges
from vllm_mxext.native.kernels.interface import Kernels
from vllm_mxext.native.layers.activations import Activations
from vllm_mxext.native.layers.linear import Linear


class GatedMLP:
    """`down(silu(gate(x)) * up(x))`.

    Args:
        kernels: kernel set to run on.
        gate_up: `[2 * I, H]` weights, gate first.
        down: `[H, I]` weights.
    """

    __slots__ = ("_kernels", "down", "gate_up")

    def __init__(self, kernels: Kernels, gate_up: Linear, down: Linear) -> None:
        self._kernels = kernels
        self.gate_up = gate_up
        self.down = down

    def __call__(
        self, x: torch.Tensor, buffers: Activations, out: torch.Tensor, ranges: AdapterRanges | None = None
    ) -> None:
        """Writes the block's result: `x, out: [M, H]`; `ranges` are the rows with adapters."""
        num_tokens = x.shape[0]
        gate_up, activated = buffers.gate_up[:num_tokens], buffers.activated[:num_tokens]
        self.gate_up(x, gate_up, ranges)
        self._kernels.silu_mul(gate_up, activated)
        self.down(activated, out, ranges)
