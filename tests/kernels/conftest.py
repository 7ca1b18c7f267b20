"""Shared by the kernel tests: one run per instruction set of this CPU, and batches of paged requests."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import pytest
import torch

from vllm_mxext.config.engine import KVCacheDType
from vllm_mxext.native.kernels.compiled import CompiledKernels
from vllm_mxext.native.kernels.interface import (
    AttentionGeometry,
    AttentionMetadata,
    Kernels,
    KVCacheSpec,
    LayerKVCache,
)
from vllm_mxext.native.kernels.library import load_library, runnable_isas
from vllm_mxext.native.kernels.torch_kernels import TorchKernels

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
CPU = torch.device("cpu")
EPS = 1e-6

# Relative error (norm of the difference over norm of the reference) of one operation against a float64 or float32
# reference: half a unit in the last place, with room for a second rounding.
TOLERANCE = {torch.bfloat16: 5e-3, torch.float16: 7e-4, torch.float32: 2e-6}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "isa" in metafunc.fixturenames:
        isas = runnable_isas() or [pytest.param("none", marks=pytest.mark.skip("no compiled kernels are installed"))]
        metafunc.parametrize("isa", isas, scope="session")
    if "dtype" in metafunc.fixturenames:
        metafunc.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."), scope="session")


@pytest.fixture(scope="session")
def kernels(isa: str, dtype: torch.dtype) -> CompiledKernels:
    return CompiledKernels(load_library(isa), dtype)


@pytest.fixture(scope="session")
def oracle() -> TorchKernels:
    return TorchKernels(CPU)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Most tests compare numbers, not threads; on a busy machine every parallel region waits for the slowest core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def assert_close() -> Callable[..., None]:
    def check(
        actual: torch.Tensor,
        expected: torch.Tensor,
        dtype: torch.dtype,
        factor: float = 1.0,
        summed: torch.Tensor | None = None,
    ) -> None:
        """`summed`: what the sums add up in absolute values, for results in which large terms may cancel."""
        assert torch.isfinite(actual).all()
        error = (actual.double() - expected.double()).norm()
        limit = factor * TOLERANCE[dtype] * expected.double().norm()
        if summed is not None:
            limit += torch.finfo(torch.float32).eps * summed.double().norm()
        assert error <= limit, f"relative error {float(error / expected.double().norm()):.2e}"

    return check


@dataclass(frozen=True)
class Layer:
    """One attention layer with random inputs for every token of every request.

    Attributes:
        geometry: heads of the layer.
        lengths: tokens per request.
        block_size: token positions per block.
        qkv: per request, `[length, (num_heads + 2 * num_kv_heads) * head_dim]` before norm and rotation.
        tables: `[num_reqs, blocks]`, shuffled block ids from 1.
    """

    geometry: AttentionGeometry
    lengths: tuple[int, ...]
    block_size: int
    dtype: torch.dtype
    seed: int = 0
    qk_norm: bool = True
    kv_cache_dtype: KVCacheDType = "auto"
    qkv: list[torch.Tensor] = field(init=False)
    tables: torch.Tensor = field(init=False)
    cos_sin: torch.Tensor = field(init=False)
    norms: tuple[torch.Tensor | None, torch.Tensor | None] = field(init=False)

    def __post_init__(self) -> None:
        random = torch.Generator().manual_seed(self.seed)
        dim = self.geometry.head_dim
        width = (self.geometry.num_heads + 2 * self.geometry.num_kv_heads) * dim
        blocks = -(-max(self.lengths) // self.block_size)
        ids = torch.randperm(len(self.lengths) * blocks, generator=torch.Generator().manual_seed(self.seed)) + 1
        angles = torch.rand(max(self.lengths), dim // 2, generator=random) * 6.3
        norms = torch.rand(2, dim, generator=random).to(self.dtype) + 0.5
        values = {
            "qkv": [torch.randn(length, width, generator=random).to(self.dtype) for length in self.lengths],
            "tables": ids.view(len(self.lengths), blocks).int(),
            "cos_sin": torch.cat((angles.cos(), angles.sin()), dim=1),
            "norms": (norms[0], norms[1]) if self.qk_norm else (None, None),
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def new_cache(self, kernels: Kernels, fill: float | None = None) -> LayerKVCache:
        geometry = self.geometry
        num_blocks = int(self.tables.max()) + 1
        spec = KVCacheSpec(
            1,
            num_blocks,
            self.block_size,
            geometry.num_kv_heads,
            geometry.head_dim,
            self.dtype,
            CPU,
            self.kv_cache_dtype,
        )
        cache = kernels.allocate_kv_cache(spec)[0]
        if fill is not None:
            for tensor in (cache.key, cache.value):
                # Every byte set is NaN too: in each scale of an int8 cache.
                tensor.fill_(fill if tensor.dtype.is_floating_point else 255)
        return cache

    def run(
        self,
        kernels: Kernels,
        steps: Sequence[Sequence[tuple[int, int]]],
        cache: LayerKVCache | None = None,
        computed: Sequence[int] | None = None,
    ) -> list[torch.Tensor]:
        """Runs steps of `(request, num_tokens)` pairs; returns each request's attention outputs, in token order."""
        cache = self.new_cache(kernels) if cache is None else cache
        done = list(computed) if computed is not None else [0] * len(self.lengths)
        outputs: list[list[torch.Tensor]] = [[] for _ in self.lengths]
        for step in steps:
            spans = [(request, done[request], done[request] + count) for request, count in step]
            for (request, count), output in zip(step, self._run_step(kernels, spans, cache), strict=True):
                outputs[request].append(output)
                done[request] += count
        return [torch.cat(parts) if parts else torch.empty(0) for parts in outputs]

    def metadata(self, spans: Sequence[tuple[int, int, int]]) -> AttentionMetadata:
        counts = [last - first for _, first, last in spans]
        positions = torch.cat([torch.arange(first, last) for _, first, last in spans])
        rows = torch.cat([torch.full((last - first,), request) for request, first, last in spans])
        blocks = self.tables[rows, positions // self.block_size].long()
        return AttentionMetadata(
            positions=positions.int(),
            slot_mapping=blocks * self.block_size + positions % self.block_size,
            block_tables=self.tables[[request for request, _, _ in spans]].contiguous(),
            query_start_loc=torch.tensor([0, *counts]).cumsum(0).int(),
            seq_lens=torch.tensor([last for _, _, last in spans], dtype=torch.int32),
            max_query_len=max(counts),
            max_seq_len=max(last for _, _, last in spans),
        )

    def _run_step(
        self, kernels: Kernels, spans: Sequence[tuple[int, int, int]], cache: LayerKVCache
    ) -> tuple[torch.Tensor, ...]:
        metadata = self.metadata(spans)
        qkv = torch.cat([self.qkv[request][first:last] for request, first, last in spans])
        kernels.rope_kv_write(qkv, *self.norms, EPS, self.cos_sin, self.geometry, metadata, cache)
        out = torch.full((len(qkv), self.geometry.num_heads * self.geometry.head_dim), torch.nan).to(self.dtype)
        kernels.paged_attention(qkv, self.geometry, metadata, cache, out)
        return out.split([last - first for _, first, last in spans])


@pytest.fixture(scope="session")
def make_layer() -> Callable[..., Layer]:
    def make(
        heads: tuple[int, int, int],
        lengths: Sequence[int],
        dtype: torch.dtype,
        *,
        block_size: int = 16,
        window: int | None = None,
        soft_cap: float | None = None,
        seed: int = 0,
        qk_norm: bool = True,
        kv_cache_dtype: KVCacheDType = "auto",
    ) -> Layer:
        num_heads, num_kv_heads, head_dim = heads
        geometry = AttentionGeometry(num_heads, num_kv_heads, head_dim, head_dim**-0.5, window, soft_cap)
        return Layer(geometry, tuple(lengths), block_size, dtype, seed, qk_norm, kv_cache_dtype)

    return make
