"""Memory that takes no space until it is used, and what the system was told about it."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch

from vllm_mxext.native.kernels.lazy_memory import large_page_memory, lazy_zeros


def test_lazy_zeros_are_zero() -> None:
    zeros = lazy_zeros(1000, torch.bfloat16)
    assert zeros.dtype is torch.bfloat16
    assert torch.equal(zeros, torch.zeros(1000, dtype=torch.bfloat16))


def test_large_page_memory_begins_at_a_large_page() -> None:
    memory = large_page_memory(5_000_000)
    assert memory.shape == (5_000_000,)
    assert memory.data_ptr() % 2**21 == 0
    memory[-1] = 7
    assert memory.sum() == 7


@pytest.mark.skipif(not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="this system has no large pages")
@pytest.mark.skipif(sys.platform != "linux", reason="reads what Linux says of a process's memory")
def test_large_page_memory_is_private_and_advised() -> None:
    # Shared memory would follow another setting of the system, which is off nearly everywhere.
    memory = large_page_memory(5_000_000)
    address = memory.data_ptr()
    flags: list[str] = []
    is_inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        bounds = re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line)
        if bounds:
            is_inside = int(bounds[1], 16) <= address < int(bounds[2], 16)
        elif is_inside and line.startswith("VmFlags:"):
            flags = line.split()[1:]
    assert "hg" in flags
    assert "sh" not in flags
