"""Memory that takes no space until it is used."""

from __future__ import annotations

import contextlib
import mmap

import numpy as np
import torch

_LARGE_PAGE_BYTES = 2 * 2**20


def lazy_zeros(num_elements: int, dtype: torch.dtype) -> torch.Tensor:
    """Returns zeroed CPU memory, `[num_elements]`, that the system provides page by page when it is first written.

    `torch.zeros` writes every byte: seconds at start-up, and a KV cache that is fully resident before it is used.
    """
    return torch.from_numpy(np.zeros(num_elements * dtype.itemsize, dtype=np.uint8)).view(dtype)


def large_page_memory(num_bytes: int) -> torch.Tensor:
    """Returns zeroed CPU memory, `[num_bytes]` uint8, that large pages back where the system has them.

    It begins at a large page, as a file's data should that is read into it in large pieces.
    """
    whole = anonymous_memory(num_bytes + _LARGE_PAGE_BYTES, has_large_pages=True)
    first = -whole.data_ptr() % _LARGE_PAGE_BYTES
    return whole[first : first + num_bytes]


def anonymous_memory(num_bytes: int, *, has_large_pages: bool = False) -> torch.Tensor:
    """Returns zeroed CPU memory, `[num_bytes]` uint8, apart from all other: the system has it back with its last view.

    Args:
        num_bytes: how much; at least 1.
        has_large_pages: asks the system for them.
    """
    # Private: memory that could be shared with other processes gets large pages under another setting only.
    memory = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if has_large_pages:
        with contextlib.suppress(AttributeError, OSError):  # another system than Linux, or a kernel without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8)
