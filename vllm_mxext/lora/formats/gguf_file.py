"""Reads the header of a GGUF file (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md), version 2 or 3.

Counts and lengths come from the file, so nothing is believed that does not fit into the bytes that are there.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vllm_mxext.lora.files import StoredDType, StoredTensor
from vllm_mxext.lora.opening import MAX_HEADER_BYTES, open_part, parsing, read_into, refusal, stored_tensor

MAGIC = b"GGUF"

_STRING, _ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_PLAIN: dict[int, StoredDType] = {0: "float32", 1: "float16", 30: "bfloat16"}
_Q8_0 = 8
_Q8_BLOCK = np.dtype([("scale", "<f2"), ("values", "i1", 32)])
_MAX_ENTRIES = 20_000


@dataclass(frozen=True, slots=True)
class GgufFile:
    """What a GGUF file describes.

    Attributes:
        values: its metadata; arrays as tuples.
        tensors: its tensors, the dimension that changes fastest last.
    """

    values: Mapping[str, Any]
    tensors: Mapping[str, StoredTensor]


def read_gguf(path: Path) -> GgufFile:
    """Reads metadata and which tensors a file holds.

    Raises:
        AdapterError: it is broken, or holds tensors of a type that is not read.
    """
    with parsing(path):
        header = _Header(open_part(path).read(min(path.stat().st_size, MAX_HEADER_BYTES)))
        if header.take("4s") != MAGIC:
            raise refusal(f"{path} is not a GGUF file; give the folder or file of an adapter.")
        version = header.take("I")
        if version not in (2, 3):
            raise refusal(f"{path} is a GGUF file of version {version}; versions 2 and 3 are read.")
        num_tensors, num_values = header.take("Q"), header.take("Q")
        if max(num_tensors, num_values) > _MAX_ENTRIES:
            raise ValueError(f"{num_tensors} tensors and {num_values} values")
        values = {}
        for _ in range(num_values):
            name = header.take_string()
            values[name] = header.take_value(header.take("I"))
        entries = [_take_tensor(header) for _ in range(num_tensors)]
        alignment = values.get("general.alignment", 32)
        if type(alignment) is not int or not 8 <= alignment <= 2**16:
            raise ValueError(f"an alignment of {alignment}")
        data = -(-header.position // alignment) * alignment
        tensors = {name: _tensor(path, name, shape, kind, data + offset) for name, shape, kind, offset in entries}
        if len(tensors) < num_tensors:
            raise ValueError("two tensors of one name")
        return GgufFile(values, tensors)


class _Header:
    """Takes values from the beginning of a file."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self.position = 0

    def take(self, code: str) -> Any:
        """The next value of a type of `struct`."""
        (value,) = struct.unpack_from("<" + code, self._content, self.position)
        self.position += struct.calcsize("<" + code)
        return value

    def take_string(self) -> str:
        """The next text."""
        length = self.take("Q")
        content = self._content[self.position : self.position + length]
        if len(content) < length:
            raise ValueError("a text is cut off")
        self.position += length
        return content.decode(errors="replace")

    def take_value(self, kind: int) -> Any:
        """The next value of a type of GGUF."""
        if kind == _STRING:
            return self.take_string()
        if kind != _ARRAY:
            return self.take(_SCALARS[kind])
        inner, count = self.take("I"), self.take("Q")
        if inner == _ARRAY or count > len(self._content) - self.position:
            raise ValueError(f"an array of {count} values of type {inner}")
        return tuple(self.take_value(inner) for _ in range(count))


def _take_tensor(header: _Header) -> tuple[str, tuple[int, ...], int, int]:
    name, num_dimensions = header.take_string(), header.take("I")
    if num_dimensions > 4:
        raise ValueError(f"a tensor of {num_dimensions} dimensions")
    shape = tuple(header.take("Q") for _ in range(num_dimensions))[::-1]
    return name, shape, header.take("I"), header.take("Q")


def _tensor(path: Path, name: str, shape: tuple[int, ...], kind: int, offset: int) -> StoredTensor:
    if kind in _PLAIN:
        return stored_tensor(path, offset, shape, _PLAIN[kind])
    if kind != _Q8_0:
        raise refusal(
            f"{path} holds {name[:200]!r} in type {kind}; convert the adapter with --outtype f16, bf16 or q8_0."
        )
    num_values = math.prod(shape)
    num_bytes = num_values // 32 * _Q8_BLOCK.itemsize
    if not shape or shape[-1] % 32 or offset + num_bytes > path.stat().st_size:
        raise ValueError(f"the tensor {name[:200]!r} does not fit into the file")
    return StoredTensor(shape, "float32", _dequantizer(path, offset, shape))


def _dequantizer(path: Path, offset: int, shape: tuple[int, ...]) -> Callable[[], npt.NDArray[Any]]:
    def read() -> npt.NDArray[Any]:
        blocks = np.empty(math.prod(shape) // 32, dtype=_Q8_BLOCK)
        read_into(path, offset, blocks)
        values: npt.NDArray[np.float32] = blocks["scale"].astype(np.float32)[:, None] * blocks["values"]
        return values.reshape(shape)

    return read
