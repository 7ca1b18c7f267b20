"""What a prepared file was made from, and how that is recognised without reading the whole checkpoint."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from vllm_mxext.config.engine import ModelConfig

PREPARED_VERSION = 1
"""Raise it when the file's form changes, or what is computed from the same checkpoint (packing, quantising, names)."""

_SAMPLE_BYTES = 4096
_NUM_SAMPLES = 32

ReadAt = Callable[[int, int], bytes]
"""Reads at most so many bytes (second) from an offset (first)."""


class WeightFile(msgspec.Struct, frozen=True, array_like=True):
    """State of one file of a checkpoint.

    Attributes:
        name: of the file in the folder.
        num_bytes: its size.
        modified_ns: when its content was last changed, as its owner may claim.
        changed_ns: when content or attributes were last changed, as the system noted.
        inode: which file the name leads to.
        samples: digest of pages all over it.
    """

    name: str
    num_bytes: int
    modified_ns: int
    changed_ns: int
    inode: int
    samples: str


class Identity(msgspec.Struct, frozen=True, array_like=True):
    """Everything that packed weights depend on.

    Attributes:
        version: `PREPARED_VERSION`.
        layout: how the kernels pack layers.
        dtype: element type.
        quantization: what linear layers are converted to.
        spec: digest of what `config.json` says of the model.
        files: the checkpoint.
    """

    version: int
    layout: str
    dtype: str
    quantization: str
    spec: str
    files: tuple[WeightFile, ...]


def identify(model: ModelConfig, layout: str, files: Sequence[Path]) -> Identity:
    """Returns the identity of a model's weights, in milliseconds.

    Args:
        model: folder, specification, dtype and quantization.
        layout: how the kernels pack layers.
        files: weight files of the checkpoint.

    Raises:
        OSError: a file cannot be read.
    """
    return Identity(
        version=PREPARED_VERSION,
        layout=layout,
        dtype=model.dtype,
        quantization=model.quantization,
        spec=hashlib.sha256(msgspec.json.encode(model.spec)).hexdigest(),
        files=tuple(_weight_file(path) for path in files),
    )


def sample_digest(read_at: ReadAt, num_bytes: int) -> str:
    """Digest of up to 32 pages, evenly spread from the first to the last byte.

    The first page of a safetensors file begins with its header; the last one shows a file that was cut or not finished.
    """
    last = max(0, num_bytes - _SAMPLE_BYTES)
    digest = hashlib.sha256()
    for index in range(_NUM_SAMPLES):
        digest.update(read_at(last * index // (_NUM_SAMPLES - 1), _SAMPLE_BYTES))
    return digest.hexdigest()


def _weight_file(path: Path) -> WeightFile:
    with path.open("rb", buffering=0) as file:
        status = os.fstat(file.fileno())

        def read_at(offset: int, num_bytes: int) -> bytes:
            return os.pread(file.fileno(), num_bytes, offset)

        samples = sample_digest(read_at, status.st_size)
    return WeightFile(path.name, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, samples)
