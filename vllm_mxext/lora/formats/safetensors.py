"""Reads the header of a safetensors file of an adapter.

Format: 8 bytes length n, little-endian; n bytes of JSON, name -> dtype, shape, data_offsets; then the data, which the
tensors cover without gaps or overlaps (https://github.com/huggingface/safetensors#format).
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

from vllm_mxext.lora.files import StoredDType, StoredTensor
from vllm_mxext.lora.opening import MAX_HEADER_BYTES, parsing, refusal, stored_tensor

DTYPE_NAMES: dict[str, StoredDType] = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""The file's names of the types that are read."""

_PREFIX_BYTES = 8


def read_safetensors(path: Path) -> dict[str, StoredTensor]:
    """Reads which tensors a file holds.

    Raises:
        AdapterError: it is broken, or holds tensors that are not of a floating type that is read.
    """
    with parsing(path):
        return _read_header(path)


def _read_header(path: Path) -> dict[str, StoredTensor]:
    size = path.stat().st_size
    with path.open("rb") as file:
        (header_bytes,) = struct.unpack("<Q", file.read(_PREFIX_BYTES))
        if header_bytes > min(MAX_HEADER_BYTES, size - _PREFIX_BYTES):
            raise ValueError(f"its header would be {header_bytes} bytes long")
        header = json.loads(file.read(header_bytes))
    first_byte = _PREFIX_BYTES + header_bytes
    header.pop("__metadata__", None)
    end = 0
    tensors = {}
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        begin, end_of_previous = entry["data_offsets"][0], end
        if begin != end_of_previous:
            raise ValueError(f"the tensor {name[:200]!r} does not begin where the one before it ends")
        tensors[name] = _tensor(path, first_byte, name, entry)
        end = begin + tensors[name].num_bytes
        if entry["data_offsets"][1] != end:
            raise ValueError(f"the tensor {name[:200]!r} does not have the size of its shape")
    return {name: tensors[name] for name in header}


def _tensor(path: Path, first_byte: int, name: str, entry: dict[str, Any]) -> StoredTensor:
    dtype = DTYPE_NAMES.get(entry["dtype"])
    if dtype is None:
        raise refusal(
            f"{path} holds {name[:200]!r} as {str(entry['dtype'])[:20]}; save the adapter in F32, F16 or BF16."
        )
    shape = tuple(entry["shape"])
    if any(type(number) is not int for number in (*shape, *entry["data_offsets"])):
        raise ValueError("sizes and offsets must be integers")
    return stored_tensor(path, first_byte + entry["data_offsets"][0], shape, dtype)
