"""Adapters against merged weights in float64: ranges, slots, parts, gains, biases, and the memory they lie in."""

from __future__ import annotations

import gc
import importlib
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.process_memory import anonymous_bytes, counts_memory
from vllm_mxext.native.kernels.adapters import AdapterPart, AdapterRange, AdapterWeights
from vllm_mxext.native.kernels.compiled import CompiledKernels
from vllm_mxext.native.kernels.library import best_library, load_library
from vllm_mxext.native.kernels.selection import select_kernels
from vllm_mxext.native.kernels.torch_deterministic import DeterministicTorchKernels
from vllm_mxext.native.kernels.torch_kernels import TorchKernels

CPU = torch.device("cpu")
# A product of rounded products, added to a rounded product.
FACTOR = 4.0


@dataclass(frozen=True)
class Shape:
    """Of an adapter for one layer; `parts` are (first output, outputs, rank)."""

    in_features: int
    out_features: int
    parts: tuple[tuple[int, int, int], ...]
    has_gain: bool = False
    has_bias: bool = False


QKV = Shape(70, 150, ((0, 64, 16), (64, 43, 3), (107, 43, 8)))
NO_K = Shape(70, 150, ((0, 64, 5), (107, 43, 64)), has_gain=True, has_bias=True)
SHAPES = {
    "one part": Shape(33, 65, ((0, 65, 1),)),
    "three parts": QKV,
    "a part missing": NO_K,
    "gain": Shape(256, 130, ((0, 130, 16),), has_gain=True),
    "bias alone": Shape(70, 150, (), has_bias=True),
    "gain before and after the part": Shape(96, 200, ((31, 90, 7),), has_gain=True),
}


def evenly_spaced(in_features, ranks, outputs, gap, has_gain, has_bias):
    """A part of `outputs` outputs for every rank, with `gap` outputs before, between and after them."""
    parts = tuple((gap + i * (outputs + gap), outputs, rank) for i, rank in enumerate(ranks))
    return Shape(in_features, gap + len(ranks) * (outputs + gap), parts, has_gain, has_bias)


def random_adapter(shape, dtype, seed):
    random = torch.Generator().manual_seed(seed)

    def normal(*size, divisor=1.0):
        return torch.randn(*size, generator=random) / divisor**0.5

    parts = tuple(
        AdapterPart(
            first,
            normal(rank, shape.in_features, divisor=shape.in_features).to(dtype),
            normal(outputs, rank, divisor=rank).to(dtype),
            scaling=0.5 + index,
        )
        for index, (first, outputs, rank) in enumerate(shape.parts)
    )
    gain = normal(shape.out_features) * 0.2 + 1 if shape.has_gain else None
    bias = normal(shape.out_features) if shape.has_bias else None
    return AdapterWeights(parts, gain, bias)


def merged_product(x, weight, adapter, scale):
    """`x` through the merged weights, in float64."""
    merged = weight.double()
    if adapter.gain is not None:
        merged = merged * (1 + scale * (adapter.gain.double() - 1)).unsqueeze(1)
    for part in adapter.parts:
        rows = slice(part.first_output, part.first_output + len(part.b))
        merged = merged.clone()
        merged[rows] += scale * part.scaling * (part.b.double() @ part.a.double())
    product = x.double() @ merged.T
    return product if adapter.bias is None else product + scale * adapter.bias.double()


class Problem:
    """A layer of the base and adapters in some of its slots."""

    def __init__(self, kernels, shape, dtype, slots, num_rows, seed=0, device=CPU):
        random = torch.Generator().manual_seed(seed)
        self.kernels = kernels
        self.device = device
        self.x = torch.randn(num_rows, shape.in_features, generator=random).to(dtype)
        self.weight = (torch.randn(shape.out_features, shape.in_features, generator=random) / 8).to(dtype)
        self.adapters = {slot: random_adapter(shape, dtype, seed + slot) for slot in slots}
        self.layer = kernels.make_adapter_layer(shape.in_features, shape.out_features, max(slots) + 2)
        for slot, adapter in self.adapters.items():
            self.layer.set(slot, kernels.pack_adapter([adapter])[0])
        self.ranges = kernels.make_adapter_ranges(16)

    def base(self, out_dtype):
        return (self.x.double() @ self.weight.double().T).to(out_dtype)

    def run(self, ranges, out_dtype):
        out = self.base(out_dtype)
        self.ranges.write([AdapterRange(*one) for one in ranges])
        on_device = out.to(self.device)
        self.kernels.adapt(self.x.to(self.device), self.layer, self.ranges, on_device)
        return on_device.cpu()

    def expected(self, ranges):
        out = self.x.double() @ self.weight.double().T
        for start, end, slot, scale in ranges:
            if slot in self.adapters:
                out[start:end] = merged_product(self.x[start:end], self.weight, self.adapters[slot], scale)
        return out


def check(kernels, dtype, shape, assert_close, device=CPU):
    problem = Problem(kernels, shape, dtype, slots=(1, 2, 4), num_rows=80, device=device)
    # Slot 3 is empty; rows 0, 1 and 77 to 79 belong to nobody.
    ranges = [(2, 3, 1, 1.0), (3, 4, 2, 0.25), (4, 9, 3, 1.0), (9, 10, 4, 1.0), (10, 77, 2, 1.5)]
    untouched = [0, 1, 4, 5, 6, 7, 8, 77, 78, 79]
    for out_dtype in {dtype, torch.float32}:
        out = problem.run(ranges, out_dtype)
        assert_close(out, problem.expected(ranges), dtype, FACTOR)
        assert torch.equal(out[untouched], problem.base(out_dtype)[untouched])


@pytest.mark.promise("KERN-1")
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_rows_of_each_adapter_come_out_as_from_merged_weights(kernels, dtype, assert_close, shape):
    check(kernels, dtype, shape, assert_close)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("make", [TorchKernels, DeterministicTorchKernels])
def test_the_pytorch_kernels_equal_merged_weights_too(make, dtype, assert_close, shape):
    check(make(CPU), dtype, shape, assert_close)


@pytest.mark.promise("KERN-1")
@settings(max_examples=12, deadline=None)
@given(
    shape=st.builds(
        evenly_spaced,
        in_features=st.integers(1, 150),
        ranks=st.lists(st.integers(1, 64), min_size=1, max_size=3),
        outputs=st.integers(1, 140),
        gap=st.integers(0, 40),
        has_gain=st.booleans(),
        has_bias=st.booleans(),
    ),
    lengths=st.lists(st.integers(0, 60), min_size=1, max_size=5),
    seed=st.integers(0, 1000),
)
def test_any_shape_equals_merged_weights(kernels, dtype, assert_close, shape, lengths, seed):
    problem = Problem(kernels, shape, dtype, slots=(1, 3), num_rows=sum(lengths) + 1, seed=seed)
    ends = torch.tensor([0, *lengths]).cumsum(0).tolist()
    ranges = [(start, end, 1 + i % 3, 1 + i / 4) for i, (start, end) in enumerate(pairwise(ends))]
    assert_close(problem.run(ranges, dtype), problem.expected(ranges), dtype, FACTOR)


@pytest.mark.parametrize("threads", [1, 3])
def test_wide_and_deep_layers_equal_merged_weights(kernels, dtype, assert_close, threads):
    shape = Shape(1100, 1300, ((0, 700, 40), (700, 600, 16)))
    problem = Problem(kernels, shape, dtype, slots=(1, 2), num_rows=130)
    ranges = [(0, 1, 1, 1.0), (1, 2, 2, 1.0), (3, 130, 1, 2.0)]
    load_library(kernels.name).set_num_threads(threads)
    try:
        assert_close(problem.run(ranges, dtype), problem.expected(ranges), dtype, FACTOR)
    finally:
        load_library(kernels.name).set_num_threads(1)


def test_rows_may_be_strided_and_nothing_beside_them_is_written(kernels, dtype):
    problem = Problem(kernels, NO_K, dtype, slots=(1,), num_rows=9)
    ranges = [(1, 8, 1, 1.0)]
    expected = problem.run(ranges, dtype)
    wide_x, wide_out = (torch.full((9, 200), value).to(dtype) for value in (torch.nan, 7.0))
    wide_x[:, 5:75], wide_out[:, 3:153] = problem.x, problem.base(dtype)
    problem.kernels.adapt(wide_x[:, 5:75], problem.layer, problem.ranges, wide_out[:, 3:153])
    assert torch.equal(wide_out[:, 3:153], expected)
    assert (wide_out[:, :3] == 7).all()
    assert (wide_out[:, 153:] == 7).all()


def check_batch_invariance(kernels, dtype, shape, together, lengths):
    problem = Problem(kernels, shape, dtype, slots=(1, 2, 3), num_rows=sum(lengths))
    ends = torch.tensor([0, *lengths]).cumsum(0).tolist()
    spans = list(pairwise(ends))
    slots = {row: 1 + i % 3 for i, span in enumerate(spans) for row in range(*span)}
    ranges = [(start, end, slots[start], 1.25) for start, end in spans]
    whole = problem.run(ranges, dtype)
    for row in together:
        alone = problem.run([(row, row + 1, slots[row], 1.25)], dtype)
        assert torch.equal(alone[row], whole[row]), row


@pytest.mark.promise("KERN-2")
@pytest.mark.parametrize("lengths", [(1, 1, 1), (2, 3, 4, 5, 6, 7), (61, 1, 48, 49)], ids=str)
@pytest.mark.parametrize("shape", [QKV, NO_K], ids=["three parts", "gain and bias"])
def test_a_row_does_not_depend_on_the_other_rows_and_ranges(kernels, dtype, shape, lengths):
    check_batch_invariance(kernels, dtype, shape, range(sum(lengths)), lengths)


@pytest.mark.promise("KERN-2")
def test_a_row_does_not_depend_on_the_threads(kernels, dtype):
    problem = Problem(kernels, Shape(300, 700, ((0, 700, 33),)), dtype, slots=(1, 2), num_rows=100)
    ranges = [(0, 1, 1, 1.0), (1, 97, 2, 1.0), (97, 100, 1, 1.0)]
    expected = problem.run(ranges, dtype)
    load_library(kernels.name).set_num_threads(3)
    try:
        assert torch.equal(problem.run(ranges, dtype), expected)
    finally:
        load_library(kernels.name).set_num_threads(1)


def test_a_row_of_the_deterministic_pytorch_kernels_does_not_depend_on_the_others(dtype):
    lengths = (1, 3, 37)
    check_batch_invariance(DeterministicTorchKernels(CPU), dtype, NO_K, range(sum(lengths)), lengths)


def test_a_replay_sees_new_ranges_and_other_adapters(kernels, dtype):
    problem = Problem(kernels, QKV, dtype, slots=(1, 2), num_rows=20)
    out = problem.base(dtype)
    problem.ranges.write([AdapterRange(0, 1, 1, 1.0)])
    with kernels.recording() as recording:
        kernels.adapt(problem.x, problem.layer, problem.ranges, out)
    other = random_adapter(NO_K, dtype, seed=99)
    for ranges in ([(3, 4, 1, 1.0), (4, 20, 2, 0.5)], [(0, 20, 2, 1.0)], []):
        problem.layer.set(1, None)
        problem.layer.set(2, kernels.pack_adapter([other])[0])
        expected = problem.run(ranges, dtype)
        out.copy_(problem.base(dtype))
        recording.replay(20)
        assert torch.equal(out, expected)
    problem.adapters = {2: other}
    out.copy_(problem.base(dtype))
    problem.ranges.write([AdapterRange(5, 9, 2, 1.0)])
    recording.replay(20)
    assert torch.equal(out, problem.run([(5, 9, 2, 1.0)], dtype))
    assert not torch.equal(out[5:9], problem.base(dtype)[5:9])


def test_the_layers_of_an_adapter_are_packed_side_by_side(kernels, dtype, assert_close):
    weights = [random_adapter(shape, dtype, seed) for seed, shape in enumerate(SHAPES.values())]
    packed = kernels.pack_adapter(weights)
    for shape, adapter, layer_adapter in zip(SHAPES.values(), weights, packed, strict=True):
        problem = Problem(kernels, shape, dtype, slots=(1,), num_rows=3)
        problem.layer.set(1, layer_adapter)
        problem.adapters[1] = adapter
        ranges = [(1, 3, 1, 1.0)]
        assert_close(problem.run(ranges, dtype), problem.expected(ranges), dtype, FACTOR)
        elements = sum(part.a.numel() + part.b.numel() for part in adapter.parts)
        assert layer_adapter.num_bytes >= elements * dtype.itemsize
    assert kernels.pack_adapter([]) == []


def test_what_was_packed_may_be_overwritten(kernels, dtype):
    problem = Problem(kernels, NO_K, dtype, slots=(1,), num_rows=4)
    ranges = [(0, 4, 1, 1.0)]
    expected = problem.run(ranges, dtype)
    for part in problem.adapters[1].parts:
        part.a.zero_()
        part.b.zero_()
    problem.adapters[1].gain.zero_()
    problem.adapters[1].bias.zero_()
    assert torch.equal(problem.run(ranges, dtype), expected)


@pytest.fixture
def interpreted_kernels(monkeypatch):
    pytest.importorskip("triton")
    if np.lib.NumpyVersion(np.__version__) >= "2.4.0":
        pytest.skip("Triton's interpreter needs an older NumPy")
    from vllm_mxext.native.kernels import triton_kernels, triton_lora

    monkeypatch.setenv("TRITON_INTERPRET", "1")
    importlib.reload(triton_lora)
    yield triton_kernels.TritonKernels(CPU)
    monkeypatch.undo()
    importlib.reload(triton_lora)


@pytest.mark.optional
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_interpreted_triton_kernels_equal_merged_weights(interpreted_kernels, dtype, assert_close, shape):
    if dtype is torch.bfloat16:
        pytest.skip("Triton's interpreter multiplies the bits of bfloat16 numbers")
    check(interpreted_kernels, dtype, shape, assert_close)


@pytest.mark.optional
def test_triton_sees_other_adapters_in_a_slot(interpreted_kernels):
    problem = Problem(interpreted_kernels, QKV, torch.float32, slots=(1, 2), num_rows=20)
    ranges = [(0, 17, 1, 1.0), (17, 20, 2, 1.0)]
    before = problem.run(ranges, torch.float32)
    problem.layer.set(1, None)
    emptied = problem.run(ranges, torch.float32)
    assert torch.equal(emptied[:17], problem.base(torch.float32)[:17])
    assert torch.equal(emptied[17:], before[17:])
    problem.layer.set(1, interpreted_kernels.pack_adapter([problem.adapters[1]])[0])
    assert torch.equal(problem.run(ranges, torch.float32), before)


@pytest.mark.optional
def test_triton_compiles_the_kernels_for_a_gpu_that_is_not_here(monkeypatch, tmp_path):
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from vllm_mxext.native.kernels import triton_lora

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    sums = {"sums": "*fp32", "sums_stride": "i32"}
    lines = {"tiles": "*i32", "table": "*i64", "table_stride": "i32"}
    for kernel, signature, constants in (
        (
            triton_lora.shrink,
            {"x": "*bf16", "x_stride": "i32", "in_features": "i32", **sums, **lines},
            {"ROWS": 16, "RANKS": 16, "DEPTH": 128},
        ),
        (
            triton_lora.expand,
            {**sums, "out": "*bf16", "out_stride": "i32", **lines},
            {"ROWS": 16, "COLUMNS": 64, "RANKS": 16, "WEIGHT": triton.language.bfloat16},
        ),
    ):
        source = ASTSource(kernel, signature | dict.fromkeys(constants, "constexpr"), constants)
        compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32))
        assert "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32" in compiled.asm["ptx"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("is_deterministic", [False, True])
def test_kernels_of_a_gpu_equal_merged_weights(dtype, assert_close, shape, is_deterministic):
    device = torch.device("cuda")
    kernels = select_kernels(device, dtype, is_deterministic=is_deterministic)
    check(kernels, dtype, shape, assert_close, device)


def fast_kernels():
    library = best_library()
    return TorchKernels(CPU) if library is None else CompiledKernels(library, torch.bfloat16)


@counts_memory
@pytest.mark.parametrize("ranks", [16, 256], ids=["in small pages", "in large pages"])
@pytest.mark.parametrize("make", [fast_kernels, lambda: TorchKernels(CPU)], ids=["compiled", "torch"])
def test_the_system_has_the_memory_back_when_the_last_layer_is_gone(make, ranks):
    kernels = make()
    weights = random_adapter(Shape(2048, 2048, ((0, 2048, ranks),)), torch.bfloat16, 0)
    layers = [weights] * (32 if ranks > 16 else 48)
    kernels.pack_adapter([weights])  # what stays with the process is there before measuring
    gc.collect()
    before = anonymous_bytes()
    packed = kernels.pack_adapter(layers)
    size = sum(layer.num_bytes for layer in packed)
    slots = kernels.make_adapter_layer(2048, 2048, 2)
    slots.set(1, packed[-1])
    assert anonymous_bytes() - before >= 0.9 * size
    del packed
    assert anonymous_bytes() - before >= 0.9 * size
    slots.set(1, None)
    assert anonymous_bytes() - before <= 0.1 * size


def test_what_is_packed_stays_on_the_host_and_a_slot_has_a_copy_on_the_device():
    kernels = TorchKernels(torch.device("meta"))
    (packed,) = kernels.pack_adapter([random_adapter(NO_K, torch.float32, seed=0)])
    layer = kernels.make_adapter_layer(NO_K.in_features, NO_K.out_features, 2)
    layer.set(1, packed)
    kept = layer.adapters[1].weights
    for part, on_host in zip(kept.parts, packed.weights.parts, strict=True):
        assert (part.a.device.type, part.b.device.type) == ("meta", "meta")
        assert (on_host.a.device.type, on_host.b.device.type) == ("cpu", "cpu")
    assert (kept.gain.device.type, kept.bias.device.type) == ("meta", "meta")
    layer.set(1, None)
    assert layer.adapters[1] is None
