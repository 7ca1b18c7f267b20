"""Compiled KV write and attention over an int8 cache against the plain PyTorch kernels."""

from __future__ import annotations

import pytest
import torch

from tests.kernels.test_attention import HEADS
from vllm_mxext.native.kernels.interface import KVCacheSpec

STEPS = [[(0, 1), (1, 32), (2, 70)], [(2, 79), (1, 1)], [(2, 1)]]

# The softmax's weights are rounded to 8 bits by the compiled kernels only; and where a rotated key is rounded
# differently, its byte may move by one.
WEIGHTS_ERROR = 8e-3


@pytest.fixture
def layer_of(make_layer, dtype):
    def make(heads, lengths, **options):
        return make_layer(heads, lengths, dtype, kv_cache_dtype="int8", **options)

    return make


def relative_error(actual, expected):
    assert torch.isfinite(actual).all()
    return float((actual.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.promise("KERN-1", "KV8-1")
@pytest.mark.parametrize("heads", [*HEADS, (4, 2, 40), (3, 1, 96)], ids=lambda heads: "x".join(map(str, heads)))
@pytest.mark.parametrize("window", [None, 20])
def test_attention_equals_the_reference_for_every_head_layout(kernels, oracle, layer_of, heads, window):
    layer = layer_of(heads, (1, 33, 150), window=window)
    for actual, expected in zip(layer.run(kernels, STEPS), layer.run(oracle, STEPS), strict=True):
        assert relative_error(actual, expected) < WEIGHTS_ERROR


@pytest.mark.promise("KV8-1")
@pytest.mark.parametrize("block_size", [16, 48])
def test_attention_is_close_to_that_over_an_unquantised_cache(kernels, dtype, make_layer, block_size):
    """Standard normal keys, values and queries: 0.6% come from keys and queries each, 0.6% from values."""
    exact, quantised = (
        make_layer((4, 2, 64), (300, 17), dtype, block_size=block_size, qk_norm=False, kv_cache_dtype=kind)
        for kind in ("auto", "int8")
    )
    steps = [[(0, 250), (1, 16)], [(0, 50), (1, 1)]]
    for actual, expected in zip(quantised.run(kernels, steps), exact.run(kernels, steps), strict=True):
        assert 1e-3 < relative_error(actual, expected) < 2e-2


def test_one_visible_key_gives_its_value_to_the_byte(kernels, dtype, layer_of):
    layer = layer_of((2, 1, 16), (1,))
    output = layer.run(kernels, [[(0, 1)]])[0]
    value = layer.qkv[0][:, -16:].float()
    scale = value.abs().max() / 127
    expected = (value / scale).round() * scale
    assert relative_error(output[:, :16], expected) < (5e-3 if dtype is torch.bfloat16 else 1e-3)


@pytest.mark.parametrize("window", [None, 20])
def test_garbage_in_unused_slots_does_not_reach_any_result(kernels, layer_of, window):
    layer = layer_of((4, 2, 16), (1, 17, 66, 139), window=window)
    steps = [[(1, 17), (3, 101), (2, 65)], [(0, 1), (3, 37), (2, 1)], [(3, 1)]]
    clean = layer.run(kernels, steps)
    dirty = layer.run(kernels, steps, cache=layer.new_cache(kernels, fill=torch.nan))
    for expected, actual in zip(clean, dirty, strict=True):
        assert torch.isfinite(actual).all()
        assert torch.equal(expected, actual)


@pytest.mark.parametrize("column", [-32, -16], ids=["key", "value"])
def test_a_nan_is_passed_on_to_those_who_see_it(kernels, layer_of, column):
    layer = layer_of((2, 1, 16), (40,))
    layer.qkv[0][3, column : column + 16 or None] = torch.nan
    output = layer.run(kernels, [[(0, 40)]])[0]
    assert torch.isfinite(output[:3]).all()
    assert torch.isnan(output[3:]).all()


def test_a_zero_key_and_value_are_kept(kernels, layer_of):
    layer = layer_of((2, 1, 16), (20,), qk_norm=False)
    layer.qkv[0][:, -32:] = 0
    output = layer.run(kernels, [[(0, 20)]])[0]
    assert (output == 0).all()


@pytest.mark.promise("KERN-2")
@pytest.mark.parametrize("heads", [(6, 2, 24), (4, 1, 64), (60, 1, 8)], ids=str)
@pytest.mark.parametrize("window", [None, 9, 80])
def test_results_do_not_depend_on_chunking_batch_or_block_placement(kernels, layer_of, heads, window):
    layer = layer_of(heads, (150, 71), window=window)
    alone = layer.run(kernels, [[(0, 150)], [(1, 71)]])
    layer.tables.copy_(layer.tables.flatten().roll(7).view_as(layer.tables))
    for steps in (
        [[(0, 150), (1, 71)]],
        [[(0, 37), (1, 1)], [(1, 70), (0, 60)], [(0, 1)], [(0, 52)]],
        [*([[(0, 1), (1, 1)]] * 71), *([[(0, 1)]] * 79)],
    ):
        for expected, actual in zip(alone, layer.run(kernels, steps), strict=True):
            assert torch.equal(expected, actual)


@pytest.mark.parametrize("threads", [2, 3])
def test_results_do_not_depend_on_the_number_of_threads(kernels, layer_of, threads):
    layer = layer_of((4, 2, 32), (400, 60))
    steps = [[(0, 370), (1, 59)], [(0, 30), (1, 1)]]
    expected = layer.run(kernels, steps)
    torch.set_num_threads(threads)
    for one, many in zip(expected, layer.run(kernels, steps), strict=True):
        assert torch.equal(one, many)


@pytest.mark.parametrize("head_dim", [24, 64, 96, 128])
def test_the_cache_takes_the_bytes_its_spec_states(kernels, oracle, dtype, head_dim):
    spec = KVCacheSpec(3, 10, 32, 2, head_dim, dtype, torch.device("cpu"), "int8")
    for implementation in (kernels, oracle):
        layers = implementation.allocate_kv_cache(spec)
        assert sum(layer.num_bytes for layer in layers) == spec.block_bytes * spec.num_blocks
