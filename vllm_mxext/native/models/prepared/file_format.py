"""The form of a prepared file: a checked header, then tensors where kernels can read them in place.

    0        8         16        48
    +--------+---------+---------+----------------+ - - - +------------------------------------+
    | magic  | length  | SHA-256 | header, JSON   | zeros | tensors, each at a multiple of 4096 | zeros
    +--------+---------+---------+----------------+ - - - +------------------------------------+
                                                          a multiple of 2 MiB                    up to one again

Offsets in the header count from the first tensor's place, so they do not depend on the header's length.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Iterator
from typing import BinaryIO

import msgspec
import torch

from vllm_mxext.native.models.prepared.identity import Identity

LARGE_PAGE_BYTES = 2 * 2**20
"""Alignment of the data, so that large pages can back it."""

_MAGIC = b"MXPREPD\n"
_PREFIX = struct.Struct("<8sQ32s")
_MAX_HEADER_BYTES = 64 * 2**20
_TENSOR_ALIGNMENT = 4096
_DTYPES = {
    "uint8": torch.uint8,
    "int8": torch.int8,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
}
_DTYPE_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


class TensorPlace(msgspec.Struct, frozen=True, array_like=True):
    """Where a tensor lies.

    Attributes:
        dtype: its type.
        shape: its shape.
        offset: its first byte in the data.
    """

    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def num_bytes(self) -> int:
        """Its size."""
        return math.prod(self.shape) * _DTYPES[self.dtype].itemsize


class LinearPlace(msgspec.Struct, frozen=True, array_like=True):
    """Where a packed linear layer lies.

    Attributes:
        in_features: K.
        out_features: N.
        form: `MxFormat` of `csrc/kernels.h`.
        data: packed weights.
        bias: `[out_features]` float32, or None.
    """

    in_features: int
    out_features: int
    form: int
    data: TensorPlace
    bias: TensorPlace | None


class Header(msgspec.Struct, frozen=True):
    """What a prepared file holds.

    Attributes:
        identity: what it was made from.
        data_bytes: size of the data, padding included.
        samples: digest of pages all over the data.
        tensors: places of tensors by name.
        linears: places of packed linear layers by name.
    """

    identity: Identity
    data_bytes: int
    samples: str
    tensors: dict[str, TensorPlace]
    linears: dict[str, LinearPlace]

    def places(self) -> Iterator[TensorPlace]:
        """Every tensor's place."""
        yield from self.tensors.values()
        for linear in self.linears.values():
            yield linear.data
            if linear.bias is not None:
                yield linear.bias


class BadFileError(ValueError):
    """A file is not a whole prepared file; the text says why, to go after "because"."""


class Allocation:
    """Gives tensors their places, one after the other."""

    def __init__(self) -> None:
        self._end = 0

    def place(self, tensor: torch.Tensor) -> TensorPlace:
        """The next tensor's place."""
        place = TensorPlace(_DTYPE_NAMES[tensor.dtype], tuple(tensor.shape), self._end)
        self._end = round_up(self._end + tensor.nbytes, _TENSOR_ALIGNMENT)
        return place

    @property
    def data_bytes(self) -> int:
        """Size of the data so far, padded to whole large pages."""
        return round_up(self._end, LARGE_PAGE_BYTES)


def round_up(number: int, multiple: int) -> int:
    """The next multiple that is not less than `number`."""
    return -(-number // multiple) * multiple


def encode_header(header: Header) -> bytes:
    """The file's first bytes, zeros up to the data included; their number does not depend on `header.samples`."""
    text = msgspec.json.encode(header)
    prefix = _PREFIX.pack(_MAGIC, len(text), hashlib.sha256(text).digest())
    start = round_up(len(prefix) + len(text), LARGE_PAGE_BYTES)
    return (prefix + text).ljust(start, b"\0")


def read_header(file: BinaryIO, file_bytes: int) -> tuple[Header, int]:
    """Reads and checks a file's header, and that the file has the length it should have.

    Returns:
        The header, and where the data begins.

    Raises:
        BadFileError: it is no prepared file, or a damaged or incomplete one.
    """
    prefix = file.read(_PREFIX.size)
    if len(prefix) < _PREFIX.size:
        raise BadFileError("it is cut off")
    magic, text_bytes, digest = _PREFIX.unpack(prefix)
    if magic != _MAGIC:
        raise BadFileError("it is of another kind")
    if text_bytes > min(file_bytes, _MAX_HEADER_BYTES):
        raise BadFileError("its header is damaged")
    text = file.read(text_bytes)
    if hashlib.sha256(text).digest() != digest:
        raise BadFileError("its header is damaged")
    try:
        header = msgspec.json.decode(text, type=Header)
    except msgspec.MsgspecError as error:
        raise BadFileError("its header has another form") from error
    start = round_up(_PREFIX.size + text_bytes, LARGE_PAGE_BYTES)
    if file_bytes != start + header.data_bytes:
        raise BadFileError(f"it has {file_bytes} of {start + header.data_bytes} bytes")
    for place in header.places():
        if not _fits(place, header.data_bytes):
            raise BadFileError("its header is damaged")
    return header, start


def tensor_at(data: torch.Tensor, place: TensorPlace) -> torch.Tensor:
    """The tensor at a place, without a copy.

    Args:
        data: `[data_bytes]` uint8, the data of the file.
        place: where it lies.
    """
    piece = data[place.offset : place.offset + place.num_bytes]
    return piece.view(_DTYPES[place.dtype]).view(place.shape)


def _fits(place: TensorPlace, data_bytes: int) -> bool:
    if place.dtype not in _DTYPES or min(place.shape, default=0) < 0:
        return False
    return place.offset % _TENSOR_ALIGNMENT == 0 and 0 <= place.offset <= data_bytes - place.num_bytes
