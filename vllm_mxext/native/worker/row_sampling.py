"""`CompiledRowSampling`: draws tokens with the compiled kernels, all rows on all threads."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from vllm_mxext.native.kernels.compiled import CompiledKernels
from vllm_mxext.native.kernels.interface import Kernels
from vllm_mxext.native.kernels.library import KernelLibrary
from vllm_mxext.native.sampling.metadata import SamplingMetadata


class CompiledRowSampling:
    """Samples rows as `filters.py` does in numpy; not for several threads at once.

    Args:
        library: with as many threads as the forward pass uses.
    """

    def __init__(self, library: KernelLibrary) -> None:
        self._sample = library.operation("mx_sample")
        self._columns: tuple[npt.NDArray[Any], ...] = ()
        self._addresses: list[int] = []
        """Of the columns: the same arrays in every step, as long as the same rows sample."""

    def __call__(
        self,
        logits: npt.NDArray[np.float32],
        rows: npt.NDArray[np.int64],
        metadata: SamplingMetadata,
        uniform: npt.NDArray[np.float64],
        token_ids: npt.NDArray[np.int64],
    ) -> None:
        """Writes the tokens of `rows` into `token_ids`; -1 where logits are not usable.

        Args:
            logits: `[n, vocab_size]`, unit stride in the last dimension.
            rows: which of them to sample.
            metadata: of all `n` rows.
            uniform: `[n]` in [0, 1).
            token_ids: `[n]`.
        """
        if not self._columns or self._columns[0] is not metadata.temperature:
            self._columns = (metadata.temperature, metadata.top_k, metadata.top_p, metadata.min_p)
            assert all(column.flags.c_contiguous for column in self._columns)
            self._addresses = [column.ctypes.data for column in self._columns]
        self._sample(
            logits.ctypes.data,
            logits.strides[0] // logits.itemsize,
            logits.shape[1],
            rows.ctypes.data,
            len(rows),
            *self._addresses,
            uniform.ctypes.data,
            token_ids.ctypes.data,
        )


def row_sampling(kernels: Kernels) -> CompiledRowSampling | None:
    """Returns the sampling that belongs to a kernel set; None for PyTorch's, beside which numpy samples."""
    return CompiledRowSampling(kernels.library) if isinstance(kernels, CompiledKernels) else None
