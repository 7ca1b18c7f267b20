"""A row's result is bit-identical whatever else is in the batch: the guarantee of the compiled kernels."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_mxext.native.kernels.library import load_library

ROW_COUNTS = (*range(1, 71), 200)
SHAPES = [(130, 131), (65, 64)]  # out_features, in_features


def linear(kernels, x, layer, out_dtype):
    out = torch.empty(x.shape[0], layer.out_features, dtype=out_dtype)
    kernels.linear(x, layer, out)
    return out


@pytest.mark.promise("KERN-2")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_linear_rows_do_not_depend_on_the_number_of_rows_or_their_place(kernels, dtype, shape):
    random = torch.Generator().manual_seed(1)
    out_features, in_features = shape
    weight, bias = (torch.randn(*shape, generator=random) for shape in ((out_features, in_features), (out_features,)))
    layer = kernels.pack_linear(weight, bias)
    x = torch.randn(max(ROW_COUNTS), in_features, generator=random).to(dtype)
    for out_dtype in {dtype, torch.float32}:
        alone = torch.cat([linear(kernels, x[row : row + 1], layer, out_dtype) for row in range(len(x))])
        for count in ROW_COUNTS:
            assert torch.equal(linear(kernels, x[:count], layer, out_dtype), alone[:count]), count
            assert torch.equal(linear(kernels, x[-count:], layer, out_dtype), alone[-count:]), count


def test_linear_rows_of_a_deep_layer_do_not_depend_on_the_number_of_rows(kernels, dtype):
    random = torch.Generator().manual_seed(2)
    layer = kernels.pack_linear(torch.randn(70, 8500, generator=random))
    x = torch.randn(200, 8500, generator=random).to(dtype)
    everything = linear(kernels, x, layer, dtype)
    for first, count in ((0, 1), (199, 1), (3, 2), (5, 6), (11, 7), (20, 13), (40, 97)):
        rows = slice(first, first + count)
        assert torch.equal(linear(kernels, x[rows], layer, dtype), everything[rows]), count


@pytest.mark.promise("KERN-2")
def test_row_operations_do_not_depend_on_the_batch(kernels, dtype):
    random = torch.Generator().manual_seed(3)
    x, residual = torch.randn(40, 90, generator=random).to(dtype), torch.randn(40, 90, generator=random)
    weight = torch.randn(90, generator=random).to(dtype)

    def run(rows):
        sums, out, gated = residual[rows].clone(), torch.empty_like(x[rows]), torch.empty_like(x[rows][:, :45])
        kernels.add_rms_norm(x[rows], sums, weight, 1e-6, out)
        kernels.silu_mul(x[rows], gated)
        return torch.cat((sums, out, gated), dim=1)

    together = run(slice(0, 40))
    assert torch.equal(together, torch.cat([run(slice(row, row + 1)) for row in range(40)]))


def cut(length, parts):
    """Cuts `length` tokens into chunks of the sizes in `parts`, repeated."""
    chunks = []
    while length:
        chunks.append(min(length, parts[len(chunks) % len(parts)]))
        length -= chunks[-1]
    return chunks


def interleave(chunks_by_request, offset):
    """One step after another with a chunk of every request that has one; request r starts `offset * r` steps late."""
    steps = []
    for request, chunks in enumerate(chunks_by_request):
        for index, count in enumerate(chunks):
            while len(steps) <= index + offset * request:
                steps.append([])
            steps[index + offset * request].append((request, count))
    return [step for step in steps if step]


@pytest.mark.promise("KERN-2")
@settings(max_examples=8, deadline=None)
@given(
    cuts=st.lists(st.lists(st.integers(1, 90), min_size=1, max_size=3), min_size=3, max_size=3),
    offset=st.integers(0, 2),
    window=st.sampled_from((None, 9, 64, 80)),
    heads=st.sampled_from(((4, 2, 16), (6, 2, 24), (4, 1, 64), (60, 1, 8))),
    seed=st.integers(0, 50),
)
def test_attention_does_not_depend_on_batching_chunking_or_block_placement(
    kernels, dtype, make_layer, cuts, offset, window, heads, seed
):
    lengths = (150, 71, 20)
    layer = make_layer(heads, lengths, dtype, window=window, seed=seed)
    alone = layer.run(kernels, [[(request, length)] for request, length in enumerate(lengths)])
    layer.tables.copy_(layer.tables.flatten().roll(7).view_as(layer.tables))
    steps = interleave([cut(length, parts) for length, parts in zip(lengths, cuts, strict=True)], offset)
    for expected, actual in zip(alone, layer.run(kernels, steps), strict=True):
        assert torch.equal(expected, actual)


def test_attention_token_by_token_equals_one_prefill(kernels, dtype, make_layer):
    layer = make_layer((6, 2, 16), (140,), dtype)
    at_once = layer.run(kernels, [[(0, 140)]])[0]
    one_by_one = layer.run(kernels, [[(0, 1)]] * 140)[0]
    assert torch.equal(at_once, one_by_one)


def test_attention_does_not_depend_on_the_block_size(kernels, dtype, make_layer):
    layers = [make_layer((4, 2, 32), (100, 150), dtype, block_size=size) for size in (16, 32, 64)]
    first, *others = (layer.run(kernels, [[(0, 100), (1, 150)]]) for layer in layers)
    for output in others:
        assert all(torch.equal(expected, actual) for expected, actual in zip(first, output, strict=True))


@pytest.mark.parametrize("threads", [2, 3, 4])
def test_results_do_not_depend_on_the_number_of_threads(kernels, dtype, make_layer, threads):
    random = torch.Generator().manual_seed(5)
    weight, x = torch.randn(300, 90, generator=random), torch.randn(60, 90, generator=random).to(dtype)
    layer = make_layer((4, 2, 16), (130, 60), dtype)
    steps = [[(0, 100), (1, 59)], [(0, 30), (1, 1)]]

    def run():
        packed = kernels.pack_linear(weight)
        normalised = torch.empty_like(x)
        kernels.rms_norm(x.float(), torch.ones(90, dtype=dtype), 1e-6, normalised)
        return [packed.data, linear(kernels, x, packed, dtype), normalised, *layer.run(kernels, steps)]

    expected = run()
    load_library(kernels.name).set_num_threads(threads)
    try:
        for one, many in zip(expected, run(), strict=True):
            assert torch.equal(one, many)
    finally:
        load_library(kernels.name).set_num_threads(1)
