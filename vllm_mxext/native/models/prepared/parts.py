"""The parts of a model that loading makes: made afresh and collected, or taken from a prepared file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch

from vllm_mxext.native.kernels.compiled import CompiledKernels
from vllm_mxext.native.kernels.interface import PackedLinear
from vllm_mxext.native.models.prepared.file_format import Header, TensorPlace, tensor_at


class Parts(Protocol):
    """Gives the loader each part, by a name that is its own in the model."""

    def tensor(self, name: str, make: Callable[[], torch.Tensor]) -> torch.Tensor:
        """A tensor in the model's dtype: norms, an embedding table."""
        ...

    def linear(self, name: str, make: Callable[[], PackedLinear]) -> PackedLinear:
        """A packed linear layer with its bias."""
        ...


class CollectedParts:
    """Makes every part and remembers it.

    Attributes:
        tensors: tensors by name, in the order they were made.
        linears: packed layers likewise.
    """

    def __init__(self) -> None:
        self.tensors: dict[str, torch.Tensor] = {}
        self.linears: dict[str, PackedLinear] = {}

    def tensor(self, name: str, make: Callable[[], torch.Tensor]) -> torch.Tensor:
        """See `Parts.tensor`."""
        self.tensors[name] = tensor = make()
        return tensor

    def linear(self, name: str, make: Callable[[], PackedLinear]) -> PackedLinear:
        """See `Parts.linear`."""
        self.linears[name] = linear = make()
        return linear


class PreparedParts:
    """Takes the parts from a prepared file's data, and makes those that it lacks.

    Args:
        header: of the file.
        data: its data, `[data_bytes]` uint8; lives on in the parts.
        kernels: kernel set whose layout the layers have.
    """

    def __init__(self, header: Header, data: torch.Tensor, kernels: CompiledKernels) -> None:
        self._header = header
        self._data = data
        self._kernels = kernels

    def tensor(self, name: str, make: Callable[[], torch.Tensor]) -> torch.Tensor:
        """See `Parts.tensor`."""
        place = self._header.tensors.get(name)
        return make() if place is None else self._at(place)

    def linear(self, name: str, make: Callable[[], PackedLinear]) -> PackedLinear:
        """See `Parts.linear`."""
        place = self._header.linears.get(name)
        if place is None:
            return make()
        bias = None if place.bias is None else self._at(place.bias)
        return self._kernels.adopt_linear(self._at(place.data), bias, place.in_features, place.out_features, place.form)

    def _at(self, place: TensorPlace) -> torch.Tensor:
        return tensor_at(self._data, place)
