"""Times the compiled kernels beside PyTorch's own operations, interleaved, at the shapes of Qwen3-0.6B.

    python benchmarks/kernels.py
    python benchmarks/kernels.py --baseline OTHER_BUILD --threads 1 --clock cpu

`--baseline` names a folder with another build of the kernel libraries, for before and after. On a busy machine, one
thread and its CPU time (`--clock cpu`) give steady figures: waiting for other processes does not count. The last line
is one JSON object with median, minimum and maximum of every cell, in microseconds.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch.nn import functional

from vllm_mxext.bench.bandwidth import read_bandwidth
from vllm_mxext.bench.metrics import summarize
from vllm_mxext.bench.report import format_table, json_line
from vllm_mxext.native.kernels.compiled import CompiledKernels
from vllm_mxext.native.kernels.interface import AttentionGeometry, AttentionMetadata, KVCacheSpec, LayerKVCache
from vllm_mxext.native.kernels.library import KernelLibrary, best_library, load_library
from vllm_mxext.native.kernels.torch_kernels import TorchKernels

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

BLOCK_SIZE = 16
CPU = torch.device("cpu")
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}

PEERS = ("baseline", "torch")

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
        yield from (self.linears(), self.attention(), self.row_operations(), self.packing())

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
        geometry = AttentionGeometry(HEADS, KV_HEADS, HEAD_DIM, HEAD_DIM**-0.5)
        for name, (counts, lengths) in BATCHES.items():
            metadata = step_metadata(counts, lengths)
            caches = {key: self.cache(kernels, metadata) for key, kernels in self.implementations().items()}
            qkv = self.random(sum(counts), QKV_WIDTH)
            out = torch.empty(sum(counts), HEADS * HEAD_DIM, dtype=self.dtype)
            attend = {
                key: partial(kernels.paged_attention, qkv, geometry, metadata, caches[key], out)
                for key, kernels in self.kernels.items()
            }
            yield f"attention {name}", {**attend, "torch": self.sdpa(counts, lengths)}
            cos_sin, norm = torch.randn(max(lengths), HEAD_DIM), self.random(HEAD_DIM)
            write = {
                key: partial(kernels.rope_kv_write, qkv, norm, norm, 1e-6, cos_sin, geometry, metadata, caches[key])
                for key, kernels in self.implementations().items()
            }
            yield f"rope+kv {name}", write

    def row_operations(self) -> Iterator[Case]:
        """Norm with residual and gated activation; the plain PyTorch kernels beside them."""
        everyone = self.implementations().items()
        for rows in ROWS:
            x, residual, weight = self.random(rows, HIDDEN), self.random(rows, HIDDEN), self.random(HIDDEN)
            out = torch.empty_like(x)
            norms = {key: partial(kernels.add_rms_norm, x, residual, weight, 1e-6, out) for key, kernels in everyone}
            yield f"add_rms_norm M={rows}", norms
            gate_up, gated = self.random(rows, 2 * INNER), torch.empty(rows, INNER, dtype=self.dtype)
            yield f"silu_mul M={rows}", {key: partial(kernels.silu_mul, gate_up, gated) for key, kernels in everyone}

    def packing(self) -> Iterator[Case]:
        """Packing at load, the allocation of the packed tensor included."""
        for name, shape in LINEARS.items():
            weight = self.random(*shape)
            yield f"pack {name}", {key: partial(kernels.pack_linear, weight) for key, kernels in self.kernels.items()}

    def implementations(self) -> dict[str, Implementation]:
        """The compiled kernels and the plain PyTorch ones."""
        return {**self.kernels, "torch": TorchKernels(CPU)}

    def cache(self, kernels: Implementation, metadata: AttentionMetadata) -> LayerKVCache:
        """A cache for one layer, filled with random numbers."""
        num_blocks = int(metadata.block_tables.max()) + 1
        spec = KVCacheSpec(1, num_blocks, BLOCK_SIZE, KV_HEADS, HEAD_DIM, self.dtype, CPU)
        cache = kernels.allocate_kv_cache(spec)[0]
        cache.key.normal_()
        cache.value.normal_()
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


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--baseline", type=Path, help="folder with another build of the libraries, to compare with")
    parser.add_argument("--isa", help="instruction set (default: the best of this CPU)")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: CPU time of the calling thread")
    parser.add_argument("--seconds", type=float, default=0.5, help="time per measurement")
    parser.add_argument("--only", default="", help="run only measurements whose name contains this")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    """Prints a table of medians, then one JSON object."""
    args = arguments()
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    library = load_library(args.isa) if args.isa else best_library()
    if library is None:
        raise SystemExit("No compiled kernels to measure.")
    kernels = {"ours": CompiledKernels(library, DTYPES[args.dtype])}
    if args.baseline:
        other = KernelLibrary(library.isa, args.baseline / library.path.name)
        kernels["baseline"] = CompiledKernels(other, DTYPES[args.dtype])
    bench = Bench(kernels, DTYPES[args.dtype])
    clock = time.perf_counter if args.clock == "wall" else time.thread_time
    bandwidth = read_bandwidth(args.threads)
    print(f"{library.isa}, {args.dtype}, {args.threads} threads, {args.clock} time, reads {bandwidth / 1e9:.0f} GB/s")
    rows, results = [], []
    for name, runs in (case for part in bench.parts() for case in part):
        if args.only not in name:
            continue
        figures = {key: summarize(times) for key, times in measure(runs, clock, args.seconds).items()}
        medians = {key: figure.median for key, figure in figures.items()}
        ratios = [medians["ours"] / medians[peer] if peer in medians else "" for peer in PEERS]
        rows.append([name, medians["ours"], *(medians.get(peer, "") for peer in PEERS), *ratios])
        results.append({"name": name, **{key: figure.as_dict(1) for key, figure in figures.items()}})
    print(format_table(["median us", "ours", *PEERS, *(f"ours/{peer}" for peer in PEERS)], rows))
    config = {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()}
    print(json_line("kernels", {**config, "isa": library.isa, "read_bytes_per_s": bandwidth}, results))


if __name__ == "__main__":
    main()
