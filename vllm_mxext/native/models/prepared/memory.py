"""Getting a file's data into memory: mapped where the system backs that with large pages, else read.

Without large pages a linear layer of one row takes a fifth longer, because no TLB covers a model in pages of 4 KiB.
Linux maps a file in large pages if its page cache holds it in such, as recent versions do for files that are written or
read ahead in large, aligned pieces; docs/log.md has the figures.
"""

from __future__ import annotations

import mmap
import os
import re
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from vllm_mxext.native.kernels.lazy_memory import large_page_memory
from vllm_mxext.native.models.prepared.file_format import BadFileError

_MADV_POPULATE_READ = 22  # from linux/mman.h; the mmap module does not name it
_ENOUGH_LARGE_PAGES = 0.75
"""Share of a mapping in large pages from which on it is taken: decoding loses 5% at most, and reading takes longer."""

_READ_BYTES = 8 * 2**20
_MAX_READERS = 8


def map_data(descriptor: int, start: int, num_bytes: int) -> torch.Tensor | None:
    """Maps a file's data if that gives large pages.

    Args:
        descriptor: the open file.
        start: first byte of the data, a multiple of 2 MiB.
        num_bytes: size of the data.

    Returns:
        `[num_bytes]` uint8, not to be written; None if reading is better.
    """
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    try:
        memory = mmap.mmap(descriptor, start + num_bytes, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)
        memory.madvise(mmap.MADV_HUGEPAGE)
        memory.madvise(_MADV_POPULATE_READ, start, num_bytes)
    except OSError:  # Linux before 5.14, or a file system that cannot
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of memory that must not be written; nobody writes weights
        data = torch.frombuffer(memory, dtype=torch.uint8)[start:]
    if large_page_bytes(data.data_ptr()) < _ENOUGH_LARGE_PAGES * num_bytes:
        return None
    return data


def read_data(descriptor: int, start: int, num_bytes: int, num_threads: int) -> torch.Tensor:
    """Reads a file's data into memory of its own, with several threads: one alone copies at half the speed.

    Args:
        descriptor: the open file.
        start: first byte of the data.
        num_bytes: size of the data.
        num_threads: cores to use.

    Returns:
        `[num_bytes]` uint8, in large pages where the system has them.

    Raises:
        OSError: it cannot be read.
        BadFileError: it ends early.
    """
    data = large_page_memory(num_bytes)
    view = data.numpy().data

    def read_piece(first: int) -> None:
        last = min(first + _READ_BYTES, num_bytes)
        while first < last:
            count = os.preadv(descriptor, [view[first:last]], start + first)
            if count == 0:
                raise BadFileError("it is cut off")
            first += count

    with ThreadPoolExecutor(min(num_threads, _MAX_READERS), thread_name_prefix="read-weights") as readers:
        for _ in readers.map(read_piece, range(0, num_bytes, _READ_BYTES)):
            pass
    return data


def large_page_bytes(address: int, smaps: Path = Path("/proc/self/smaps")) -> int:
    """Bytes of the mapping at `address` that large pages back; 0 if the system does not say.

    Args:
        address: an address inside.
        smaps: what the system says of this process's memory.
    """
    is_inside = False
    try:
        with smaps.open(encoding="ascii", errors="replace") as lines:
            for line in lines:
                bounds = re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line)
                if bounds is not None:
                    is_inside = int(bounds[1], 16) <= address < int(bounds[2], 16)
                elif is_inside and line.startswith("FilePmdMapped:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0
