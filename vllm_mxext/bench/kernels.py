"""Times the compiled kernels beside PyTorch's own operations, interleaved, at the shapes of Qwen3-0.6B."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch.nn import functional

from vllm_mxext.config.engine import KVCacheDType
from vllm_mxext.native.kernels.compiled import CompiledKernels
from vllm_mxext.native.kernels.interface import AttentionGeometry, AttentionMetadata, KVCacheSpec, LayerKVCache
from vllm_mxext.native.kernels.torch_kernels import TorchKernels
from vllm_mxext.native.sampling.metadata import SamplingColumns
from vllm_mxext.native.sampling.sampler import Sampler
from vllm_mxext.native.worker.row_sampling import row_sampling
from vllm_mxext.sampling_params import SamplingParams

HIDDEN, INNER, VOCAB = 1024, 3072, 151_936
HEADS, KV_HEADS, HEAD_DIM = 16, 8, 128
QKV_WIDTH = (HEADS + 2 * KV_HEADS) * HEAD_DIM
LINEARS = {
    "qkv": (QKV_WIDTH, HIDDEN),
    "attention out": (HIDDEN, HEADS * HEAD_DIM),
    "gate up": (2 * INNER, HIDDEN),
    "down": (HIDDEN, INNER),
    "head": (VOCAB, HIDDEN),
}
ROWS = (1, 8, 32, 256, 1024)
BATCHES = {
    "decode 1 x 64": ([1], [64]),
    "decode 8 x 160": ([1] * 8, [160] * 8),
    "decode 32 x 288": ([1] * 32, [288] * 32),
    "prefill 256": ([256], [256]),
    "prefill 1024": ([1024], [1024]),
}
"""Tokens scheduled and tokens with keys, per request."""

SAMPLED_ROWS = 32
SAMPLING = {
    "greedy": SamplingParams(temperature=0),
    "temperature": SamplingParams(temperature=0.7),
    "top-p": SamplingParams(temperature=0.7, top_p=0.95),
    "top-k 20 top-p": SamplingParams(temperature=0.7, top_k=20, top_p=0.95),
    "top-k 50 top-p": SamplingParams(temperature=0.7, top_k=50, top_p=0.95),
    "top-k 20 top-p repetition": SamplingParams(temperature=0.7, top_k=20, top_p=0.95, repetition_penalty=1.1),
}
"""Parameters that requests usually come with."""

KV_CACHE_DTYPES: tuple[KVCacheDType, ...] = ("auto", "int8")
BLOCK_SIZE = 16
CPU = torch.device("cpu")
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}

Implementation = CompiledKernels | TorchKernels
Case = tuple[str, Mapping[str, Callable[[], object]]]
"""Name of a measurement, and what to time for each implementation."""


@dataclass(frozen=True)
class Bench:
    """What is compared."""

    kernels: dict[str, CompiledKernels]
    dtype: torch.dtype

    def random(self, *shape: int) -> torch.Tensor:
        """Standard normal numbers in the dtype."""
        return torch.randn(*shape, dtype=torch.float32).to(self.dtype)

    def parts(self) -> Iterator[Iterator[Case]]:
        """Everything that is measured."""
        yield from (self.linears(), self.attention(), self.row_operations(), self.sampling(), self.packing())

    def linears(self) -> Iterator[Case]:
        """Every linear layer of the model at every number of rows; `F.linear` beside it."""
        for name, shape in LINEARS.items():
            weight = self.random(*shape)
            out_dtype = torch.float32 if name == "head" else self.dtype
            layers = {key: kernels.pack_linear(weight) for key, kernels in self.kernels.items()}
            for rows in ROWS if name != "head" else (1, 8, 32):
                x, out = self.random(rows, shape[1]), torch.empty(rows, shape[0], dtype=out_dtype)
                ours = {key: partial(kernels.linear, x, layers[key], out) for key, kernels in self.kernels.items()}
                yield f"linear {name} M={rows}", {**ours, "torch": partial(functional.linear, x, weight)}

    def attention(self) -> Iterator[Case]:
        """Attention over shuffled blocks; SDPA over contiguous, already gathered keys beside it."""
        for kv_cache_dtype in KV_CACHE_DTYPES:
            yield from self.attention_over(kv_cache_dtype)

    def attention_over(self, kv_cache_dtype: KVCacheDType) -> Iterator[Case]:
        """Attention and KV write with one kind of cache."""
        geometry = AttentionGeometry(HEADS, KV_HEADS, HEAD_DIM, HEAD_DIM**-0.5)
        for name, (counts, lengths) in BATCHES.items():
            metadata = step_metadata(counts, lengths)
            caches = {
                key: self.cache(kernels, metadata, geometry, kv_cache_dtype)
                for key, kernels in self.implementations().items()
            }
            qkv = self.random(sum(counts), QKV_WIDTH)
            out = torch.empty(sum(counts), HEADS * HEAD_DIM, dtype=self.dtype)
            attend = {
                key: partial(kernels.paged_attention, qkv, geometry, metadata, caches[key], out)
                for key, kernels in self.kernels.items()
            }
            yield f"attention {name} {kv_cache_dtype}", {**attend, "torch": self.sdpa(counts, lengths)}
            cos_sin, norm = torch.randn(max(lengths), HEAD_DIM), self.random(HEAD_DIM)
            write = {
                key: partial(kernels.rope_kv_write, qkv, norm, norm, 1e-6, cos_sin, geometry, metadata, caches[key])
                for key, kernels in self.implementations().items()
            }
            yield f"rope+kv {name} {kv_cache_dtype}", write

    def row_operations(self) -> Iterator[Case]:
        """Norm with residual and gated activation; the plain PyTorch kernels beside them."""
        everyone = self.implementations().items()
        for rows in ROWS:
            x, residual, weight = self.random(rows, HIDDEN), torch.randn(rows, HIDDEN), self.random(HIDDEN)
            out = torch.empty_like(x)
            norms = {key: partial(kernels.add_rms_norm, x, residual, weight, 1e-6, out) for key, kernels in everyone}
            yield f"add_rms_norm M={rows}", norms
            gate_up, gated = self.random(rows, 2 * INNER), torch.empty(rows, INNER, dtype=self.dtype)
            yield f"silu_mul M={rows}", {key: partial(kernels.silu_mul, gate_up, gated) for key, kernels in everyone}

    def sampling(self) -> Iterator[Case]:
        """Everything between the logits of a step and its tokens."""
        logits = torch.randn(SAMPLED_ROWS, VOCAB) * 3
        for name, params in SAMPLING.items():
            columns = SamplingColumns(SAMPLED_ROWS)
            for row in range(SAMPLED_ROWS):
                columns.set_row(row, params, row)
            lengths = np.full(SAMPLED_ROWS, 500)
            tokens = np.random.default_rng(0).integers(0, VOCAB, (SAMPLED_ROWS, 500), dtype=np.int32)
            metadata = columns.select(np.arange(SAMPLED_ROWS), lengths, lengths // 2, tokens)
            yield (
                f"sample M={SAMPLED_ROWS} {name}",
                {
                    key: partial(Sampler(row_sampling(kernels)).sample, logits, metadata)
                    for key, kernels in self.kernels.items()
                },
            )

    def packing(self) -> Iterator[Case]:
        """Packing at load, the allocation of the packed tensor included."""
        for name, shape in LINEARS.items():
            weight = self.random(*shape)
            yield f"pack {name}", {key: partial(kernels.pack_linear, weight) for key, kernels in self.kernels.items()}

    def implementations(self) -> dict[str, Implementation]:
        """The compiled kernels and the plain PyTorch ones."""
        return {**self.kernels, "torch": TorchKernels(CPU)}

    def cache(
        self,
        kernels: Implementation,
        metadata: AttentionMetadata,
        geometry: AttentionGeometry,
        kv_cache_dtype: KVCacheDType,
    ) -> LayerKVCache:
        """A cache for one layer, filled with random numbers."""
        num_blocks = int(metadata.block_tables.max()) + 1
        spec = KVCacheSpec(1, num_blocks, BLOCK_SIZE, KV_HEADS, HEAD_DIM, self.dtype, CPU, kv_cache_dtype)
        cache = kernels.allocate_kv_cache(spec)[0]
        slots = torch.arange(num_blocks * BLOCK_SIZE)
        every_slot = replace(metadata, positions=torch.zeros(len(slots), dtype=torch.int32), slot_mapping=slots)
        qkv, cos_sin = self.random(len(slots), QKV_WIDTH), torch.ones(1, HEAD_DIM)
        kernels.rope_kv_write(qkv, None, None, 0.0, cos_sin, geometry, every_slot, cache)
        return cache

    def sdpa(self, counts: list[int], lengths: list[int]) -> Callable[[], object]:
        """PyTorch's attention on a batch of equal requests."""
        query = self.random(len(counts), HEADS, counts[0], HEAD_DIM)
        key, value = (self.random(len(counts), KV_HEADS, lengths[0], HEAD_DIM) for _ in range(2))
        is_causal = counts[0] > 1
        return lambda: functional.scaled_dot_product_attention(query, key, value, is_causal=is_causal, enable_gqa=True)


def step_metadata(counts: list[int], lengths: list[int]) -> AttentionMetadata:
    """A step that schedules the last `counts` of each request's `lengths` tokens, over shuffled blocks."""
    blocks = -(-max(lengths) // BLOCK_SIZE)
    tables = (torch.randperm(len(counts) * blocks) + 1).view(len(counts), blocks).int()
    spans = list(enumerate(zip(counts, lengths, strict=True)))
    positions = torch.cat([torch.arange(length - count, length) for _, (count, length) in spans])
    rows = torch.cat([torch.full((count,), row) for row, (count, _) in spans])
    slots = tables[rows, positions // BLOCK_SIZE].long() * BLOCK_SIZE + positions % BLOCK_SIZE
    starts = torch.tensor([0, *counts]).cumsum(0).int()
    seq_lens = torch.tensor(lengths, dtype=torch.int32)
    return AttentionMetadata(positions.int(), slots, tables, starts, seq_lens, max(counts), max(lengths))


def measure(
    runs: Mapping[str, Callable[[], object]], clock: Callable[[], float], budget_s: float
) -> dict[str, list[float]]:
    """Runs everything in changing order for `budget_s` seconds and at least five times; returns microseconds."""
    for run in runs.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    order = list(runs.items())
    shuffle = random.Random(0).shuffle
    end = time.monotonic() + budget_s
    while time.monotonic() < end or len(times[order[0][0]]) < 5:
        shuffle(order)  # who runs after whom decides what the caches still hold
        for name, run in order:
            start = clock()
            run()
            times[name].append((clock() - start) * 1e6)
    return times
