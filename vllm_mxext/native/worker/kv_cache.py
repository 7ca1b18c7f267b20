"""The paged KV cache of a model: allocation from the memory plan."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vllm_mxext.config.model_spec import ModelSpec
from vllm_mxext.native.kernels.interface import Kernels, KVCacheSpec, LayerKVCache


@dataclass(frozen=True, slots=True)
class KVCache:
    """KV blocks of all layers.

    Attributes:
        layers: blocks of each layer, in the kernel set's own layout.
    """

    layers: tuple[LayerKVCache, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes of all blocks."""
        return sum(layer.key.nbytes + layer.value.nbytes for layer in self.layers)


def allocate_kv_cache(
    spec: ModelSpec, kernels: Kernels, *, num_blocks: int, block_size: int, dtype: torch.dtype, device: torch.device
) -> KVCache:
    """Allocates `num_blocks` zeroed blocks, the null block 0 included, in every layer.

    Raises:
        ConfigError: the kernel set does not support the block size or head size.
    """
    cache_spec = KVCacheSpec(
        num_layers=spec.num_layers,
        num_blocks=num_blocks,
        block_size=block_size,
        num_kv_heads=spec.num_kv_heads,
        head_dim=spec.head_dim,
        dtype=dtype,
        device=device,
    )
    return KVCache(tuple(kernels.allocate_kv_cache(cache_spec)))
