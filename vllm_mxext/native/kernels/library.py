"""Finds, checks and loads the compiled kernel library that suits this CPU."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Iterator
from ctypes import c_char_p, c_float, c_int32, c_int64, c_void_p
from functools import cache
from pathlib import Path
from typing import Any, cast

import torch

import vllm_mxext.native.kernels as kernels_package
from vllm_mxext import envs
from vllm_mxext.config.engine import KVCacheDType, Quantization
from vllm_mxext.errors import ConfigError
from vllm_mxext.native.kernels.lazy_memory import lazy_zeros
from vllm_mxext.native.kernels.recording import CompiledRecording

ABI_VERSION = 9
"""Interface version this file was written for; `MX_ABI_VERSION` of `csrc/kernels.h`."""

COMPILED_ISAS = ("avx512_bf16", "avx512", "avx2", "arm64_bf16", "generic")
"""Instruction sets a library may exist for, fastest first."""

TORCH_ISA = "torch"
"""Value of `VLLM_MXEXT_CPU_ISA` that asks for the PyTorch implementation."""

DTYPE_CODES = {torch.bfloat16: 0, torch.float16: 1, torch.float32: 2}
"""`MxDtype` of `csrc/kernels.h`."""

FORMAT_CODES: dict[Quantization, int] = {"none": 0, "int8": 1}
"""`MxFormat` of `csrc/kernels.h`, for what plain weights are converted to."""

INT4_FORMAT_CODE = 2
"""`MX_INT4` of `csrc/kernels.h`."""

KV_FORMAT_CODES: dict[KVCacheDType, int] = {"auto": 0, "int8": 1}
"""`MxKvFormat` of `csrc/kernels.h`."""

_LARGE_PAGE_BYTES = 2 * 2**20


class LinearStruct(ctypes.Structure):
    """`MxLinear` of `csrc/kernels.h`."""

    _fields_ = [
        ("weights", c_void_p),
        ("bias", c_void_p),
        ("input_order", c_void_p),
        ("in_features", c_int64),
        ("out_features", c_int64),
        ("format", c_int32),
        ("group_size", c_int32),
    ]


class GeometryStruct(ctypes.Structure):
    """`MxGeometry` of `csrc/kernels.h`."""

    _fields_ = [
        ("num_heads", c_int32),
        ("num_kv_heads", c_int32),
        ("head_dim", c_int32),
        ("block_size", c_int32),
        ("sliding_window", c_int32),
        ("kv_format", c_int32),
        ("scale", c_float),
        ("soft_cap", c_float),
    ]


class StepStruct(ctypes.Structure):
    """`MxStep` of `csrc/kernels.h`."""

    _fields_ = [
        ("positions", c_void_p),
        ("slot_mapping", c_void_p),
        ("block_tables", c_void_p),
        ("query_start_loc", c_void_p),
        ("seq_lens", c_void_p),
        ("block_table_stride", c_int64),
        ("num_tokens", c_int32),
        ("num_requests", c_int32),
    ]


# Structure of each operation's arguments in csrc/kernels.h, as format of the struct module: P address, q 64-bit
# count or stride, i 32-bit integer (dtype code first), f float.
_CALL_FORMATS = {
    "mx_pack_linear": "PqqqPii",
    "mx_pack_int4": "PqqPPPqqqPii",
    "mx_linear": "PPqqPqii",
    "mx_adapt": "PPPqPqii",
    "mx_embedding": "PqPqqPqii",
    "mx_tied_embedding": "PPqPqi",
    "mx_rms_norm": "PqPqqqPPqif",
    "mx_silu_mul": "PqqqPqi",
    "mx_rope_kv_write": "PqPPPPPPPif",
    "mx_paged_attention": "PqPPPPPqi",
    "mx_sample": "PqqPqPPPPPP",
}

_SIGNATURES: dict[str, tuple[list[Any], Any]] = {
    "mx_abi_version": ([], c_int32),
    "mx_cpu_supports": ([c_char_p], c_int32),
    "mx_set_num_threads": ([c_int32], None),
    "mx_replay": ([c_void_p, c_int64], None),
    "mx_advise_large_pages": ([c_void_p, c_int64], None),
    "mx_packed_bytes": ([c_int32, c_int32, c_int64, c_int64], c_int64),
    "mx_packed_int4_bytes": ([c_int32, c_int64, c_int64], c_int64),
    **{name: ([c_void_p], None) for name in _CALL_FORMATS},
}


_ROW_FIELDS = {"mx_linear": 3, "mx_embedding": 1, "mx_tied_embedding": 2, "mx_rms_norm": 4, "mx_silu_mul": 2}
"""Which field of an operation's structure is the number of rows; the others take it from the step."""


class Operation:
    """A C function and a buffer for its argument structure.

    Filling a structure takes 0.2 us and passing its address another 0.2 us; ctypes needs 1.7 us for eleven separate
    arguments. Not for use by several threads at once.
    """

    __slots__ = ("_address", "_buffer", "_function", "_pack", "_row_field", "recording")

    def __init__(self, function: Callable[..., Any], call_format: str, row_field: int | None) -> None:
        layout = struct.Struct(call_format)
        self.recording: CompiledRecording | None = None
        """Where calls are noted, if anywhere."""
        self._row_field = row_field
        self._function = function
        self._pack = layout.pack_into
        self._buffer = ctypes.create_string_buffer(layout.size)
        self._address = ctypes.addressof(self._buffer)

    def __call__(self, *fields: float) -> None:
        """Runs the function on the structure made of `fields`."""
        self._pack(self._buffer, 0, *fields)
        if self.recording is not None:
            self.recording.add(self._function, self._buffer.raw, self._row_field)
        self._function(self._address)


class KernelLibrary:
    """One loaded library.

    Attributes:
        isa: the instruction set it was compiled for.
        path: the file.
    """

    def __init__(self, isa: str, path: Path) -> None:
        """Loads `path`.

        Raises:
            ConfigError: the file does not load, or belongs to another version of this package.
        """
        self.isa = isa
        self.path = path
        try:
            handle = ctypes.CDLL(str(path))
        except OSError as error:
            raise ConfigError(f"Cannot load the compiled kernels {path}: {error}; reinstall vllm_mxext.") from error
        _check_abi(handle, path)
        self._functions = {name: _declare(handle, name) for name in _SIGNATURES}

    def operation(self, name: str) -> Operation:
        """A new handle to call the operation `name`, for one thread at a time."""
        return Operation(self._functions[name], _CALL_FORMATS[name], _ROW_FIELDS.get(name))

    def cpu_supports(self, isa: str) -> bool:
        """Whether this CPU can run the library of `isa`."""
        return bool(self._functions["mx_cpu_supports"](isa.encode()))

    def set_num_threads(self, num_threads: int) -> None:
        """Lets all later calls use `num_threads` threads, the calling one included (before: one)."""
        self._functions["mx_set_num_threads"](num_threads)

    def new_recording(self) -> CompiledRecording:
        """An empty recording of this library's operations."""
        return CompiledRecording(self._functions["mx_replay"])

    def zeros(self, num_elements: int, dtype: torch.dtype) -> torch.Tensor:
        """Zeroed memory for data that is streamed every step: large pages back it where the system has them."""
        spare = _LARGE_PAGE_BYTES // dtype.itemsize
        if num_elements < spare:
            return torch.zeros(num_elements, dtype=dtype)
        # Large pages are aligned to their size; the unused start is never written, so it takes no memory.
        memory = lazy_zeros(num_elements + spare, dtype)
        first = -memory.data_ptr() % _LARGE_PAGE_BYTES // dtype.itemsize
        data = memory[first : first + num_elements]
        self._functions["mx_advise_large_pages"](data.data_ptr(), data.nbytes)
        return data

    def packed_bytes(self, dtype_code: int, format_code: int, out_features: int, in_features: int) -> int:
        """Bytes of a packed linear layer."""
        return int(self._functions["mx_packed_bytes"](dtype_code, format_code, out_features, in_features))

    def packed_int4_bytes(self, group_size: int, out_features: int, in_features: int) -> int:
        """Bytes of a packed int4 layer."""
        return int(self._functions["mx_packed_int4_bytes"](group_size, out_features, in_features))


def _check_abi(handle: ctypes.CDLL, path: Path) -> None:
    try:
        found = int(handle.mx_abi_version())
    except AttributeError:
        found = 0
    if found != ABI_VERSION:
        raise ConfigError(
            f"The compiled kernels {path} are stale: they have interface version {found}, this package needs "
            f"{ABI_VERSION}; reinstall vllm_mxext (or unset {envs.KERNEL_DIR.name}, if that names their folder)."
        )


def _declare(handle: ctypes.CDLL, name: str) -> Callable[..., Any]:
    function = getattr(handle, name)
    function.argtypes, function.restype = _SIGNATURES[name]
    return cast("Callable[..., Any]", function)


def _folders() -> Iterator[Path]:
    configured = envs.KERNEL_DIR.get()
    if configured is not None:
        yield configured
    # An editable installation has two entries: the sources, and site-packages with the compiled libraries.
    yield from (Path(entry) for entry in kernels_package.__path__)


def find_library(isa: str) -> Path | None:
    """The library file of `isa`, searched in `$VLLM_MXEXT_KERNEL_DIR`, then in this package; None if there is none."""
    for folder in _folders():
        path = folder / f"mx_kernels_{isa}.so"
        if path.is_file():
            return path
    return None


@cache
def _load(isa: str, path: Path) -> KernelLibrary:
    return KernelLibrary(isa, path)


def _cpu_supports(isa: str) -> bool:
    """Whether this CPU runs `isa`; asked of the generic library, which runs everywhere."""
    path = find_library("generic")
    return path is not None and _load("generic", path).cpu_supports(isa)


def runnable_isas() -> list[str]:
    """Instruction sets that have a library here and that this CPU supports, fastest first."""
    return [isa for isa in COMPILED_ISAS if find_library(isa) is not None and _cpu_supports(isa)]


def requested_isa() -> str | None:
    """The instruction set that `VLLM_MXEXT_CPU_ISA` forces, or None.

    Raises:
        ConfigError: the variable holds an unknown name.
    """
    name = envs.CPU_ISA.get()
    known = (*COMPILED_ISAS, TORCH_ISA)
    if name is not None and name not in known:
        raise ConfigError(f"{envs.CPU_ISA.name}={name} is not known; use one of {', '.join(known)}.")
    return name


def load_library(isa: str) -> KernelLibrary:
    """Loads the library of `isa` (once per file).

    Raises:
        ConfigError: there is no such library, it is stale, or this CPU cannot run it.
    """
    path = find_library(isa)
    if path is None:
        raise ConfigError(
            f"No compiled kernels for {isa} found in {', '.join(str(folder) for folder in _folders())}; "
            f"reinstall vllm_mxext with a C++ compiler, or set {envs.CPU_ISA.name}={TORCH_ISA}."
        )
    if not _cpu_supports(isa):
        runnable = ", ".join(runnable_isas()) or TORCH_ISA
        raise ConfigError(f"This CPU cannot run the {isa} kernels; it can run: {runnable}.")
    return _load(isa, path)


def best_library() -> KernelLibrary | None:
    """The fastest library this CPU can run, or the one `VLLM_MXEXT_CPU_ISA` forces; None for the PyTorch path.

    Raises:
        ConfigError: a forced library is unknown, missing or not for this CPU, or an installed one is stale.
    """
    forced = requested_isa()
    if forced == TORCH_ISA:
        return None
    if forced is not None:
        return load_library(forced)
    runnable = runnable_isas()
    return load_library(runnable[0]) if runnable else None
