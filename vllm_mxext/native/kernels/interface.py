"""The operations a model forward is made of, as one interface with several implementations."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import torch

from vllm_mxext.config.engine import KVCacheDType, Quantization
from vllm_mxext.config.memory_plan import kv_row_bytes
from vllm_mxext.native.kernels.adapters import AdapterLayer, AdapterRanges, AdapterWeights, PackedAdapter
from vllm_mxext.native.kernels.int4_weight import Int4Weight

INT8_GROUP = 32
"""Neighbouring values that share a scale: along K in an int8 layer, along the head in an int8 key."""


@dataclass(frozen=True, slots=True)
class LayerKVCache:
    """Key and value blocks of one layer; only the kernel set that allocated them knows their layout."""

    key: torch.Tensor
    value: torch.Tensor

    @property
    def num_bytes(self) -> int:
        """Bytes of all blocks."""
        return self.key.nbytes + self.value.nbytes


@dataclass(frozen=True, slots=True)
class KVCacheSpec:
    """Geometry of a paged KV cache.

    Attributes:
        num_layers: decoder layers that keep keys and values.
        num_blocks: KV blocks per layer, the null block 0 included.
        block_size: token positions per block.
        num_kv_heads: key/value heads per layer.
        head_dim: elements per head.
        dtype: element type of the activations.
        device: where the blocks live.
        kv_cache_dtype: what keys and values are kept as. `auto` is `dtype`; with `int8`, every 32 neighbouring
            dimensions of a key share a bfloat16 scale and a value has one float32 scale, of largest magnitude / 127.
    """

    num_layers: int
    num_blocks: int
    block_size: int
    num_kv_heads: int
    head_dim: int
    dtype: torch.dtype
    device: torch.device
    kv_cache_dtype: KVCacheDType = "auto"

    @property
    def row_bytes(self) -> tuple[int, int]:
        """Bytes of one token's key and of its value in one head."""
        return kv_row_bytes(self.head_dim, self.dtype.itemsize, self.kv_cache_dtype)

    @property
    def block_bytes(self) -> int:
        """Bytes of one block over all layers, keys and values together."""
        return self.num_layers * self.block_size * self.num_kv_heads * sum(self.row_bytes)


@dataclass(frozen=True, slots=True)
class AttentionMetadata:
    """Where the tokens of one step stand; all tensors are on the model's device.

    One object per step: kernels may keep what they derive from it for as long as they are handed the same object.

    Attributes:
        positions: `[num_tokens]` int32, position of each token in its request.
        slot_mapping: `[num_tokens]` int64, KV slot (`block_id * block_size + offset`) each token is written to.
        block_tables: `[num_reqs, max_blocks_per_req]` int32, contiguous rows; entries past a request's end are 0.
        query_start_loc: `[num_reqs + 1]` int32, first token of each request in the flattened batch.
        seq_lens: `[num_reqs]` int32, tokens of each request with keys after this step (computed + scheduled).
        max_query_len: largest number of scheduled tokens of one request.
        max_seq_len: largest entry of `seq_lens`.
    """

    positions: torch.Tensor
    slot_mapping: torch.Tensor
    block_tables: torch.Tensor
    query_start_loc: torch.Tensor
    seq_lens: torch.Tensor
    max_query_len: int
    max_seq_len: int


@dataclass(frozen=True, slots=True)
class AttentionGeometry:
    """Constants of one attention layer.

    Attributes:
        num_heads: query heads.
        num_kv_heads: key/value heads; `num_heads` is a multiple of it (MHA, GQA, MQA).
        head_dim: elements per head.
        scale: factor on `q @ k`.
        sliding_window: a token sees itself and the `sliding_window - 1` tokens before it; None = all.
        soft_cap: scaled scores become `soft_cap * tanh(score / soft_cap)` (Gemma 2); None = they stay.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    sliding_window: int | None = None
    soft_cap: float | None = None


@dataclass(frozen=True, slots=True)
class PackedLinear:
    """A linear layer's weights in the layout its kernel set reads.

    Attributes:
        data: the weights, layout private to the kernel set.
        bias: `[out_features]` float32, or None.
        in_features: K.
        out_features: N.
    """

    data: torch.Tensor
    bias: torch.Tensor | None
    in_features: int
    out_features: int

    @property
    def num_bytes(self) -> int:
        """Bytes of weights and bias."""
        return self.data.nbytes + (0 if self.bias is None else self.bias.nbytes)


class Recording(Protocol):
    """The kernel calls of one forward pass, ready to be made again."""

    def replay(self, num_rows: int) -> None:
        """Makes them again for the leading `num_rows` rows of the same tensors."""
        ...


class Kernels(Protocol):
    """One implementation of the model's operations.

    Activations and weights of one model share one floating dtype (`bfloat16`, `float16` or `float32`) except where a
    method says otherwise; so does its KV cache, unless its spec says int8. Two-dimensional activations are row-major
    with unit stride in the last dimension; rows may be strided. Outputs are written in place and must not alias inputs
    unless a method says so.
    """

    name: str
    """For logs and `collect-env`, for example `avx512_bf16` or `torch`."""

    is_batch_invariant: bool
    """Whether a row's result is bit-identical whatever else is in the batch and however prefill was chunked."""

    def recording(self) -> AbstractContextManager[Recording | None]:
        """Runs the calls made inside as usual and notes them; None from kernels that cannot.

        Every tensor handed over must be the leading rows of one that lives on, with one and the same number of rows.
        """
        ...

    def enter_step(self, metadata: AttentionMetadata) -> None:
        """Says where the tokens of a step stand before a recording is replayed."""
        ...

    def pack_linear(
        self, weight: torch.Tensor, bias: torch.Tensor | None = None, quantization: Quantization = "none"
    ) -> PackedLinear:
        """Packs copies of `weight: [N, K]` (any N, K >= 1) and `bias: [N]`; both may be overwritten afterwards.

        With `int8`, every 32 neighbouring weights of a row share a bfloat16 scale of largest magnitude / 127.
        """
        ...

    def pack_int4(self, weight: Int4Weight, bias: torch.Tensor | None = None) -> PackedLinear:
        """Packs copies of the int4 weights of a checkpoint and of `bias: [N]`."""
        ...

    def linear(self, x: torch.Tensor, layer: PackedLinear, out: torch.Tensor) -> None:
        """Writes `x @ weight.T + bias`: `x: [M, K]`, `out: [M, N]` in x's dtype or float32; sums are float32.

        For an int8 layer x is quantised too, in groups of 32 with a float32 scale of largest magnitude / 127.
        """
        ...

    def pack_adapter(self, layers: Sequence[AdapterWeights]) -> Sequence[PackedAdapter]:
        """Packs copies of one adapter's weights, in the model's dtype, for several linear layers, in host memory.

        All of it lies in memory of its own, which the system has back as soon as the last of the results is gone.
        """
        ...

    def make_adapter_layer(self, in_features: int, out_features: int, num_slots: int) -> AdapterLayer:
        """Makes the slots of a linear layer, slot 0 included, all empty."""
        ...

    def make_adapter_ranges(self, max_ranges: int) -> AdapterRanges:
        """Makes a place for so many ranges."""
        ...

    def adapt(self, x: torch.Tensor, layer: AdapterLayer, ranges: AdapterRanges, out: torch.Tensor) -> None:
        """Adds to `out: [M, N]` what the adapters of its ranges do: `x: [M, K]`; sums are float32.

        Rows outside of the ranges, and those of slots that are empty in this layer, stay as they are. `out` holds the
        layer's own product, in x's dtype or float32.
        """
        ...

    def embedding(self, token_ids: torch.Tensor, weight: torch.Tensor, out: torch.Tensor) -> None:
        """Gathers rows: `token_ids: [M]` int32, `weight: [V, H]`, `out: [M, H]` of the same dtype or float32."""
        ...

    def tied_embedding(self, token_ids: torch.Tensor, head: PackedLinear, out: torch.Tensor) -> None:
        """Gathers rows of the weight that `head` was packed from, as it is after packing; `out` float32."""
        ...

    def rms_norm(self, residual: torch.Tensor, weight: torch.Tensor, eps: float, out: torch.Tensor) -> None:
        """Writes `residual / sqrt(mean(residual^2) + eps) * weight`: `residual: [M, H]` float32, `out: [M, H]`."""
        ...

    def add_rms_norm(
        self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float, out: torch.Tensor
    ) -> None:
        """`residual += x` in place, then `rms_norm()` of it; `x: [M, H]`."""
        ...

    def silu_mul(self, gate_up: torch.Tensor, out: torch.Tensor) -> None:
        """Writes `silu(gate) * up`: `gate_up: [M, 2 * I]` (gate first), `out: [M, I]`."""
        ...

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
        """Normalises and rotates queries and keys, then stores keys and values in the cache.

        Args:
            qkv: `[num_tokens, (num_heads + 2 * num_kv_heads) * head_dim]`, heads in order q, k, v. The query part is
                overwritten with rotated queries; the key part is unspecified afterwards.
            q_norm: `[head_dim]` weight of the per-head RMS norm of queries (Qwen3), or None.
            k_norm: the same for keys.
            eps: epsilon of these norms.
            cos_sin: `[max_positions, head_dim]` float32; row p holds cos then sin of p's angles, `head_dim / 2` each
                (rotate-half convention, as in transformers' Llama).
            geometry: the layer's heads.
            metadata: positions and slots of the tokens.
            cache: the layer's blocks.
        """
        ...

    def paged_attention(
        self,
        qkv: torch.Tensor,
        geometry: AttentionGeometry,
        metadata: AttentionMetadata,
        cache: LayerKVCache,
        out: torch.Tensor,
    ) -> None:
        """Causal attention of every scheduled token over its request's keys in the cache.

        Over an int8 cache the queries are quantised too, in groups of 32 dimensions with a float32 scale of largest
        magnitude / 127; compiled kernels also round the softmax's weights to 8 bits.

        Args:
            qkv: as left by `rope_kv_write`; only the leading query part of each row is read.
            geometry: heads, scale and window.
            metadata: the step's block tables and lengths. The queries of request r are its last
                `query_start_loc[r + 1] - query_start_loc[r]` positions.
            cache: the layer's blocks, already holding this step's keys and values.
            out: `[num_tokens, num_heads * head_dim]`.
        """
        ...

    def allocate_kv_cache(self, spec: KVCacheSpec) -> list[LayerKVCache]:
        """Allocates zeroed blocks for every layer, `spec.block_bytes * spec.num_blocks` bytes in all.

        Raises:
            ConfigError: block size or head size not supported by this kernel set.
        """
        ...
