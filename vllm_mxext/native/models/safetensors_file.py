"""Reading tensors out of one safetensors file, straight into buffers that are already there.

Plain reads instead of a memory mapping: copying out of a mapping takes a page fault every few pages (measured 1.5 times
slower alone, 10 times slower with torch's parallel copy on a busy machine), and its pages count as this process's.

Format: 8 bytes length n, little-endian; n bytes of JSON, name -> dtype, shape, data_offsets; then the data
(https://github.com/huggingface/safetensors#format).
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vllm_mxext.errors import ConfigError

_PREFIX_BYTES = 8
_MAX_HEADER_BYTES = 100 * 2**20
_DTYPES = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "F64": torch.float64,
    "I32": torch.int32,
    "I64": torch.int64,
}


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """Where one tensor lies.

    Attributes:
        path: its file.
        dtype: its type as the file names it, for example `BF16`.
        shape: its shape.
        offset: first byte in the file.
        num_bytes: its size.
    """

    path: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    num_bytes: int


def read_header(path: Path) -> dict[str, TensorEntry]:
    """Reads which tensors a file holds, and checks that they are all there.

    Raises:
        ConfigError: the file is missing, corrupt or truncated.
    """
    try:
        return _parse_header(path)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise ConfigError(f"{path} is corrupt or truncated ({error}); download the checkpoint again.") from error


def read_tensor(name: str, entry: TensorEntry, target: torch.Tensor) -> None:
    """Reads a tensor into a contiguous CPU tensor of the same number of elements, converting the dtype.

    Raises:
        ConfigError: the tensor is not of a floating type where the target is, or of an integer type where that is;
            cannot be read; or has values the target's dtype cannot hold.
    """
    dtype = _DTYPES.get(entry.dtype)
    if dtype is None or dtype.is_floating_point != target.dtype.is_floating_point:
        supported = "BF16, F16 and F32" if target.dtype.is_floating_point else "I32 and I64"
        raise ConfigError(f"Tensor {name} is of type {entry.dtype}; the native engine reads {supported} there.")
    if dtype == target.dtype:
        _read_bytes(name, entry, target)
        return
    stored = torch.empty(target.shape, dtype=dtype)
    _read_bytes(name, entry, stored)
    target.copy_(stored)
    if target.dtype == torch.float16 and not bool(torch.isfinite(target).all()):
        raise ConfigError(f"Tensor {name} has values that float16 cannot hold; use --dtype bfloat16 or float32.")


def _parse_header(path: Path) -> dict[str, TensorEntry]:
    file_bytes = path.stat().st_size
    with path.open("rb") as file:
        (header_bytes,) = struct.unpack("<Q", file.read(_PREFIX_BYTES))
        if header_bytes > min(_MAX_HEADER_BYTES, file_bytes - _PREFIX_BYTES):
            raise ValueError(f"its header would be {header_bytes} bytes long")
        header = json.loads(file.read(header_bytes))
    first_byte = _PREFIX_BYTES + header_bytes
    header.pop("__metadata__", None)
    entries = {name: _parse_entry(path, first_byte, values) for name, values in header.items()}
    end = max((entry.offset + entry.num_bytes for entry in entries.values()), default=first_byte)
    if end > file_bytes:
        raise ValueError(f"it has {file_bytes} of {end} bytes")
    return entries


def _parse_entry(path: Path, first_byte: int, values: dict[str, Any]) -> TensorEntry:
    begin, end = values["data_offsets"]
    shape = tuple(int(size) for size in values["shape"])
    entry = TensorEntry(path, str(values["dtype"]), shape, first_byte + int(begin), int(end) - int(begin))
    dtype = _DTYPES.get(entry.dtype)
    if begin < 0 or (dtype is not None and entry.num_bytes != math.prod(shape) * dtype.itemsize):
        raise ValueError(f"offsets {begin} to {end} do not fit the shape {list(shape)}")
    return entry


def _read_bytes(name: str, entry: TensorEntry, target: torch.Tensor) -> None:
    assert target.is_contiguous(), "Tensors are read into contiguous memory only."
    assert target.nbytes == entry.num_bytes, f"Tensor {name} does not fit its place."
    view = target.view(-1).view(torch.uint8).numpy().data
    try:
        num_read = _fill(entry, view)
    except OSError as error:
        raise ConfigError(f"Tensor {name} cannot be read ({error}); download the checkpoint again.") from error
    if num_read < entry.num_bytes:
        raise ConfigError(f"Tensor {name} is cut off in {entry.path}; download the checkpoint again.")


def _fill(entry: TensorEntry, view: memoryview) -> int:
    num_read = 0
    with entry.path.open("rb", buffering=0) as file:
        file.seek(entry.offset)
        while num_read < entry.num_bytes:
            count = file.readinto(view[num_read:])
            if not count:
                break
            num_read += count
    return num_read
