"""Chooses the kernels for a device and dtype."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch

from vllm_mxext import envs
from vllm_mxext.logger import init_logger
from vllm_mxext.native.kernels.compiled import CompiledKernels
from vllm_mxext.native.kernels.interface import Kernels
from vllm_mxext.native.kernels.library import (
    TORCH_ISA,
    best_library,
    requested_isa,
    runnable_isas,
)
from vllm_mxext.native.kernels.torch_deterministic import DeterministicTorchKernels
from vllm_mxext.native.kernels.torch_kernels import TorchKernels

logger = init_logger(__name__)


def select_kernels(
    device: torch.device, dtype: torch.dtype, num_threads: int = 1, *, is_deterministic: bool = False
) -> Kernels:
    """The fastest kernels for `dtype` on `device`.

    On a CPU that is the compiled library for its instruction set, or the one that the environment variable
    `VLLM_MXEXT_CPU_ISA` names (`avx512_bf16`, `avx512`, `avx2`, `arm64_bf16`, `generic` or `torch`).

    Args:
        device: where the model runs.
        dtype: element type of the model.
        num_threads: threads of compiled kernels, for all that share a library in this process; PyTorch has its own.
        is_deterministic: take only kernels whose rows are the same bits in any batch, as compiled ones always are.

    Raises:
        ConfigError: the named library is missing or not for this CPU, an installed one is stale, or it has no kernels
            for `dtype`.
    """
    torch_kernels = DeterministicTorchKernels if is_deterministic else TorchKernels
    if device.type == "cuda" and not is_deterministic and find_spec("triton"):
        from vllm_mxext.native.kernels.triton_kernels import TritonKernels  # noqa: PLC0415 - not a dependency

        return TritonKernels(device)
    if device.type != "cpu":
        return torch_kernels(device)
    library = best_library()
    if library is not None:
        library.set_num_threads(num_threads)
        return CompiledKernels(library, dtype)
    if requested_isa() != TORCH_ISA:
        logger.warning(
            "No compiled kernels are installed: using the slower PyTorch path (set %s=torch to silence this)",
            envs.CPU_ISA.name,
        )
    return torch_kernels(device)


def describe_kernels() -> dict[str, Any]:
    """What this machine's CPU can run: `runnable` instruction sets, the `selected` one and its `library`.

    Raises:
        ConfigError: as `select_kernels`.
    """
    library = best_library()
    return {
        "runnable": [*runnable_isas(), TORCH_ISA],
        "forced": requested_isa(),
        "selected": library.isa if library else TORCH_ISA,
        "library": str(library.path) if library else None,
    }
