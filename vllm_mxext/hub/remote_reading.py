"""Reads small parts of a source's files: texts, and headers of safetensors, without the weights behind them.

Format of safetensors: 8 bytes length n, little-endian; n bytes of JSON, name -> dtype, shape, data_offsets; then data
(https://github.com/huggingface/safetensors#format).
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from vllm_mxext.errors import ChecksumError, DownloadError, HubCause
from vllm_mxext.hub.retrying import retrying
from vllm_mxext.hub.sources.interface import RemoteFile, Source

MAX_TEXT_BYTES = 64 * 2**20
"""Of a JSON file; the index of the largest checkpoints has some megabytes."""

MAX_HEADER_BYTES = 100_000_000
"""Of a safetensors file, as in the library itself."""

_FIRST_BYTES = 128 * 2**10
"""Read at once: most headers fit, so that one request does."""

_LENGTH_BYTES = 8
_DTYPE_BITS = {
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "I64": 64, "U64": 64, "F64": 64, "C64": 64,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TensorFacts:
    """A tensor of a file.

    Attributes:
        name: in the checkpoint.
        dtype: as safetensors calls it: `BF16`.
        shape: as stored.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def num_elements(self) -> int:
        """Elements as stored."""
        return math.prod(self.shape)

    @property
    def num_bits(self) -> int:
        """Of all elements."""
        return self.num_elements * _DTYPE_BITS[self.dtype]


def read_json(source: Source, file: RemoteFile) -> dict[str, Any]:
    """Reads a file that holds a JSON object.

    Raises:
        DownloadError: it cannot be read, or is larger than such a file can be.
        ChecksumError: it holds something else.
    """
    if (file.size or 0) > MAX_TEXT_BYTES:
        raise DownloadError(f"{file.path} of {source.uri} is {file.size} bytes long, which no such file is.")
    content = read_range(source, file, 0, MAX_TEXT_BYTES)
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        reason = str(error) if isinstance(error, ValueError) else "it is nested too deep"
        raise ChecksumError(f"{file.path} of {source.uri} is not valid JSON: {reason}.") from None
    if not isinstance(value, dict):
        raise ChecksumError(f"{file.path} of {source.uri} must hold a JSON object; the source is broken.")
    return value


def read_headers(source: Source, files: Sequence[RemoteFile], *, num_connections: int = 8) -> tuple[TensorFacts, ...]:
    """Reads which tensors some safetensors files hold, a request per file as a rule.

    Raises:
        DownloadError: a file cannot be read.
        ChecksumError: a header is broken, or its file is cut off.
    """
    with ThreadPoolExecutor(max_workers=max(1, min(num_connections, len(files)))) as pool:
        found = list(pool.map(lambda file: _read_header(source, file), files))
    return tuple(tensor for tensors in found for tensor in tensors)


def read_range(source: Source, file: RemoteFile, start: int, end: int) -> bytes:
    """Reads bytes `start` to `end`, or to the end of the file if that comes first.

    Raises:
        DownloadError: it cannot be read.
    """

    def read() -> bytes:
        found = bytearray()
        with source.open_range(file, start, end, None) as answer:
            wanted = end - answer.start  # a server that ignores ranges begins at 0
            for chunk in answer.chunks():
                found += chunk
                if len(found) >= wanted:
                    break
            return bytes(found[start - answer.start : wanted])

    return retrying(read, attempts=4, timeout_s=60)


def _read_header(source: Source, file: RemoteFile) -> list[TensorFacts]:
    what = f"{file.path} of {source.uri}"
    start = read_range(source, file, 0, _FIRST_BYTES if file.size is None else min(_FIRST_BYTES, file.size))
    if len(start) < _LENGTH_BYTES:
        raise ChecksumError(f"{what} is cut off: it has {len(start)} bytes.")
    (length,) = struct.unpack("<Q", start[:_LENGTH_BYTES])
    end = _LENGTH_BYTES + length
    if length > MAX_HEADER_BYTES or (file.size is not None and end > file.size):
        raise ChecksumError(f"{what} is no safetensors file, or is cut off: its header would be {length} bytes long.")
    if end > len(start):
        start += read_range(source, file, len(start), end)
    if len(start) < end:
        raise ChecksumError(f"{what} is cut off inside its header, at byte {len(start)}.")
    try:
        tensors, num_bytes = _parse_header(start[_LENGTH_BYTES:end])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        reason = str(error) if type(error) is ValueError else "it has not the form of one"
        raise ChecksumError(f"{what} has a broken header: {reason}.") from None
    if file.size is not None and end + num_bytes != file.size:
        raise ChecksumError(
            f"{what} is cut off or damaged: its header speaks of {end + num_bytes} bytes, the file has {file.size}."
        )
    return tensors


def _parse_header(content: bytes) -> tuple[list[TensorFacts], int]:
    """Returns the tensors, and how many bytes they are together.

    Raises:
        ValueError, TypeError, KeyError, RecursionError: it is broken.
    """
    header = json.loads(content)
    if not isinstance(header, dict):
        raise TypeError
    header.pop("__metadata__", None)
    end, tensors = 0, []
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        shape, (begin, next_begin) = tuple(entry["shape"]), entry["data_offsets"]
        if any(type(number) is not int or number < 0 for number in (*shape, begin, next_begin)):
            raise ValueError("sizes and offsets must be whole numbers")
        if entry["dtype"] not in _DTYPE_BITS:
            raise ValueError(f"the type {str(entry['dtype'])[:20]} of {name[:100]!r} is not known")
        tensor = TensorFacts(name, entry["dtype"], shape)
        if begin != end or next_begin - begin != -(-tensor.num_bits // 8):
            raise ValueError(f"the tensor {name[:100]!r} is not where it should be or has another size")
        end = next_begin
        tensors.append(tensor)
    return tensors, end


def missing(source: Source, name: str, why: str) -> DownloadError:
    """Returns the error for a file that a source does not have."""
    return DownloadError(f"{source.uri} has no {name}{why}", cause=HubCause.NOT_FOUND)
