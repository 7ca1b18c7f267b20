"""`StepBuffers`: the tensors a step's inputs are written to, allocated once, with host views for numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch


class StepBuffer:
    """One tensor on the device with a host array to fill it from.

    On a CPU both are the same memory; elsewhere the host side is pinned and copied without waiting.

    Args:
        length: elements of both.
        dtype: element type of both.
        device: where the tensor is wanted.
    """

    __slots__ = ("_host", "_tensor", "_view", "array")

    def __init__(self, length: int, dtype: torch.dtype, device: torch.device) -> None:
        is_host = device.type == "cpu"
        self._host = torch.zeros(length, dtype=dtype, pin_memory=not is_host)
        self._tensor = self._host if is_host else torch.zeros(length, dtype=dtype, device=device)
        self._view = self._tensor
        self.array: npt.NDArray[Any] = self._host.numpy()
        """The host side; what is written here is seen by the next `tensor()`."""

    def tensor(self, length: int) -> torch.Tensor:
        """The leading elements on the device, after copying them there if it is elsewhere."""
        if len(self._view) != length:
            self._view = self._tensor[:length]
        if self._tensor is not self._host:
            self._view.copy_(self._host[:length], non_blocking=True)
        return self._view


class StepBuffers:
    """Inputs of one step.

    Args:
        max_num_tokens: the token budget.
        max_num_seqs: requests of one step at most.
        max_num_samples: positions sampled in one step at most.
        max_blocks: blocks of the longest request.
        device: the model's device.
    """

    def __init__(
        self, max_num_tokens: int, max_num_seqs: int, max_num_samples: int, max_blocks: int, device: torch.device
    ) -> None:
        self.token_ids = StepBuffer(max_num_tokens, torch.int32, device)
        self.positions = StepBuffer(max_num_tokens, torch.int32, device)
        self.slot_mapping = StepBuffer(max_num_tokens, torch.int64, device)
        self.query_start_loc = StepBuffer(max_num_seqs + 1, torch.int32, device)
        self.seq_lens = StepBuffer(max_num_seqs, torch.int32, device)
        self.sample_indices = StepBuffer(max_num_samples, torch.int32, device)
        self.block_tables = StepBuffer(max_num_seqs * max_blocks, torch.int32, device)
        self.token_range = np.arange(max_num_tokens, dtype=np.int32)
        """0, 1, 2, ... for cutting ranges out of."""

    @property
    def num_bytes(self) -> int:
        """Bytes on the host."""
        return self.token_range.nbytes + sum(
            buffer.array.nbytes for buffer in vars(self).values() if isinstance(buffer, StepBuffer)
        )
