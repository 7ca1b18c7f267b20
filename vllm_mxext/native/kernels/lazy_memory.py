"""Zeroed memory that takes no space until it is used."""

from __future__ import annotations

import numpy as np
import torch


def lazy_zeros(num_elements: int, dtype: torch.dtype) -> torch.Tensor:
    """Returns zeroed CPU memory, `[num_elements]`, that the system provides page by page when it is first written.

    `torch.zeros` writes every byte: seconds at start-up, and a KV cache that is fully resident before it is used.
    """
    return torch.from_numpy(np.zeros(num_elements * dtype.itemsize, dtype=np.uint8)).view(dtype)
