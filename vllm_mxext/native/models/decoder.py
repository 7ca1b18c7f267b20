"""`Decoder`: the forward pass shared by all Llama-like families."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from vllm_mxext.native.kernels.adapters import AdapterRanges
from vllm_mxext.native.kernels.interface import AttentionMetadata, Kernels, LayerKVCache, Recording
from vllm_mxext.native.layers.activations import Activations
from vllm_mxext.native.layers.attention import Attention
from vllm_mxext.native.layers.embedding import Embedding
from vllm_mxext.native.layers.linear import Linear
from vllm_mxext.native.layers.mlp import GatedMLP
from vllm_mxext.native.layers.norm import RMSNorm
from vllm_mxext.native.models.batch_adapters import UNADAPTED, AdaptedRows, BatchAdapters


@dataclass(frozen=True, slots=True)
class ForwardBatch:
    """Input of one forward pass.

    Attributes:
        token_ids: `[num_tokens]` int32.
        attention: where these tokens stand.
        sample_indices: `[num_samples]` int32, ascending rows of `token_ids` whose logits are wanted.
        adapters: rows with adapters; None if there are none.
    """

    token_ids: torch.Tensor
    attention: AttentionMetadata
    sample_indices: torch.Tensor
    adapters: BatchAdapters | None = None


class SideRows(Protocol):
    """Rows besides those that sample whose logits somebody wants to see."""

    @property
    def indices(self) -> torch.Tensor:
        """`[n]` int32, ascending rows of the batch's tokens."""
        ...

    @property
    def max_rows(self) -> int:
        """How many of them to compute at a time."""
        ...

    def take(self, logits: torch.Tensor) -> None:
        """Takes the logits of the next rows, valid until it returns: `[at most max_rows, vocab_size]` float32."""
        ...


@dataclass(frozen=True, slots=True)
class DecoderLayer:
    """One transformer layer."""

    attention_norm: RMSNorm
    attention: Attention
    mlp_norm: RMSNorm
    mlp: GatedMLP


@dataclass(frozen=True, slots=True)
class DecoderWeights:
    """All weights of a decoder, ready to run.

    Attributes:
        embedding: of the tokens.
        layers: from input to output.
        final_norm: norm before the head.
        head: output head.
    """

    embedding: Embedding
    layers: tuple[DecoderLayer, ...]
    final_norm: RMSNorm
    head: Linear

    @property
    def linears(self) -> Sequence[Linear]:
        """All linear layers."""
        linears = [self.head]
        for layer in self.layers:
            linears += [layer.attention.qkv, layer.attention.output, layer.mlp.gate_up, layer.mlp.down]
        return linears

    @property
    def num_bytes(self) -> int:
        """Bytes of all weights and of the rotary table."""
        tensors = [self.final_norm.weight, self.layers[0].attention.cos_sin]
        for layer in self.layers:
            attention = layer.attention
            tensors += [layer.attention_norm.weight, layer.mlp_norm.weight]
            if attention.head_norms:
                tensors += [attention.head_norms.query, attention.head_norms.key]
        num_bytes = sum(linear.num_bytes for linear in self.linears) + sum(tensor.nbytes for tensor in tensors)
        return num_bytes + self.embedding.num_bytes


class Decoder:
    """Runs flattened batches of tokens, of any mix of prompts and single tokens, through all layers.

    Args:
        kernels: kernel set to run on.
        weights: packed by the same kernel set.
        buffers: activations, large enough for the token budget.
    """

    def __init__(self, kernels: Kernels, weights: DecoderWeights, buffers: Activations) -> None:
        self._kernels = kernels
        self._weights = weights
        self._buffers = buffers
        self._recordings: dict[bool, Recording | None] = {}
        """Whether there are adapters -> the calls of a decode step."""
        self._recorded_for: tuple[int, int] | None = None
        self._recorded_logits = buffers.logits

    @property
    def weights(self) -> DecoderWeights:
        """What it computes with."""
        return self._weights

    def forward(
        self, batch: ForwardBatch, caches: Sequence[LayerKVCache], side_rows: SideRows | None = None
    ) -> torch.Tensor:
        """Computes the logits of the rows that sample and stores the keys and values of all rows.

        Args:
            batch: the step's tokens.
            caches: KV blocks of every layer.
            side_rows: further rows whose logits are handed over on the way.

        Returns:
            `[num_samples, vocab_size]` float32, valid until the next call; may be changed in place.
        """
        num_tokens, adapters = batch.token_ids.shape[0], batch.adapters
        can_repeat = batch.sample_indices.shape[0] == num_tokens and side_rows is None
        if num_tokens == 0 or not can_repeat or (adapters is not None and adapters.has_ends):
            return self._compute(batch, caches, side_rows)
        # Every token samples, as in all decode steps: the same calls each time, but for the number of rows.
        key, has_adapters = (batch.token_ids.data_ptr(), id(caches)), adapters is not None
        if key != self._recorded_for:
            self._recordings, self._recorded_for = {}, key
        if has_adapters not in self._recordings:
            with self._kernels.recording() as recording:
                logits = self._compute(batch, caches)
            self._recordings[has_adapters] = recording
            return logits
        recorded = self._recordings[has_adapters]
        if recorded is None:
            return self._compute(batch, caches)
        self._kernels.enter_step(batch.attention)
        if len(self._recorded_logits) != num_tokens:  # the same tensor again, as PyTorch is slow when caches are cold
            self._recorded_logits = self._buffers.logits[:num_tokens]
        recorded.replay(num_tokens)
        return self._recorded_logits

    def _compute(
        self, batch: ForwardBatch, caches: Sequence[LayerKVCache], side_rows: SideRows | None = None
    ) -> torch.Tensor:
        buffers, layers, adapters = self._buffers, self._weights.layers, batch.adapters
        num_tokens = batch.token_ids.shape[0]
        rows = sampled = UNADAPTED
        if adapters is not None:
            rows = adapters.tokens
            sampled = rows if batch.sample_indices.shape[0] == num_tokens else adapters.samples
        residual = buffers.residual[:num_tokens]
        normed, projected = buffers.normed[:num_tokens], buffers.projected[:num_tokens]
        self._weights.embedding(batch.token_ids, residual)
        for span, ends, scale in rows.with_ends():
            ends.embed(batch.token_ids[span], scale, residual[span])
        for index, layer in enumerate(layers):
            if index == 0:
                layer.attention_norm(residual, normed)
            else:
                layer.attention_norm.add(projected, residual, normed)
            attended = layer.attention.attend(normed, buffers, batch.attention, caches[index], rows.place)
            if index == len(layers) - 1:
                break  # keys and values are stored: from here on only rows that sample are worth computing
            self._feed_forward(layer, attended, residual, rows.place)
        if side_rows is not None:
            for start in range(0, len(side_rows.indices), side_rows.max_rows):
                indices = side_rows.indices[start : start + side_rows.max_rows]
                kept = self._keep_samples(attended, residual, indices, always_copies=True)
                side_rows.take(self._logits(*kept, adapters.of_rows(indices) if adapters else UNADAPTED))
        return self._logits(*self._keep_samples(attended, residual, batch.sample_indices), sampled)

    def _feed_forward(
        self, layer: DecoderLayer, attended: torch.Tensor, residual: torch.Tensor, ranges: AdapterRanges | None
    ) -> None:
        """What follows attention in a layer; leaves its result in `buffers.projected`."""
        num_rows = len(residual)
        normed, projected = self._buffers.normed[:num_rows], self._buffers.projected[:num_rows]
        layer.attention.output(attended, projected, ranges)
        layer.mlp_norm.add(projected, residual, normed)
        layer.mlp(normed, self._buffers, projected, ranges)

    def _logits(self, attended: torch.Tensor, residual: torch.Tensor, rows: AdaptedRows) -> torch.Tensor:
        """The rest of the last layer, and the head."""
        num_rows = len(residual)
        logits = self._buffers.logits[:num_rows]
        if num_rows:
            normed = self._buffers.normed[:num_rows]
            self._feed_forward(self._weights.layers[-1], attended, residual, rows.place)
            self._weights.final_norm.add(self._buffers.projected[:num_rows], residual, normed)
            self._weights.head(normed, logits, rows.place)
            for span, ends, scale in rows.with_ends():
                ends.project(normed[span], scale, logits[span])
        return logits

    def _keep_samples(
        self, attended: torch.Tensor, residual: torch.Tensor, indices: torch.Tensor, *, always_copies: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        num_samples = indices.shape[0]
        if num_samples == attended.shape[0] and not always_copies:
            return attended, residual
        kept_attended = self._buffers.sampled_attended[:num_samples]
        kept_residual = self._buffers.sampled_residual[:num_samples]
        if num_samples:
            self._kernels.embedding(indices, attended, kept_attended)
            self._kernels.embedding(indices, residual, kept_residual)
        return kept_attended, kept_residual
