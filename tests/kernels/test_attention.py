"""Compiled rotary embedding, KV write and paged attention against the plain PyTorch kernels."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_mxext.errors import ConfigError
from vllm_mxext.native.kernels.interface import AttentionGeometry, AttentionMetadata, KVCacheSpec

# heads, key/value heads, head size
HEADS = [
    (4, 2, 8),
    (4, 4, 16),
    (6, 1, 24),
    (4, 2, 32),
    (8, 2, 64),
    (5, 5, 80),
    (4, 2, 128),
    (2, 1, 256),
    (2, 1, 512),
    (71, 1, 8),
]

# Two roundings more than a single operation: of the rotated query and key, and (with bf16 dot products) of the softmax.
ATTENTION = 3.0


def whole(lengths):
    return [[(request, length) for request, length in enumerate(lengths)]]


@pytest.mark.promise("KERN-1")
@pytest.mark.parametrize("heads", HEADS, ids=lambda heads: "x".join(map(str, heads)))
def test_attention_equals_the_reference_for_every_head_layout(kernels, oracle, dtype, make_layer, assert_close, heads):
    layer = make_layer(heads, (1, 33, 150), dtype)
    steps = [[(0, 1), (1, 32), (2, 70)], [(2, 79), (1, 1)], [(2, 1)]]
    for actual, expected in zip(layer.run(kernels, steps), layer.run(oracle, steps), strict=True):
        assert_close(actual, expected, dtype, ATTENTION)


BATCHES = st.fixed_dictionaries(
    {
        "requests": st.lists(st.tuples(st.integers(1, 140), st.floats(0, 0.99)), min_size=1, max_size=4),
        "block_size": st.sampled_from((16, 32, 48, 64)),
        "window": st.sampled_from((None, 1, 2, 15, 64, 100)),
        "qk_norm": st.booleans(),
        "seed": st.integers(0, 100),
    }
)


@pytest.mark.promise("KERN-1")
@settings(max_examples=12, deadline=None)
@given(batch=BATCHES)
def test_mixed_batches_over_shuffled_blocks_equal_the_reference(
    kernels, oracle, dtype, make_layer, assert_close, batch
):
    """Each request is `(length, part of it that an earlier step computed)`."""
    requests = batch.pop("requests")
    layer = make_layer((4, 2, 16), [length for length, _ in requests], dtype, **batch)
    computed = [int(length * part) for length, part in requests]
    first = [(request, count) for request, count in enumerate(computed) if count]
    second = [(request, length - computed[request]) for request, (length, _) in enumerate(requests)]
    steps = [first, second] if first else [second]
    for actual, expected in zip(layer.run(kernels, steps), layer.run(oracle, steps), strict=True):
        assert_close(actual, expected, dtype, ATTENTION)


@pytest.mark.parametrize("window", [1, 5, 63, 64, 65, 300])
def test_decoding_far_past_a_sliding_window_equals_the_reference(
    kernels, oracle, dtype, make_layer, assert_close, window
):
    layer = make_layer((4, 2, 32), (410, 205), dtype, window=window)
    steps = [[(0, 400), (1, 200)], *([[(0, 1), (1, 1)]] * 5)]
    for actual, expected in zip(layer.run(kernels, steps), layer.run(oracle, steps), strict=True):
        assert_close(actual, expected, dtype, ATTENTION)


@pytest.mark.parametrize("window", [None, 20])
def test_garbage_in_unused_slots_does_not_reach_any_result(kernels, dtype, make_layer, window):
    layer = make_layer((4, 2, 16), (1, 17, 66, 139), dtype, window=window)
    steps = [[(1, 17), (3, 101), (2, 65)], [(0, 1), (3, 37), (2, 1)], [(3, 1)]]
    clean = layer.run(kernels, steps)
    for garbage in (torch.nan, torch.inf):
        dirty = layer.run(kernels, steps, cache=layer.new_cache(kernels, fill=garbage))
        for expected, actual in zip(clean, dirty, strict=True):
            assert torch.equal(expected, actual)


def test_blocks_that_left_the_sliding_window_are_never_read(kernels, dtype, make_layer):
    layer = make_layer((4, 2, 16), (200,), dtype, window=20)
    cache = layer.new_cache(kernels)
    layer.run(kernels, [[(0, 198)]], cache=cache)
    expected = layer.run(kernels, [[(0, 1)], [(0, 1)]], cache=cache, computed=[198])
    cache.key[0].fill_(torch.nan)
    cache.value[0].fill_(torch.nan)
    layer.tables[0, : (198 - 20) // 16] = 0
    actual = layer.run(kernels, [[(0, 1)], [(0, 1)]], cache=cache, computed=[198])
    assert torch.equal(expected[0], actual[0])


def test_a_nan_in_a_visible_key_is_passed_on(kernels, dtype, make_layer):
    layer = make_layer((2, 1, 16), (40,), dtype)
    layer.qkv[0][3, -32:-16] = torch.nan
    output = layer.run(kernels, whole((40,)))[0]
    assert torch.isfinite(output[:3]).all()
    assert torch.isnan(output[3:]).all()


def test_queries_are_rotated_in_place_like_the_reference(kernels, oracle, dtype, make_layer, assert_close):
    layer = make_layer((6, 2, 24), (50,), dtype)
    metadata = layer.metadata([(0, 0, 50)])
    rotated = []
    for implementation in (kernels, oracle):
        qkv = layer.qkv[0].clone()
        cache = layer.new_cache(implementation)
        implementation.rope_kv_write(qkv, *layer.norms, 1e-6, layer.cos_sin, layer.geometry, metadata, cache)
        rotated.append(qkv[:, : 6 * 24])
    assert_close(*rotated, dtype, 2.0)


def test_strided_rows_give_the_same_attention(kernels, dtype, make_layer):
    layer = make_layer((4, 2, 16), (70,), dtype)
    expected = layer.run(kernels, whole((70,)))[0]
    metadata = layer.metadata([(0, 0, 70)])
    cache = layer.new_cache(kernels)
    wide, out = torch.zeros(70, 150, dtype=dtype), torch.full((70, 80), 7.0).to(dtype)
    wide[:, 10:138] = layer.qkv[0]
    qkv = wide[:, 10:138]
    kernels.rope_kv_write(qkv, *layer.norms, 1e-6, layer.cos_sin, layer.geometry, metadata, cache)
    kernels.paged_attention(qkv, layer.geometry, metadata, cache, out[:, 8:72])
    assert torch.equal(out[:, 8:72], expected)
    assert (out[:, :8] == 7).all()
    assert (out[:, 72:] == 7).all()


def test_a_step_without_tokens_is_harmless(kernels, dtype, make_layer):
    layer = make_layer((4, 2, 16), (5,), dtype)
    cache = layer.new_cache(kernels)
    none = torch.empty(0, dtype=torch.int32)
    metadata = AttentionMetadata(
        none, none.long(), torch.empty(0, 1, dtype=torch.int32), torch.zeros(1, dtype=torch.int32), none, 0, 0
    )
    qkv, out = torch.empty(0, 128, dtype=dtype), torch.empty(0, 64, dtype=dtype)
    kernels.rope_kv_write(qkv, *layer.norms, 1e-6, layer.cos_sin, layer.geometry, metadata, cache)
    kernels.paged_attention(qkv, layer.geometry, metadata, cache, out)


def test_the_cache_takes_the_bytes_its_spec_states(kernels, dtype):
    spec = KVCacheSpec(3, 10, 32, 2, 24, dtype, torch.device("cpu"))
    layers = kernels.allocate_kv_cache(spec)
    used = sum(tensor.nbytes for layer in layers for tensor in (layer.key, layer.value))
    assert len(layers) == 3
    assert used == spec.block_bytes * spec.num_blocks
    assert not any(tensor.any() for layer in layers for tensor in (layer.key, layer.value))


@pytest.mark.parametrize(("block_size", "head_dim"), [(8, 64), (24, 64), (0, 64), (16, 12), (16, 0), (16, 520)])
def test_unsupported_cache_geometry_is_refused(kernels, dtype, block_size, head_dim):
    with pytest.raises(ConfigError, match="multiple of"):
        kernels.allocate_kv_cache(KVCacheSpec(1, 2, block_size, 1, head_dim, dtype, torch.device("cpu")))


def test_layers_of_different_geometry_may_alternate_within_a_step(kernels, oracle, dtype, make_layer, assert_close):
    layer = make_layer((4, 2, 16), (90,), dtype)
    windowed = make_layer((4, 2, 16), (90,), dtype, window=10)
    metadata = layer.metadata([(0, 0, 90)])
    results = []
    for implementation in (kernels, oracle):
        cache = layer.new_cache(implementation)
        qkv = layer.qkv[0].clone()
        implementation.rope_kv_write(qkv, None, None, 1e-6, layer.cos_sin, layer.geometry, metadata, cache)
        outs = []
        for geometry in (layer.geometry, windowed.geometry, layer.geometry):
            assert isinstance(geometry, AttentionGeometry)
            outs.append(torch.empty(90, 64, dtype=dtype))
            implementation.paged_attention(qkv, geometry, metadata, cache, outs[-1])
        assert torch.equal(outs[0], outs[2])
        results.append(outs)
    for actual, expected in zip(*results, strict=True):
        assert_close(actual, expected, dtype, ATTENTION)
