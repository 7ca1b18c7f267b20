"""Every operation of a step against the machine's limits: bytes moved, operations counted, time taken.

An operation cannot be faster than memory delivers its bytes, nor than the instructions compute its products; the larger
of the two times is its limit. Memory is measured by reading, instructions by the best matrix product whose weights stay
in the cache. Weights and keys rotate through more memory than any cache holds, as in a model of many layers.
Activations stay in the cache, in a model too, so that operations on them alone may pass the limit of memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import cycle
from typing import Any

import numpy as np
import torch

from vllm_mxext.bench.kernels import HEAD_DIM, HEADS, HIDDEN, INNER, KV_HEADS, LINEARS, QKV_WIDTH, VOCAB, step_metadata
from vllm_mxext.bench.metrics import summarize
from vllm_mxext.config.engine import Quantization
from vllm_mxext.native.kernels.interface import (
    AttentionGeometry,
    AttentionMetadata,
    Kernels,
    KVCacheSpec,
    LayerKVCache,
    PackedLinear,
)

LAYERS = 28
BLOCK_SIZE = 16
COLD_BYTES = 256 * 2**20
"""More than the caches of current processors."""

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the engine.

    Attributes:
        name: for the report.
        counts: tokens computed, per request.
        lengths: tokens with keys, per request.
    """

    name: str
    counts: tuple[int, ...]
    lengths: tuple[int, ...]

    @property
    def num_tokens(self) -> int:
        """Rows of the activations."""
        return sum(self.counts)

    @property
    def num_pairs(self) -> int:
        """Pairs of a query and a key that it sees."""
        pairs = zip(self.counts, self.lengths, strict=True)
        return sum(count * length - count * (count - 1) // 2 for count, length in pairs)


def steps(context: int) -> tuple[Step, ...]:
    """Returns decode steps of 1, 8 and 32 requests with `context` tokens each, and a prefill of 1024."""
    decode = (Step(f"decode {batch} x {context}", (1,) * batch, (context,) * batch) for batch in (1, 8, 32))
    return (*decode, Step("prefill 1024", (1024,), (1024,)))


@dataclass(frozen=True, slots=True)
class Limits:
    """What the machine does per second at best.

    Attributes:
        read_bytes: bytes from memory.
        linear_flops: floating-point (or integer) operations of linear layers.
        attention_flops: the same in the element type of the model.
    """

    read_bytes: float
    linear_flops: float
    attention_flops: float

    def as_dict(self) -> dict[str, float]:
        """Returns the limits by name."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Figure:
    """One operation, measured.

    Attributes:
        name: which.
        calls: how often in a step.
        num_bytes: moved per call.
        flops: per call.
        seconds: median per call.
        limit_seconds: what the machine needs at least.
    """

    name: str
    calls: int
    num_bytes: int
    flops: int
    seconds: float
    limit_seconds: float

    def row(self, step_s: float) -> tuple[object, ...]:
        """Returns the cells of a table; `step_s` is the time of the whole step."""
        return (
            self.name,
            self.calls,
            self.num_bytes / 1e6,
            self.flops / 1e6,
            self.seconds * 1e6,
            self.num_bytes / self.seconds / 1e9,
            self.flops / self.seconds / 1e9,
            f"{self.limit_seconds / self.seconds:.0%}",
            f"{self.calls * self.seconds / step_s:.1%}",
        )

    def as_dict(self) -> dict[str, Any]:
        """Returns the figures for JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation of a step, ready to be timed.

    Attributes:
        name: for the report.
        calls: how often in a step.
        num_bytes: moved per call: every operand once.
        flops: per call.
        runs: the same call on different memory, taken in turn.
        is_linear: its limit is that of linear layers.
    """

    name: str
    calls: int
    num_bytes: int
    flops: int
    runs: Sequence[Callable[[], object]]
    is_linear: bool = False

    def measure(self, limits: Limits, clock: Clock, budget_s: float) -> Figure:
        """Runs it for `budget_s` seconds and at least twice on every memory."""
        peak = limits.linear_flops if self.is_linear else limits.attention_flops
        limit_s = max(self.num_bytes / limits.read_bytes, self.flops / peak)
        return Figure(self.name, self.calls, self.num_bytes, self.flops, _median_s(self.runs, clock, budget_s), limit_s)


class Roofline:
    """The operations of the Qwen3-0.6B shape.

    Args:
        kernels: the kernel set.
        dtype: of the model.
    """

    def __init__(self, kernels: Kernels, dtype: torch.dtype) -> None:
        self._kernels = kernels
        self._dtype = dtype
        self._packed: dict[tuple[str, Quantization], list[PackedLinear]] = {}

    def peaks(self, quantization: Quantization, clock: Clock) -> tuple[float, float]:
        """Measures the best matrix product with cached weights: of linear layers, and in the model's element type."""
        plain = self._best_flops("none", clock)
        return (plain if quantization == "none" else self._best_flops(quantization, clock)), plain

    def operations(self, step: Step, quantization: Quantization) -> Iterator[Operation]:
        """Yields what a step consists of, in the order of a layer."""
        yield from self._row_operations(step.num_tokens)
        yield from self._attention(step)
        for name in LINEARS:
            rows = len(step.counts) if name == "head" else step.num_tokens
            yield self.linear(name, rows, quantization)
        logits = np.random.default_rng(0).standard_normal((len(step.counts), VOCAB), dtype=np.float32)
        yield Operation("greedy sampling", 1, logits.nbytes, logits.size, [partial(logits.argmax, axis=1)])

    def linear(self, name: str, rows: int, quantization: Quantization) -> Operation:
        """One linear layer of `LINEARS`."""
        out_features, in_features = LINEARS[name]
        if (name, quantization) not in self._packed:
            copies = 1 if name == "head" else max(2, -(-COLD_BYTES // (2 * out_features * in_features)))
            weight = self._random(out_features, in_features)
            self._packed[name, quantization] = [
                self._kernels.pack_linear(weight, None, quantization) for _ in range(copies)
            ]
        layers = self._packed[name, quantization]
        x = self._random(rows, in_features)
        out = torch.empty(rows, out_features, dtype=torch.float32 if name == "head" else self._dtype)
        return Operation(
            f"linear {name}",
            1 if name == "head" else LAYERS,
            layers[0].num_bytes + x.nbytes + out.nbytes,
            2 * rows * out_features * in_features,
            [partial(self._kernels.linear, x, layer, out) for layer in layers],
            is_linear=True,
        )

    def _row_operations(self, rows: int) -> Iterator[Operation]:
        kernels = self._kernels
        x, residual, weight = self._random(rows, HIDDEN), torch.randn(rows, HIDDEN), self._random(HIDDEN)
        out = torch.empty_like(x)
        norm = [partial(kernels.add_rms_norm, x, residual, weight, 1e-6, out)]
        yield Operation("add_rms_norm", 2 * LAYERS, 2 * (x.nbytes + residual.nbytes), 5 * x.numel(), norm)
        gate_up, gated = self._random(rows, 2 * INNER), torch.empty(rows, INNER, dtype=self._dtype)
        activation = [partial(kernels.silu_mul, gate_up, gated)]
        yield Operation("silu_mul", LAYERS, gate_up.nbytes + gated.nbytes, 5 * gated.numel(), activation)

    def _attention(self, step: Step) -> Iterator[Operation]:
        kernels = self._kernels
        geometry = AttentionGeometry(HEADS, KV_HEADS, HEAD_DIM, HEAD_DIM**-0.5)
        metadata = step_metadata(list(step.counts), list(step.lengths))
        token_bytes = 2 * KV_HEADS * HEAD_DIM * self._dtype.itemsize
        read_bytes = sum(step.lengths) * token_bytes
        caches = kernels.allocate_kv_cache(self._cache_spec(metadata, max(1, min(LAYERS, COLD_BYTES // read_bytes))))
        for cache in caches:
            self._fill(cache, metadata, geometry)
        qkv, norm = self._random(step.num_tokens, QKV_WIDTH), self._random(HEAD_DIM)
        out = torch.empty(step.num_tokens, HEADS * HEAD_DIM, dtype=self._dtype)
        angles = torch.randn(max(step.lengths), HEAD_DIM)
        rotated = step.num_tokens * (HEADS + KV_HEADS) * HEAD_DIM
        write = [
            partial(kernels.rope_kv_write, qkv, norm, norm, 1e-6, angles, geometry, metadata, cache) for cache in caches
        ]
        written_bytes = qkv.nbytes + out.nbytes + step.num_tokens * token_bytes
        yield Operation("qk norm, rope, KV write", LAYERS, written_bytes, 8 * rotated, write)
        attend = [partial(kernels.paged_attention, qkv, geometry, metadata, cache, out) for cache in caches]
        flops = 4 * HEADS * HEAD_DIM * step.num_pairs
        yield Operation("attention", LAYERS, read_bytes + 2 * out.nbytes, flops, attend)

    def _fill(self, cache: LayerKVCache, metadata: AttentionMetadata, geometry: AttentionGeometry) -> None:
        """Writes random keys and values, as the cache stores them."""
        slots = torch.arange((int(metadata.block_tables.max()) + 1) * BLOCK_SIZE)
        every_slot = replace(metadata, positions=torch.zeros(len(slots), dtype=torch.int32), slot_mapping=slots)
        qkv, angles = self._random(len(slots), QKV_WIDTH), torch.ones(1, HEAD_DIM)
        self._kernels.rope_kv_write(qkv, None, None, 0.0, angles, geometry, every_slot, cache)

    def _cache_spec(self, metadata: AttentionMetadata, num_layers: int) -> KVCacheSpec:
        num_blocks = int(metadata.block_tables.max()) + 1
        return KVCacheSpec(
            num_layers, num_blocks, BLOCK_SIZE, KV_HEADS, HEAD_DIM, self._dtype, metadata.block_tables.device
        )

    def _best_flops(self, quantization: Quantization, clock: Clock) -> float:
        best = 0.0
        for rows, out_features, in_features in ((192, 512, 1024), (384, 1024, 1024), (1024, 1024, 1024)):
            layer = self._kernels.pack_linear(self._random(out_features, in_features), None, quantization)
            x, out = self._random(rows, in_features), torch.empty(rows, out_features, dtype=self._dtype)
            runs = [partial(self._kernels.linear, x, layer, out)]
            best = max(best, 2 * rows * out_features * in_features / _median_s(runs, clock, 0.3))
        return best

    def _random(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.float32).to(self._dtype)


def _median_s(runs: Sequence[Callable[[], object]], clock: Clock, budget_s: float) -> float:
    for run in runs:
        run()
    times: list[float] = []
    spent_s = 0.0
    for run in cycle(runs):
        start = clock()
        run()
        times.append(clock() - start)
        spent_s += times[-1]
        if spent_s > budget_s and len(times) >= max(5, 2 * len(runs)):
            break
    return summarize(times).median
