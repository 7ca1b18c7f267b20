"""KV blocks of the plain PyTorch kernels: `[num_blocks, block_size, num_kv_heads, ...]`, plain or int8."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.nn import functional

from vllm_mxext.native.kernels.interface import INT8_GROUP, KVCacheSpec, LayerKVCache
from vllm_mxext.native.kernels.lazy_memory import lazy_zeros


def quantise_groups(x: torch.Tensor, scale_dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantises every 32 neighbouring values of the last dimension to int8.

    Args:
        x: `[..., K]`; rows are padded with zeros to whole groups.
        scale_dtype: type the scale is rounded to before the values are divided by it.

    Returns:
        Values `[..., groups, 32]` from -127 to 127, and scales `[..., groups, 1]`.
    """
    padded = functional.pad(x.float(), (0, -x.shape[-1] % INT8_GROUP)).view(*x.shape[:-1], -1, INT8_GROUP)
    return _quantise(padded, scale_dtype)


def dequantise_groups(values: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """What `quantise_groups` was given, rounded: `[..., groups * 32]` float32."""
    return (values.float() * scales.float()).flatten(-2)


def _quantise(x: torch.Tensor, scale_dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    scales = (x.abs().amax(-1, keepdim=True) / 127).to(scale_dtype)
    inverse = torch.where(scales > 0, 1 / scales.float(), 0)
    return (x * inverse).clamp(-127, 127).round().to(torch.int8), scales


@dataclass(frozen=True, slots=True)
class TorchKVCache(LayerKVCache):
    """Blocks in the type of the activations: key and value `[num_blocks, block_size, num_kv_heads, head_dim]`."""

    @property
    def block_size(self) -> int:
        """Token positions per block."""
        return self.key.shape[1]

    def write(self, slots: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
        """Stores keys and values `[num_tokens, num_kv_heads, head_dim]` at `slots`."""
        self.key.flatten(0, 1)[slots] = key
        self.value.flatten(0, 1)[slots] = value

    def gather(self, block_table: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Float32 keys and values `[num_reqs, tokens, num_kv_heads, head_dim]` of `block_table: [num_reqs, blocks]`."""
        return self.key[block_table].flatten(1, 2).float(), self.value[block_table].flatten(1, 2).float()

    def round_query(self, query: torch.Tensor) -> torch.Tensor:
        """The query `[..., head_dim]` as the keys are multiplied with it, float32."""
        return query.float()


@dataclass(frozen=True, slots=True)
class TorchInt8KVCache(TorchKVCache):
    """Int8 blocks.

    Attributes:
        key_scales: `[num_blocks, block_size, num_kv_heads, groups]` bfloat16, one for 32 dimensions of a key; their
            number is even, as in the compiled layout.
        value_scales: `[num_blocks, block_size, num_kv_heads, 1]` float32, one for a value.
    """

    key_scales: torch.Tensor
    value_scales: torch.Tensor

    @property
    def num_bytes(self) -> int:
        """Bytes of all blocks, with scales."""
        return sum(tensor.nbytes for tensor in (self.key, self.value, self.key_scales, self.value_scales))

    def write(self, slots: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
        """See `TorchKVCache.write`."""
        values, scales = quantise_groups(key, torch.bfloat16)
        self.key.flatten(0, 1)[slots] = values.flatten(-2)[..., : key.shape[-1]]
        self.key_scales.flatten(0, 1)[slots, :, : scales.shape[-2]] = scales.squeeze(-1)
        values, scales = _quantise(value.float(), torch.float32)
        self.value.flatten(0, 1)[slots] = values
        self.value_scales.flatten(0, 1)[slots] = scales

    def gather(self, block_table: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See `TorchKVCache.gather`."""
        key, value = self.key[block_table], self.value[block_table]
        scales = self.key_scales[block_table].float().repeat_interleave(INT8_GROUP, dim=-1)[..., : key.shape[-1]]
        return (key * scales).flatten(1, 2), (value * self.value_scales[block_table]).flatten(1, 2)

    def round_query(self, query: torch.Tensor) -> torch.Tensor:
        """See `TorchKVCache.round_query`: quantised in groups of 32, as the keys are."""
        return dequantise_groups(*quantise_groups(query, torch.float32))[..., : query.shape[-1]]


def allocate_layer(spec: KVCacheSpec) -> TorchKVCache:
    """Zeroed blocks of one layer."""

    def zeros(width: int, dtype: torch.dtype) -> torch.Tensor:
        shape = (spec.num_blocks, spec.block_size, spec.num_kv_heads, width)
        if spec.device.type == "cpu":
            return lazy_zeros(math.prod(shape), dtype).view(shape)
        return torch.zeros(shape, dtype=dtype, device=spec.device)

    if spec.kv_cache_dtype == "auto":
        return TorchKVCache(zeros(spec.head_dim, spec.dtype), zeros(spec.head_dim, spec.dtype))
    key, value = zeros(spec.head_dim, torch.int8), zeros(spec.head_dim, torch.int8)
    num_scales = -(-spec.head_dim // (2 * INT8_GROUP)) * 2
    return TorchInt8KVCache(key, value, zeros(num_scales, torch.bfloat16), zeros(1, torch.float32))
