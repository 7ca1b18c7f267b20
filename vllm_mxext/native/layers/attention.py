"""`Attention`: projections, rotary embedding, KV write and paged attention of one layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vllm_mxext.native.kernels.adapters import AdapterRanges
from vllm_mxext.native.kernels.interface import AttentionGeometry, AttentionMetadata, Kernels, LayerKVCache
from vllm_mxext.native.layers.activations import Activations
from vllm_mxext.native.layers.linear import Linear


@dataclass(frozen=True, slots=True)
class HeadNorms:
    """Per-head RMS norms applied before rotation (Qwen3).

    Attributes:
        query: `[head_dim]` weight.
        key: `[head_dim]` weight.
        eps: added to the mean square.
    """

    query: torch.Tensor
    key: torch.Tensor
    eps: float


class Attention:
    """Self-attention up to, but without, the output projection's residual addition.

    Args:
        kernels: kernel set to run on.
        geometry: heads, scale and window.
        qkv: fused projection, rows in order q, k, v.
        output: projection back to the hidden size.
        head_norms: norms of queries and keys, or None.
        cos_sin: `[max_positions, head_dim]` float32 rotary table.
    """

    __slots__ = ("_kernels", "cos_sin", "geometry", "head_norms", "output", "qkv")

    def __init__(
        self,
        kernels: Kernels,
        geometry: AttentionGeometry,
        qkv: Linear,
        output: Linear,
        head_norms: HeadNorms | None,
        cos_sin: torch.Tensor,
    ) -> None:
        self._kernels = kernels
        self.geometry = geometry
        self.qkv = qkv
        self.output = output
        self.head_norms = head_norms
        self.cos_sin = cos_sin

    def attend(
        self,
        x: torch.Tensor,
        buffers: Activations,
        metadata: AttentionMetadata,
        cache: LayerKVCache,
        ranges: AdapterRanges | None = None,
    ) -> torch.Tensor:
        """Attends for every token and stores its keys and values; `output` is still to be applied.

        Args:
            x: `[num_tokens, H]` normed hidden states.
            buffers: where results go.
            metadata: positions, slots and lengths of the tokens.
            cache: the layer's KV blocks.
            ranges: rows with adapters.

        Returns:
            `[num_tokens, num_heads * head_dim]`, a view into `buffers`.
        """
        num_tokens = x.shape[0]
        qkv, attended = buffers.qkv[:num_tokens], buffers.attended[:num_tokens]
        self.qkv(x, qkv, ranges)
        norms = self.head_norms
        self._kernels.rope_kv_write(
            qkv,
            norms.query if norms else None,
            norms.key if norms else None,
            norms.eps if norms else 0.0,
            self.cos_sin,
            self.geometry,
            metadata,
            cache,
        )
        self._kernels.paged_attention(qkv, self.geometry, metadata, cache, attended)
        return attended
