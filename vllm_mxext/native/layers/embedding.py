"""Token embeddings: a table of their own, or the output head's weight."""

from __future__ import annotations

from typing import Protocol

import torch

from vllm_mxext.native.kernels.interface import Kernels, PackedLinear


class Embedding(Protocol):
    """Turns token ids into the first hidden states."""

    @property
    def num_bytes(self) -> int:
        """Bytes that nothing else holds."""
        ...

    def __call__(self, token_ids: torch.Tensor, out: torch.Tensor) -> None:
        """Writes one row per token: `token_ids: [M]` int32, `out: [M, H]` float32."""
        ...


class TableEmbedding:
    """An embedding with a table of its own.

    Args:
        kernels: kernel set.
        table: `[vocab_size, H]`.
    """

    __slots__ = ("_kernels", "_table")

    def __init__(self, kernels: Kernels, table: torch.Tensor) -> None:
        self._kernels = kernels
        self._table = table

    @property
    def num_bytes(self) -> int:
        """Bytes of the table."""
        return self._table.nbytes

    def __call__(self, token_ids: torch.Tensor, out: torch.Tensor) -> None:
        """See `Embedding`."""
        self._kernels.embedding(token_ids, self._table, out)


class TiedEmbedding:
    """An embedding that reads the packed output head, so that the shared weight is in memory once.

    Args:
        kernels: kernel set that packed the head.
        head: the output head.
    """

    __slots__ = ("_head", "_kernels")

    def __init__(self, kernels: Kernels, head: PackedLinear) -> None:
        self._kernels = kernels
        self._head = head

    @property
    def num_bytes(self) -> int:
        """Nothing: the head counts."""
        return 0

    def __call__(self, token_ids: torch.Tensor, out: torch.Tensor) -> None:
        """See `Embedding`."""
        self._kernels.tied_embedding(token_ids, self._head, out)
