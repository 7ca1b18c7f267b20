"""The paged KV cache of a model: allocation from the memory plan."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vllm_mxext.config.engine import CacheConfig
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
        return sum(layer.num_bytes for layer in self.layers)


def allocate_kv_cache(
    spec: ModelSpec, config: CacheConfig, kernels: Kernels, num_blocks: int, dtype: torch.dtype, device: torch.device
) -> KVCache:
    """Allocates `num_blocks` zeroed blocks, the null block 0 included, in every layer.

    Args:
        spec: layers and heads of the model.
        config: block size, and what keys and values are kept as.
        kernels: kernel set that will use the blocks.
        num_blocks: blocks of each layer.
        dtype: type of the activations.
        device: where the blocks live.

    Raises:
        ConfigError: the kernel set does not support the block size or head size.
    """
    cache_spec = KVCacheSpec(
        num_layers=spec.num_layers,
        num_blocks=num_blocks,
        block_size=config.block_size,
        num_kv_heads=spec.num_kv_heads,
        head_dim=spec.head_dim,
        dtype=dtype,
        device=device,
        kv_cache_dtype=config.kv_cache_dtype,
    )
    return KVCache(tuple(kernels.allocate_kv_cache(cache_spec)))
