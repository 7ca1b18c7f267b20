"""Kernels in plain PyTorch: the tests' oracle, and the path for CUDA and for machines without a compiled library."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch.nn import functional

from vllm_mxext.config.engine import Quantization
from vllm_mxext.errors import ConfigError
from vllm_mxext.native.kernels.int4_weight import Int4Weight
from vllm_mxext.native.kernels.interface import (
    AttentionGeometry,
    AttentionMetadata,
    KVCacheSpec,
    LayerKVCache,
    PackedLinear,
)
from vllm_mxext.native.kernels.torch_adapters import TorchAdapterKernels
from vllm_mxext.native.kernels.torch_kv_cache import (
    TorchKVCache,
    allocate_layer,
    dequantise_groups,
    quantise_groups,
)

_NEGATIVE_INFINITY = float("-inf")


@dataclass(frozen=True, slots=True)
class TorchInt8Linear(PackedLinear):
    """An int8 layer.

    Attributes:
        data: `[out_features, groups, 32]` int8, zero past the last column.
        scales: `[out_features, groups, 1]` bfloat16.
    """

    scales: torch.Tensor

    @property
    def num_bytes(self) -> int:
        """Bytes of weights, scales and bias."""
        return self.data.nbytes + self.scales.nbytes + (0 if self.bias is None else self.bias.nbytes)

    def dequantise(self) -> torch.Tensor:
        """The weight the layer stands for, `[out_features, groups * 32]` float32."""
        return dequantise_groups(self.data, self.scales)


@dataclass(frozen=True, slots=True)
class TorchInt4Linear(PackedLinear):
    """An int4 layer.

    Attributes:
        data: `[out_features, ceil(in_features / 2)]` uint8, two weights in a byte, the first one in its lower half.
        scales: `[out_features, groups]` float16.
        zeros: `[out_features, groups]` uint8.
        scale_depth: inputs that share a scale.
        input_order: `[in_features]` int32, which input the k-th weight of a row multiplies; None for the k-th.
    """

    scales: torch.Tensor
    zeros: torch.Tensor
    scale_depth: int
    input_order: torch.Tensor | None

    @property
    def num_bytes(self) -> int:
        """Bytes of weights, scales, zeros, order of inputs and bias."""
        tensors = (self.data, self.scales, self.zeros, self.input_order, self.bias)
        return sum(tensor.nbytes for tensor in tensors if tensor is not None)

    def dequantise(self) -> torch.Tensor:
        """The weight the layer stands for, `[out_features, in_features]` float32, inputs in their order."""
        values = torch.stack((self.data & 15, self.data >> 4), -1).flatten(1)[:, : self.in_features]

        def spread(groups: torch.Tensor) -> torch.Tensor:
            return groups.float().repeat_interleave(self.scale_depth, 1)[:, : self.in_features]

        return (values.float() - spread(self.zeros)) * spread(self.scales)


class TorchKernels(TorchAdapterKernels):
    """Every operation as a few PyTorch calls, on any device.

    Attention gathers the keys and values of each request (`torch_kv_cache.py`) and computes an explicit float32
    softmax: slow, but easy to see right. A step of single-token requests only needs no device-to-host copy; others need
    one per step.
    """

    name = "torch"
    is_batch_invariant = False

    def __init__(self, device: torch.device) -> None:
        """Binds the kernels to the device of one model."""
        super().__init__(device)
        self._step: AttentionMetadata | None = None
        self._step_lengths: tuple[list[int], list[int]] = ([], [])

    def recording(self) -> AbstractContextManager[None]:
        """Records nothing: PyTorch calls cannot be replayed."""
        return nullcontext()

    def enter_step(self, metadata: AttentionMetadata) -> None:
        """Does nothing: there are no recordings."""

    def pack_linear(
        self, weight: torch.Tensor, bias: torch.Tensor | None = None, quantization: Quantization = "none"
    ) -> PackedLinear:
        """Copies the weight to the device; see `Kernels.pack_linear`."""
        out_features, in_features = weight.shape
        if bias is not None:
            bias = bias.detach().to(device=self._device, dtype=torch.float32, copy=True)
        if quantization == "int8":
            values, scales = quantise_groups(weight.detach().to(self._device), torch.bfloat16)
            return TorchInt8Linear(values, bias, in_features, out_features, scales)
        data = weight.detach().to(self._device, copy=True).contiguous()
        return PackedLinear(data, bias, in_features, out_features)

    def pack_int4(self, weight: Int4Weight, bias: torch.Tensor | None = None) -> TorchInt4Linear:
        """Copies the weight to the device; see `Kernels.pack_int4`."""
        values = functional.pad(weight.values(), (0, weight.in_features % 2))
        return TorchInt4Linear(
            data=(values[:, ::2] | values[:, 1::2] << 4).to(self._device),
            bias=None if bias is None else bias.detach().to(device=self._device, dtype=torch.float32, copy=True),
            in_features=weight.in_features,
            out_features=weight.out_features,
            scales=weight.scales.t().to(self._device, copy=True),
            zeros=weight.zeros.t().to(self._device, copy=True),
            scale_depth=weight.scale_depth,
            input_order=None if weight.input_order is None else weight.input_order.to(self._device, copy=True),
        )

    def linear(self, x: torch.Tensor, layer: PackedLinear, out: torch.Tensor) -> None:
        """See `Kernels.linear`."""
        bias = layer.bias
        if isinstance(layer, TorchInt4Linear):
            ordered = x if layer.input_order is None else x[:, layer.input_order]
            rounded = dequantise_groups(*quantise_groups(ordered, torch.float32))[:, : layer.in_features]
            product = self._product(rounded, layer.dequantise())
        elif isinstance(layer, TorchInt8Linear):
            product = self._product(dequantise_groups(*quantise_groups(x, torch.float32)), layer.dequantise())
        elif out.dtype == x.dtype:
            out.copy_(self._product(x, layer.data, None if bias is None else bias.to(x.dtype)))
            return
        elif x.is_cuda:
            product = self._wide_product(x, layer.data)
        else:
            product = self._product(x.float(), layer.data.float())
        out.copy_(product if bias is None else product + bias)

    def _wide_product(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """`x @ weight.T` in float32, on CUDA."""
        return torch.mm(x, weight.t(), out_dtype=torch.float32)

    def embedding(self, token_ids: torch.Tensor, weight: torch.Tensor, out: torch.Tensor) -> None:
        """See `Kernels.embedding`."""
        out.copy_(functional.embedding(token_ids, weight))

    def tied_embedding(self, token_ids: torch.Tensor, head: PackedLinear, out: torch.Tensor) -> None:
        """See `Kernels.tied_embedding`."""
        if isinstance(head, TorchInt8Linear):
            out.copy_(dequantise_groups(head.data[token_ids], head.scales[token_ids])[:, : head.in_features])
        elif isinstance(head, TorchInt4Linear):
            rows = head.dequantise()[token_ids]
            out[:, slice(None) if head.input_order is None else head.input_order] = rows
        else:
            self.embedding(token_ids, head.data, out)

    def rms_norm(self, residual: torch.Tensor, weight: torch.Tensor, eps: float, out: torch.Tensor) -> None:
        """See `Kernels.rms_norm`."""
        out.copy_(_rms_norm(residual, weight, eps))

    def add_rms_norm(
        self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float, out: torch.Tensor
    ) -> None:
        """See `Kernels.add_rms_norm`."""
        residual.add_(x)
        self.rms_norm(residual, weight, eps, out)

    def silu_mul(self, gate_up: torch.Tensor, out: torch.Tensor) -> None:
        """See `Kernels.silu_mul`."""
        gate, up = gate_up.chunk(2, dim=-1)
        torch.mul(functional.silu(gate), up, out=out)

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
        heads, kv_heads, dim = geometry.num_heads, geometry.num_kv_heads, geometry.head_dim
        by_head = qkv.view(qkv.shape[0], heads + 2 * kv_heads, dim)
        query, key, value = by_head[:, :heads], by_head[:, heads : heads + kv_heads], by_head[:, heads + kv_heads :]
        angles = cos_sin[metadata.positions].unsqueeze(1)
        query.copy_(_rotate(query if q_norm is None else _rms_norm(query, q_norm, eps), angles))
        key = _rotate(key if k_norm is None else _rms_norm(key, k_norm, eps), angles).to(qkv.dtype)
        assert isinstance(cache, TorchKVCache)
        cache.write(metadata.slot_mapping, key, value)

    def paged_attention(
        self,
        qkv: torch.Tensor,
        geometry: AttentionGeometry,
        metadata: AttentionMetadata,
        cache: LayerKVCache,
        out: torch.Tensor,
    ) -> None:
        """See `Kernels.paged_attention`."""
        if qkv.shape[0] == 0:
            return
        assert isinstance(cache, TorchKVCache)
        heads, dim = geometry.num_heads, geometry.head_dim
        query = qkv[:, : heads * dim].view(-1, heads, dim)
        output = out.view(-1, heads, dim)
        if metadata.max_query_len == 1 and metadata.seq_lens.shape[0] == qkv.shape[0]:
            blocks = -(-metadata.max_seq_len // cache.block_size)
            table = metadata.block_tables[:, :blocks]
            attended = attend(query.unsqueeze(1), table, metadata.seq_lens, geometry, cache)
            output.copy_(attended.squeeze(1))
            return
        starts, lengths = self._lengths(metadata)
        for request, length in enumerate(lengths):
            first, last = starts[request], starts[request + 1]
            if first == last:
                continue
            table = metadata.block_tables[request : request + 1, : -(-length // cache.block_size)]
            seq_len = metadata.seq_lens[request : request + 1]
            attended = attend(query[first:last].unsqueeze(0), table, seq_len, geometry, cache)
            output[first:last].copy_(attended.squeeze(0))

    def allocate_kv_cache(self, spec: KVCacheSpec) -> list[LayerKVCache]:
        """See `Kernels.allocate_kv_cache`.

        Raises:
            ConfigError: the block size or head size is not positive.
        """
        if spec.block_size <= 0 or spec.head_dim <= 0:
            raise ConfigError(f"KV block size {spec.block_size} and head size {spec.head_dim} must be positive.")
        return [allocate_layer(spec) for _ in range(spec.num_layers)]

    def _lengths(self, metadata: AttentionMetadata) -> tuple[list[int], list[int]]:
        """`query_start_loc` and `seq_lens` on the host; the one synchronisation of a step, made by its first layer."""
        if metadata is not self._step:
            self._step_lengths = (metadata.query_start_loc.tolist(), metadata.seq_lens.tolist())
            self._step = metadata
        return self._step_lengths


def _rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """The norm over the last dimension, rounded to the dtype before the weight multiplies it, as transformers does."""
    values = x.float()
    normalised = values * torch.rsqrt(values.square().mean(-1, keepdim=True) + eps)
    return normalised.to(x.dtype) * weight


def _rotate(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """Rotates `x: [num_tokens, heads, head_dim]` by `angles: [num_tokens, 1, head_dim]`; float32."""
    cosine, sine = angles.chunk(2, dim=-1)
    a, b = x.float().chunk(2, dim=-1)
    return torch.cat((a * cosine - b * sine, b * cosine + a * sine), dim=-1)


def attend(
    query: torch.Tensor,
    block_table: torch.Tensor,
    seq_lens: torch.Tensor,
    geometry: AttentionGeometry,
    cache: TorchKVCache,
) -> torch.Tensor:
    """Attention of the last `queries` positions of each request.

    Args:
        query: `[num_reqs, queries, num_heads, head_dim]`.
        block_table: `[num_reqs, blocks]`, enough blocks for the longest request.
        seq_lens: `[num_reqs]`.
        geometry: heads, scale and window.
        cache: the layer's blocks.

    Returns:
        `[num_reqs, queries, num_heads, head_dim]` float32.
    """
    requests, queries, heads, dim = query.shape
    kv_heads = geometry.num_kv_heads
    key, value = cache.gather(block_table)
    key_positions = torch.arange(key.shape[1], device=query.device)
    lengths = seq_lens[:, None].long()
    query_positions = lengths - queries + torch.arange(queries, device=query.device)
    visible = key_positions <= query_positions[:, :, None]
    if geometry.sliding_window is not None:
        visible &= key_positions > query_positions[:, :, None] - geometry.sliding_window
    # Slots that no query sees may hold anything, NaN included, and 0 * NaN is NaN.
    value = value.masked_fill(~visible.any(1)[:, :, None, None], 0.0)
    grouped = cache.round_query(query).reshape(requests, queries, kv_heads, heads // kv_heads, dim)
    scores = torch.einsum("rqhgd,rkhd->rhgqk", grouped, key) * geometry.scale
    if geometry.soft_cap is not None:
        scores = geometry.soft_cap * torch.tanh(scores / geometry.soft_cap)
    scores = scores.masked_fill(~visible[:, None, None], _NEGATIVE_INFINITY)
    attended = torch.einsum("rhgqk,rkhd->rqhgd", scores.softmax(-1), value)
    return attended.reshape(requests, queries, heads, dim)
