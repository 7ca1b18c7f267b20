"""`AdapterEnds`: an adapter's own token embedding and output head."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vllm_mxext.native.kernels.interface import Kernels, PackedLinear


@dataclass(frozen=True, slots=True)
class LowRankEmbedding:
    """What an adapter adds to the embedding of a token: `scaling * (b @ a[token])`.

    Attributes:
        a: `[vocab_size, r]` in the model's dtype.
        b: packed `[H, r]`.
        scaling: factor on the product.
    """

    a: torch.Tensor
    b: PackedLinear
    scaling: float


@dataclass(frozen=True, slots=True)
class AdapterEnds:
    """Parts of an adapter that are no additions to linear layers; rare, so nothing here is recorded.

    A request's scale c goes from the model's own weights (0) to the adapter's (1).

    Attributes:
        kernels: kernel set that packed them.
        table: `[vocab_size, H]` that takes the place of the embedding, or None.
        low_rank: what is added to the embedding, or None.
        head: what takes the place of the output head, or None.
    """

    kernels: Kernels
    table: torch.Tensor | None = None
    low_rank: LowRankEmbedding | None = None
    head: PackedLinear | None = None

    @property
    def num_bytes(self) -> int:
        """Bytes of all of them."""
        num_bytes = 0 if self.table is None else self.table.nbytes
        if self.low_rank is not None:
            num_bytes += self.low_rank.a.nbytes + self.low_rank.b.num_bytes
        return num_bytes + (0 if self.head is None else self.head.num_bytes)

    def embed(self, token_ids: torch.Tensor, scale: float, out: torch.Tensor) -> None:
        """Changes the first hidden states of tokens: `token_ids: [M]` int32, `out: [M, H]` float32."""
        if self.table is not None:
            own = torch.empty_like(out)
            self.kernels.embedding(token_ids, self.table, own)
            out.copy_(own if scale == 1 else torch.lerp(out, own, scale))
        if self.low_rank is not None:
            rows = self.low_rank.a.new_empty(len(token_ids), self.low_rank.a.shape[1])
            added = torch.empty_like(out)
            self.kernels.embedding(token_ids, self.low_rank.a, rows)
            self.kernels.linear(rows, self.low_rank.b, added)
            out.add_(added, alpha=self.low_rank.scaling * scale)

    def project(self, hidden: torch.Tensor, scale: float, logits: torch.Tensor) -> None:
        """Changes logits: `hidden: [M, H]`, `logits: [M, vocab_size]` float32."""
        if self.head is not None:
            own = torch.empty_like(logits)
            self.kernels.linear(hidden, self.head, own)
            logits.copy_(own if scale == 1 else torch.lerp(logits, own, scale))
