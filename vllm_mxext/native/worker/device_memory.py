"""How much memory the device has: the machine's or the container's on a CPU, the card's on CUDA."""

from __future__ import annotations

from vllm_mxext.config.machine import Memory, usable_memory
from vllm_mxext.errors import ConfigError


def device_memory(device: str) -> Memory:
    """Measures `cpu`, `cuda` or `cuda:N`.

    Raises:
        ConfigError: PyTorch cannot use this device.
    """
    if device == "cpu":
        return usable_memory()
    import torch  # noqa: PLC0415  (the CPU plan works without torch)

    try:
        available, total = torch.cuda.mem_get_info(torch.device(device))
    except (AssertionError, RuntimeError) as error:
        raise ConfigError(f"PyTorch {torch.__version__} cannot use {device} here; serve with --device cpu.") from error
    return Memory(total, available)
