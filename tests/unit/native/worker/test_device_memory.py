"""The memory of a device."""

from __future__ import annotations

import pytest
import torch

from vllm_mxext.errors import ConfigError
from vllm_mxext.native.worker.device_memory import device_memory


def test_this_machine_has_memory() -> None:
    memory = device_memory("cpu")
    assert 0 < memory.available_bytes <= memory.total_bytes


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is there")
def test_a_device_that_is_not_there_is_refused_with_the_way_out() -> None:
    with pytest.raises(ConfigError, match="--device cpu"):
        device_memory("cuda")
