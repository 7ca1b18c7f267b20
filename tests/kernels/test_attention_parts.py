"""Long contexts in parts and shared leading blocks: the same bits on any number of threads and in any company."""

from __future__ import annotations

from functools import cache

import pytest
import torch

by_cache = pytest.mark.parametrize("kv_cache_dtype", ["auto", "int8"])

# The reference sums in another order, and compiled int8 attention rounds the softmax's weights to 8 bits.
TOLERANCE = {"auto": 3.0, "int8": {torch.bfloat16: 2.0, torch.float16: 12.0, torch.float32: 4000.0}}


def tolerance(kv_cache_dtype, dtype):
    return TOLERANCE["auto"] if kv_cache_dtype == "auto" else TOLERANCE["int8"][dtype]


def one_by_one(length):
    """Steps: a prompt, and two tokens behind it."""
    return [[(0, length)], [(0, 1)], [(0, 1)]]


@pytest.fixture(scope="session")  # tests of one module do not run one after the other, but by instruction set
def long_reference(oracle, make_layer):
    """The last two rows by the plain kernels, which take long, for all instruction sets together."""

    @cache
    def rows(heads, length, dtype, kv_cache_dtype):
        layer = make_layer(heads, (length + 2,), dtype, kv_cache_dtype=kv_cache_dtype)
        return layer.run(oracle, one_by_one(length))[0][-2:]

    return rows


@pytest.mark.promise("KERN-1", "KERN-2")
@by_cache
@pytest.mark.parametrize(
    ("heads", "length"), [((4, 1, 16), 1023), ((3, 3, 24), 1024), ((4, 1, 16), 2047), ((4, 2, 8), 2300)], ids=str
)
def test_a_long_request_gives_the_same_bits_on_any_number_of_threads(
    kernels, dtype, make_layer, long_reference, assert_close, kv_cache_dtype, heads, length
):
    layer = make_layer(heads, (length + 2,), dtype, kv_cache_dtype=kv_cache_dtype)
    steps = one_by_one(length)
    expected = layer.run(kernels, steps)[0]
    reference = long_reference(heads, length, dtype, kv_cache_dtype)
    assert_close(expected[-2:], reference, dtype, tolerance(kv_cache_dtype, dtype))
    for threads in (2, 5):
        torch.set_num_threads(threads)
        assert torch.equal(layer.run(kernels, steps)[0], expected)
    assert torch.equal(layer.run(kernels, [[(0, length // 2)], [(0, length - length // 2 + 2)]])[0], expected)


@by_cache
@pytest.mark.parametrize("window", [100, 1500])
def test_a_long_request_behind_a_window_gives_the_same_bits_on_any_number_of_threads(
    kernels, dtype, make_layer, kv_cache_dtype, window
):
    layer = make_layer((4, 1, 16), (3000,), dtype, window=window, kv_cache_dtype=kv_cache_dtype)
    steps = [[(0, 2990)], *([[(0, 1)]] * 10)]
    expected = layer.run(kernels, [[(0, 3000)]])[0]
    for threads in (1, 4):
        torch.set_num_threads(threads)
        assert torch.equal(layer.run(kernels, steps)[0], expected)


def share_blocks(layer, lengths):
    """Makes every request begin with the first `lengths[request]` tokens of request 0, in its blocks."""
    for request, length in enumerate(lengths):
        assert length % layer.block_size == 0
        layer.qkv[request][:length] = layer.qkv[0][:length]
        layer.tables[request, : length // layer.block_size] = layer.tables[0, : length // layer.block_size]


@pytest.mark.promise("KERN-2")
@by_cache
@pytest.mark.parametrize(
    ("heads", "shared", "queries"),
    [
        ((4, 1, 16), (0, 160, 160, 160), 1),
        ((4, 1, 16), (0, 1024, 1024, 1024), 3),
        ((2, 2, 24), (0, 1200, 1200, 1136), 1),
        ((24, 1, 8), (0, 1200, 160, 16), 1),
        ((4, 2, 8), (0, 0, 96, 2080), 2),
    ],
    ids=str,
)
def test_requests_that_share_blocks_give_the_same_bits_as_alone(
    kernels, dtype, make_layer, kv_cache_dtype, heads, shared, queries
):
    lengths = [max(shared) + 70 + 30 * request for request in range(4)]
    layer = make_layer(heads, lengths, dtype, kv_cache_dtype=kv_cache_dtype)
    share_blocks(layer, shared)
    before = [length - queries for length in lengths]
    cache = layer.new_cache(kernels)
    layer.run(kernels, [[(request, count)] for request, count in enumerate(before)], cache)
    alone = layer.run(kernels, [[(request, queries)] for request in range(4)], cache, before)
    for threads in (1, 3):
        torch.set_num_threads(threads)
        together = layer.run(kernels, [[(request, queries) for request in (2, 0, 3, 1)]], cache, before)
        assert all(torch.equal(one, other) for one, other in zip(alone, together, strict=True))


@by_cache
def test_many_requests_that_share_blocks_fill_several_tiles(kernels, dtype, make_layer, kv_cache_dtype):
    num_requests, shared = 30, 256
    lengths = [shared + 1 + 7 * request for request in range(num_requests)]
    layer = make_layer((10, 2, 16), lengths, dtype, kv_cache_dtype=kv_cache_dtype)
    share_blocks(layer, [shared] * num_requests)
    before = [length - 1 for length in lengths]
    cache = layer.new_cache(kernels)
    layer.run(kernels, [list(enumerate(before))], cache)
    together = layer.run(kernels, [[(request, 1) for request in range(num_requests)]], cache, before)
    alone = layer.run(kernels, [[(request, 1)] for request in range(num_requests)], cache, before)
    assert all(torch.equal(one, other) for one, other in zip(alone, together, strict=True))


@pytest.mark.promise("KERN-1")
@by_cache
@pytest.mark.parametrize("soft_cap", [2.0, 50.0])
def test_soft_caps_equal_the_reference(kernels, oracle, dtype, make_layer, assert_close, kv_cache_dtype, soft_cap):
    layer = make_layer((4, 2, 32), (1, 90, 150), dtype, soft_cap=soft_cap, kv_cache_dtype=kv_cache_dtype)
    uncapped = make_layer((4, 2, 32), (1, 90, 150), dtype, kv_cache_dtype=kv_cache_dtype)
    steps = [[(0, 1), (1, 32), (2, 70)], [(2, 79), (1, 58)], [(2, 1)]]
    results = layer.run(kernels, steps)
    for actual, expected in zip(results, layer.run(oracle, steps), strict=True):
        assert_close(actual, expected, dtype, tolerance(kv_cache_dtype, dtype))
    if soft_cap == 2.0:
        assert not torch.allclose(results[2], uncapped.run(kernels, steps)[2], rtol=0.02)
