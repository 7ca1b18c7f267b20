"""Writing a prepared file: whole or not at all, by one process at a time, in pieces that fill large pages."""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch

from vllm_mxext.native.kernels.compiled import CompiledLinear
from vllm_mxext.native.kernels.interface import PackedLinear
from vllm_mxext.native.models.prepared.file_format import (
    Allocation,
    Header,
    LinearPlace,
    TensorPlace,
    encode_header,
)
from vllm_mxext.native.models.prepared.identity import Identity, sample_digest
from vllm_mxext.native.models.prepared.parts import CollectedParts

TEMPORARY_SUFFIX = ".tmp"
"""Ends the name of a file that is being written."""

_PIECE_BYTES = 8 * 2**20

_Piece = tuple[TensorPlace, torch.Tensor]


class BusyError(OSError):
    """Another process is writing the file."""


def plan_file(identity: Identity, parts: CollectedParts) -> tuple[Header, list[_Piece]]:
    """Gives every part its place.

    Returns:
        The header, still without samples, and all tensors with their places, in the order of the file.
    """
    allocation, pieces = Allocation(), []

    def place(tensor: torch.Tensor) -> TensorPlace:
        pieces.append((allocation.place(tensor), tensor))
        return pieces[-1][0]

    def place_linear(linear: PackedLinear) -> LinearPlace:
        assert type(linear) is CompiledLinear, "Only layers of compiled kernels are kept in files."
        data, bias = place(linear.data), None if linear.bias is None else place(linear.bias)
        return LinearPlace(linear.in_features, linear.out_features, linear.struct.format, data, bias)

    linears = {name: place_linear(linear) for name, linear in parts.linears.items()}
    tensors = {name: place(tensor) for name, tensor in parts.tensors.items()}
    return Header(identity, allocation.data_bytes, "0" * 64, tensors, linears), pieces


def write_file(path: Path, header: Header, pieces: Iterable[_Piece]) -> None:
    """Writes a prepared file and puts it in its place once it is complete and on disk.

    A reader sees the old file or the new one. What a killed writer leaves behind is taken over by the next one, or
    removed by `remove_leftovers()`.

    Args:
        path: the file.
        header: from `plan_file()`.
        pieces: from `plan_file()`.

    Raises:
        BusyError: another process is writing it.
        OSError: it cannot be written; nothing is left behind.
    """
    temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
    with _locked(temporary) as descriptor:
        try:
            os.ftruncate(descriptor, 0)
            start = len(encode_header(header))
            _write_data(descriptor, start, header.data_bytes, pieces)
            header = _with_samples(header, descriptor, start)
            _write_all(descriptor, encode_header(header), 0)
            os.fsync(descriptor)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    _sync_folder(path.parent)


def remove_leftovers(folder: Path) -> None:
    """Removes what writers that were killed have left behind."""
    for temporary in folder.glob(f"*{TEMPORARY_SUFFIX}"):
        with contextlib.suppress(OSError), _locked(temporary):
            temporary.unlink()


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[int]:
    """Opens a file that no other process has open here; the lock ends with the process at the latest."""
    import fcntl  # noqa: PLC0415 - Windows has none, and no compiled kernels either

    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BusyError("another process is writing them") from None
        # Between opening and locking, the process that had the lock may have put the file in its place.
        if not path.exists() or not os.path.samestat(os.fstat(descriptor), path.stat()):
            raise BusyError("another process has just written them")
        yield descriptor
    finally:
        os.close(descriptor)


def _write_data(descriptor: int, start: int, data_bytes: int, pieces: Iterable[_Piece]) -> None:
    """Writes the data in large, aligned pieces, so that the page cache keeps it in large pages."""
    buffer = np.frombuffer(mmap.mmap(-1, _PIECE_BYTES), dtype=np.uint8)
    written = filled = 0

    def put(source: np.ndarray) -> None:
        nonlocal written, filled
        while source.size:
            count = min(source.size, buffer.size - filled)
            buffer[filled : filled + count] = source[:count]
            source, filled = source[count:], filled + count
            if filled == buffer.size:
                _write_all(descriptor, buffer.data, start + written)
                written, filled = written + filled, 0

    for place, tensor in pieces:
        put(np.zeros(place.offset - written - filled, dtype=np.uint8))
        put(tensor.contiguous().view(-1).view(torch.uint8).numpy())
    put(np.zeros(data_bytes - written - filled, dtype=np.uint8))
    _write_all(descriptor, buffer[:filled].data, start + written)


def _with_samples(header: Header, descriptor: int, start: int) -> Header:
    def read_at(offset: int, num_bytes: int) -> bytes:
        return os.pread(descriptor, num_bytes, start + offset)

    samples = sample_digest(read_at, header.data_bytes)
    return Header(header.identity, header.data_bytes, samples, header.tensors, header.linears)


def _write_all(descriptor: int, content: bytes | memoryview, offset: int) -> None:
    view = memoryview(content)
    while view:
        count = os.pwrite(descriptor, view, offset)
        view, offset = view[count:], offset + count


def _sync_folder(folder: Path) -> None:
    """Makes the file's new name last; without this, a crash of the machine may bring back the old one."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
