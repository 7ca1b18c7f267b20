"""Kernels in C++, called through ctypes with raw pointers (CPU)."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from vllm_mxext.config.engine import Quantization
from vllm_mxext.errors import ConfigError
from vllm_mxext.native.kernels.compiled_adapters import CompiledAdapterKernels
from vllm_mxext.native.kernels.int4_weight import Int4Weight
from vllm_mxext.native.kernels.interface import (
    AttentionGeometry,
    AttentionMetadata,
    KVCacheSpec,
    LayerKVCache,
    PackedLinear,
)
from vllm_mxext.native.kernels.library import (
    ABI_VERSION,
    DTYPE_CODES,
    FORMAT_CODES,
    INT4_FORMAT_CODE,
    KV_FORMAT_CODES,
    GeometryStruct,
    KernelLibrary,
    LinearStruct,
    StepStruct,
)
from vllm_mxext.native.kernels.recording import CompiledRecording

_GROUP_TOKENS = 16
_MAX_HEAD_DIM = 512
# Reading the last value rows in whole vectors may run past a head whose size is no multiple of 16 (csrc/kv_layout.h).
_TAIL_ELEMENTS = 64


@dataclass(frozen=True, slots=True)
class CompiledLinear(PackedLinear):
    """A packed layer with the C structure that describes it.

    Attributes:
        struct: keeps the structure alive.
        address: where it lies.
        input_order: `[in_features]` int32, which input the k-th weight of a column multiplies; None for the k-th.
    """

    struct: LinearStruct
    address: int
    input_order: torch.Tensor | None = None

    @property
    def num_bytes(self) -> int:
        """Bytes of weights, bias and order of inputs."""
        return sum(tensor.nbytes for tensor in (self.data, self.bias, self.input_order) if tensor is not None)


@dataclass(frozen=True, slots=True)
class CompiledKVCache(LayerKVCache):
    """One layer's blocks with what every call needs to know of them.

    Attributes:
        key_address: first key.
        value_address: first value.
        block_size: token positions per block.
        format_code: `MxKvFormat` of `csrc/kernels.h`.
    """

    key_address: int
    value_address: int
    block_size: int
    format_code: int


class CompiledKernels(CompiledAdapterKernels):
    """The compiled kernels for one dtype; rows are bit-identical whatever the batch, the chunking and the threads.

    Shapes and dtypes are the caller's duty, as `interface.py` states them: a check per call would cost more than the
    call. One object serves one thread at a time.

    Attributes:
        name: the instruction set.
        library: the loaded library.
        layout: names how layers are packed; layers of kernels with equal names are interchangeable.
    """

    is_batch_invariant = True

    def __init__(self, library: KernelLibrary, dtype: torch.dtype) -> None:
        """Binds `library` to the element type of one model.

        Raises:
            ConfigError: `dtype` has no kernels.
        """
        if dtype not in DTYPE_CODES:
            raise ConfigError(f"No compiled kernels for {dtype}; use bfloat16, float16 or float32.")
        super().__init__(library, dtype)
        self.name = library.isa
        # Instruction sets share their layouts; the interface version changes with them (csrc/kernels.h).
        self.layout = f"mx{ABI_VERSION}-{str(dtype).removeprefix('torch.')}"
        self._pack_linear = library.operation("mx_pack_linear")
        self._pack_int4 = library.operation("mx_pack_int4")
        self._linear = library.operation("mx_linear")
        self._embedding = library.operation("mx_embedding")
        self._tied_embedding = library.operation("mx_tied_embedding")
        self._rms_norm = library.operation("mx_rms_norm")
        self._silu_mul = library.operation("mx_silu_mul")
        self._rope_kv_write = library.operation("mx_rope_kv_write")
        self._paged_attention = library.operation("mx_paged_attention")
        self._operations = (
            self._linear,
            self._adapt,
            self._embedding,
            self._tied_embedding,
            self._rms_norm,
            self._silu_mul,
            self._rope_kv_write,
            self._paged_attention,
        )
        # The structures of the geometries seen (a handful per model) and of the current step (the same object for
        # every layer). The keyed objects are kept alive, so that an id or identity cannot come to mean another one.
        self._geometries: dict[tuple[int, int, int], tuple[AttentionGeometry, GeometryStruct, int]] = {}
        self._step: AttentionMetadata | None = None
        self._step_struct = StepStruct()
        self._step_address = ctypes.addressof(self._step_struct)

    @contextmanager
    def recording(self) -> Iterator[CompiledRecording]:
        """See `Kernels.recording`."""
        recording = self.library.new_recording()
        for operation in self._operations:
            operation.recording = recording
        try:
            yield recording
        finally:
            for operation in self._operations:
                operation.recording = None
        recording.finish()

    def enter_step(self, metadata: AttentionMetadata) -> None:
        """See `Kernels.enter_step`."""
        struct = self._step_struct
        struct.positions = metadata.positions.data_ptr()
        struct.slot_mapping = metadata.slot_mapping.data_ptr()
        struct.block_tables = metadata.block_tables.data_ptr()
        struct.query_start_loc = metadata.query_start_loc.data_ptr()
        struct.seq_lens = metadata.seq_lens.data_ptr()
        struct.block_table_stride = metadata.block_tables.stride(0)
        struct.num_tokens = metadata.positions.shape[0]
        struct.num_requests = metadata.seq_lens.shape[0]
        self._step = metadata

    def pack_linear(
        self, weight: torch.Tensor, bias: torch.Tensor | None = None, quantization: Quantization = "none"
    ) -> CompiledLinear:
        """Packs `weight: [N, K]` with all cores; see `Kernels.pack_linear`."""
        weight = weight.detach().to(device="cpu", dtype=self._dtype)
        if weight.stride(1) != 1:
            weight = weight.contiguous()
        out_features, in_features = weight.shape
        form = FORMAT_CODES[quantization]
        data = self.library.zeros(self.library.packed_bytes(self._code, form, out_features, in_features), torch.uint8)
        self._pack_linear(
            weight.data_ptr(), weight.stride(0), out_features, in_features, data.data_ptr(), self._code, form
        )
        return self.adopt_linear(data, _own_bias(bias), in_features, out_features, form)

    def adopt_linear(
        self, data: torch.Tensor, bias: torch.Tensor | None, in_features: int, out_features: int, form: int
    ) -> CompiledLinear:
        """Makes a plain or int8 layer of what is packed already.

        Args:
            data: uint8, from a layer that kernels of the same `layout` packed; not copied.
            bias: `[out_features]` float32, or None; not copied.
            in_features: K.
            out_features: N.
            form: `MxFormat` of `csrc/kernels.h`.
        """
        assert data.nbytes == self.library.packed_bytes(self._code, form, out_features, in_features)
        struct = LinearStruct(data.data_ptr(), _address(bias), 0, in_features, out_features, form)
        return CompiledLinear(data, bias, in_features, out_features, struct, ctypes.addressof(struct))

    def pack_int4(self, weight: Int4Weight, bias: torch.Tensor | None = None) -> CompiledLinear:
        """Packs int4 weights with all cores; see `Kernels.pack_int4`."""
        out_features, in_features, group_size = weight.out_features, weight.in_features, weight.group_size
        order = None if weight.input_order is None else weight.input_order.clone()
        num_bytes = self.library.packed_int4_bytes(group_size, out_features, in_features)
        data = self.library.zeros(num_bytes, torch.uint8)
        self._pack_int4(
            weight.words.data_ptr(),
            weight.words.stride(0),
            weight.words.stride(1),
            weight.scales.data_ptr(),
            weight.zeros.data_ptr(),
            _address(order),
            weight.scale_depth,
            out_features,
            in_features,
            data.data_ptr(),
            0 if weight.is_packed_by_inputs else 1,
            group_size,
        )
        bias = _own_bias(bias)
        struct = LinearStruct(
            data.data_ptr(), _address(bias), _address(order), in_features, out_features, INT4_FORMAT_CODE, group_size
        )
        return CompiledLinear(data, bias, in_features, out_features, struct, ctypes.addressof(struct), order)

    def linear(self, x: torch.Tensor, layer: PackedLinear, out: torch.Tensor) -> None:
        """See `Kernels.linear`."""
        assert type(layer) is CompiledLinear
        self._linear(
            layer.address,
            x.data_ptr(),
            x.stride(0),
            x.shape[0],
            out.data_ptr(),
            out.stride(0),
            self._code,
            out.dtype is torch.float32,
        )

    def embedding(self, token_ids: torch.Tensor, weight: torch.Tensor, out: torch.Tensor) -> None:
        """See `Kernels.embedding`."""
        self._embedding(
            token_ids.data_ptr(),
            token_ids.shape[0],
            weight.data_ptr(),
            weight.stride(0),
            weight.shape[1],
            out.data_ptr(),
            out.stride(0),
            DTYPE_CODES[weight.dtype],
            out.dtype is torch.float32,
        )

    def tied_embedding(self, token_ids: torch.Tensor, head: PackedLinear, out: torch.Tensor) -> None:
        """See `Kernels.tied_embedding`."""
        assert type(head) is CompiledLinear
        self._tied_embedding(
            head.address, token_ids.data_ptr(), token_ids.shape[0], out.data_ptr(), out.stride(0), self._code
        )

    def rms_norm(self, residual: torch.Tensor, weight: torch.Tensor, eps: float, out: torch.Tensor) -> None:
        """See `Kernels.rms_norm`."""
        self._normalise(0, 0, residual, weight, eps, out)

    def add_rms_norm(
        self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float, out: torch.Tensor
    ) -> None:
        """See `Kernels.add_rms_norm`."""
        self._normalise(x.data_ptr(), x.stride(0), residual, weight, eps, out)

    def silu_mul(self, gate_up: torch.Tensor, out: torch.Tensor) -> None:
        """See `Kernels.silu_mul`."""
        rows, inner = out.shape
        self._silu_mul(gate_up.data_ptr(), gate_up.stride(0), rows, inner, out.data_ptr(), out.stride(0), self._code)

    def rope_kv_write(
        self,
        qkv: torch.Tensor,
        q_norm: torch.Tensor | None,
        k_norm: torch.Tensor | None,
        eps: float,
        cos_sin: torch.Tensor,
        geometry: AttentionGeometry,
        metadata: AttentionMetadata,
        cache: LayerKVCache,
    ) -> None:
        """See `Kernels.rope_kv_write`."""
        assert type(cache) is CompiledKVCache
        if metadata is not self._step:
            self.enter_step(metadata)
        self._rope_kv_write(
            qkv.data_ptr(),
            qkv.stride(0),
            0 if q_norm is None else q_norm.data_ptr(),
            0 if k_norm is None else k_norm.data_ptr(),
            cos_sin.data_ptr(),
            self._geometry_address(geometry, cache),
            self._step_address,
            cache.key_address,
            cache.value_address,
            self._code,
            eps,
        )

    def paged_attention(
        self,
        qkv: torch.Tensor,
        geometry: AttentionGeometry,
        metadata: AttentionMetadata,
        cache: LayerKVCache,
        out: torch.Tensor,
    ) -> None:
        """See `Kernels.paged_attention`."""
        assert type(cache) is CompiledKVCache
        if metadata is not self._step:
            self.enter_step(metadata)
        self._paged_attention(
            qkv.data_ptr(),
            qkv.stride(0),
            self._geometry_address(geometry, cache),
            self._step_address,
            cache.key_address,
            cache.value_address,
            out.data_ptr(),
            out.stride(0),
            self._code,
        )

    def allocate_kv_cache(self, spec: KVCacheSpec) -> list[LayerKVCache]:
        """See `Kernels.allocate_kv_cache`.

        Raises:
            ConfigError: block size no multiple of 16, head size no multiple of 8 or above 512, or another dtype.
        """
        if spec.block_size <= 0 or spec.block_size % _GROUP_TOKENS:
            raise ConfigError(f"The KV block size must be a multiple of {_GROUP_TOKENS} tokens, not {spec.block_size}.")
        if spec.head_dim <= 0 or spec.head_dim % 8 or spec.head_dim > _MAX_HEAD_DIM:
            raise ConfigError(
                f"The compiled kernels need a head size that is a multiple of 8 up to {_MAX_HEAD_DIM}, "
                f"not {spec.head_dim}."
            )
        if spec.dtype is not self._dtype:
            raise ConfigError(f"These kernels were chosen for {self._dtype}, the KV cache cannot be {spec.dtype}.")
        return [self._allocate_layer(spec) for _ in range(spec.num_layers)]

    def _normalise(
        self,
        x_address: int,
        x_stride: int,
        residual: torch.Tensor,
        weight: torch.Tensor,
        eps: float,
        out: torch.Tensor,
    ) -> None:
        rows, hidden = residual.shape
        self._rms_norm(
            x_address,
            x_stride,
            residual.data_ptr(),
            residual.stride(0),
            rows,
            hidden,
            weight.data_ptr(),
            out.data_ptr(),
            out.stride(0),
            self._code,
            eps,
        )

    def _allocate_layer(self, spec: KVCacheSpec) -> CompiledKVCache:
        groups = (spec.num_blocks, spec.num_kv_heads, spec.block_size // _GROUP_TOKENS)
        dtype = spec.dtype if spec.kv_cache_dtype == "auto" else torch.uint8

        def zeros(row_bytes: int) -> torch.Tensor:
            shape = (*groups, _GROUP_TOKENS * row_bytes // dtype.itemsize)
            size = math.prod(shape)
            return self.library.zeros(size + _TAIL_ELEMENTS, dtype)[:size].view(shape)

        key, value = map(zeros, spec.row_bytes)
        code = KV_FORMAT_CODES[spec.kv_cache_dtype]
        return CompiledKVCache(key, value, key.data_ptr(), value.data_ptr(), spec.block_size, code)

    def _geometry_address(self, geometry: AttentionGeometry, cache: CompiledKVCache) -> int:
        key = (id(geometry), cache.block_size, cache.format_code)
        known = self._geometries.get(key)
        if known is None:
            struct = GeometryStruct(
                geometry.num_heads,
                geometry.num_kv_heads,
                geometry.head_dim,
                cache.block_size,
                geometry.sliding_window or 0,
                cache.format_code,
                geometry.scale,
                geometry.soft_cap or 0.0,
            )
            known = (geometry, struct, ctypes.addressof(struct))
            self._geometries[key] = known
        return known[2]


def _own_bias(bias: torch.Tensor | None) -> torch.Tensor | None:
    if bias is None:
        return None
    return bias.detach().to(device="cpu", dtype=torch.float32, copy=True).contiguous()


def _address(tensor: torch.Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()
