"""`DeterministicTorchKernels`: the PyTorch kernels, one token at a time."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch.nn import functional

from vllm_mxext.native.kernels.interface import AttentionGeometry, AttentionMetadata, LayerKVCache
from vllm_mxext.native.kernels.torch_kernels import TorchKernels, attend
from vllm_mxext.native.kernels.torch_kv_cache import TorchKVCache


class DeterministicTorchKernels(TorchKernels):
    """The same operations, whose rows are the same bits whatever else is in the batch and however a prompt was cut.

    PyTorch and the libraries under it choose the order of a sum by the shape of the tensors, and sometimes by where
    they lie in memory. So every operation is called with the shape that a token has alone, on memory of its own:
    attention for one query over just the keys up to its position, all else for one row. Far slower for prompts; about
    as fast for a single token.
    """

    is_batch_invariant = True

    def rms_norm(self, residual: torch.Tensor, weight: torch.Tensor, eps: float, out: torch.Tensor) -> None:
        """See `Kernels.rms_norm`."""
        for row in range(len(residual)):
            super().rms_norm(_own(residual, row), weight, eps, out[row : row + 1])

    def silu_mul(self, gate_up: torch.Tensor, out: torch.Tensor) -> None:
        """See `Kernels.silu_mul`."""
        for row in range(len(gate_up)):
            super().silu_mul(_own(gate_up, row), out[row : row + 1])

    def rope_kv_write(
        self,
        qkv: torch.Tensor,
        q_norm: torch.Tensor | None,
        k_norm: torch.Tensor | None,
        eps: float,
        cos_sin: torch.Tensor,
        geometry: AttentionGeometry,
        metadata: AttentionMetadata,
        cache: LayerKVCache,
    ) -> None:
        """See `Kernels.rope_kv_write`."""
        for row in range(len(qkv)):
            token = slice(row, row + 1)
            single = replace(metadata, positions=metadata.positions[token], slot_mapping=metadata.slot_mapping[token])
            own = _own(qkv, row)
            super().rope_kv_write(own, q_norm, k_norm, eps, cos_sin, geometry, single, cache)
            qkv[token] = own

    def paged_attention(
        self,
        qkv: torch.Tensor,
        geometry: AttentionGeometry,
        metadata: AttentionMetadata,
        cache: LayerKVCache,
        out: torch.Tensor,
    ) -> None:
        """See `Kernels.paged_attention`."""
        assert isinstance(cache, TorchKVCache)
        heads, dim = geometry.num_heads, geometry.head_dim
        starts, lengths = self._lengths(metadata)
        for request, length in enumerate(lengths):
            first, last = starts[request], starts[request + 1]
            for row in range(first, last):
                seq_len = length - (last - 1 - row)
                table = metadata.block_tables[request : request + 1, : -(-seq_len // cache.block_size)]
                query = _own(qkv, row)[:, : heads * dim].reshape(1, 1, heads, dim)
                num_keys = torch.tensor([seq_len], device=qkv.device)
                out[row].copy_(attend(query, table, num_keys, geometry, cache).flatten())

    def _product(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        rows = [functional.linear(_own(x, row), weight, bias) for row in range(len(x))]
        return torch.cat(rows) if rows else functional.linear(x, weight, bias)

    def _wide_product(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        wide = super()._wide_product
        return torch.cat([wide(_own(x, row), weight) for row in range(len(x))])


def _own(x: torch.Tensor, row: int) -> torch.Tensor:
    """A row as a tensor of its own, so that it lies in memory as every other one does."""
    return x[row : row + 1].clone(memory_format=torch.contiguous_format)
