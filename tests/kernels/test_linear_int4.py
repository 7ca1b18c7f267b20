"""Compiled int4 layers against the PyTorch ones, which round the same way."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernels.test_batch_invariance import ROW_COUNTS
from tests.kernels.test_linear import random_problem
from tests.kernels.test_linear_int8 import relative_error
from vllm_mxext.config.int4_spec import Int4Spec
from vllm_mxext.native.kernels.compiled import CompiledKernels
from vllm_mxext.native.kernels.int4_weight import AWQ_COLUMNS, WORD_NIBBLES, Int4Weight
from vllm_mxext.native.kernels.library import load_library, runnable_isas

ACTIVATION_NOISE = 0.01
"""Relative error that int8 activations may bring to one product of normally distributed numbers."""

PACKINGS = ("inputs", "rows of inputs", "columns")
"""GPTQ, compressed-tensors, AWQ."""


def random_weight(
    out_features: int,
    in_features: int,
    group_size: int | None = 128,
    *,
    packing: str = "inputs",
    with_order: bool = False,
    seed: int = 0,
) -> Int4Weight:
    """Random bits; `columns` needs a multiple of eight columns."""
    generator = torch.Generator().manual_seed(seed)
    spec = Int4Spec("gptq", group_size)
    groups = spec.num_groups(in_features)
    input_words = -(-in_features // WORD_NIBBLES)
    shape = {
        "inputs": (input_words, out_features),
        "rows of inputs": (out_features, input_words),
        "columns": (in_features, out_features // WORD_NIBBLES),
    }[packing]
    words = torch.randint(-(2**31), 2**31, shape, generator=generator).int()
    return Int4Weight(
        words=words.t() if packing == "rows of inputs" else words,
        is_packed_by_inputs=packing != "columns",
        scales=(torch.rand(groups, out_features, generator=generator) * 0.01 + 0.001).half(),
        zeros=torch.randint(0, 16, (groups, out_features), generator=generator).to(torch.uint8),
        input_order=torch.randperm(in_features, generator=generator).int() if with_order else None,
        scale_depth=group_size or in_features,
        group_size=spec.packed_group_size(in_features),
        in_features=in_features,
        out_features=out_features,
    )


def exact_weight(weight: Int4Weight) -> torch.Tensor:
    """What the weight stands for, `[N, K]` float64, one word and nibble at a time."""
    result = torch.empty(weight.out_features, weight.in_features, dtype=torch.float64)
    for k in range(weight.in_features):
        source = k if weight.input_order is None else int(weight.input_order[k])
        for n in range(weight.out_features):
            if weight.is_packed_by_inputs:
                word, nibble = int(weight.words[source // WORD_NIBBLES, n]), source % WORD_NIBBLES
            else:
                word, nibble = int(weight.words[source, n // WORD_NIBBLES]), AWQ_COLUMNS.index(n % WORD_NIBBLES)
            group = k // weight.scale_depth
            value = (word >> (4 * nibble) & 15) - int(weight.zeros[group, n])
            result[n, source] = value * float(weight.scales[group, n])
    return result


@cache
def random_exact_weight(*shape: int | None, **options: str | bool) -> torch.Tensor:
    """What `random_weight` of the same arguments stands for; it takes long, and is the same for all kernels."""
    return exact_weight(random_weight(*shape, **options))


def product(kernels, x, weight, bias=None, out_dtype=torch.float32):
    out = torch.empty(x.shape[0], weight.out_features, dtype=out_dtype)
    kernels.linear(x, kernels.pack_int4(weight, bias), out)
    return out


def activations(rows, weight, dtype, seed=0):
    x, _, bias = random_problem(rows, weight.out_features, weight.in_features, dtype, with_bias=True, seed=seed)
    return x, bias


@pytest.mark.promise("KERN-1")
@settings(max_examples=20, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 20), st.integers(1, 18), st.integers(1, 300)),
    group_size=st.sampled_from([32, 64, 96, 128, None]),
    packing=st.sampled_from(PACKINGS),
    flags=st.tuples(st.booleans(), st.booleans()),
    seed=st.integers(0, 1000),
)
def test_an_int4_layer_of_any_shape_equals_its_reference(
    kernels, oracle, dtype, shape, group_size, packing, flags, seed
):
    rows, out_words, in_features = shape
    with_order, with_bias = flags
    out_features = out_words * WORD_NIBBLES - (0 if packing == "columns" else seed % WORD_NIBBLES)
    weight = random_weight(out_features, in_features, group_size, packing=packing, with_order=with_order, seed=seed)
    x, bias = activations(rows, weight, dtype, seed)
    bias = bias if with_bias else None
    absolute = oracle.pack_int4(weight).dequantise().abs().amax(1) * x.abs().float().sum(1, keepdim=True)
    error = product(kernels, x, weight, bias) - product(oracle, x, weight, bias)
    assert (error.abs() <= 2e-6 * (absolute + (0 if bias is None else bias.abs()))).all()
    rounded = product(kernels, x, weight, bias, dtype)
    assert torch.equal(rounded, product(kernels, x, weight, bias).to(dtype))


@pytest.mark.parametrize("group_size", [32, 128, None])
@pytest.mark.parametrize("with_order", [False, True])
def test_rows_of_an_int4_weight_can_be_read_back(kernels, oracle, dtype, group_size, with_order):
    weight = random_weight(70, 200, group_size, with_order=with_order)
    ids = torch.tensor([69, 0, 3, 64, 3], dtype=torch.int32)
    expected = random_exact_weight(70, 200, group_size, with_order=with_order)[ids.long()].float()
    for each in (kernels, oracle):
        rows = torch.empty(len(ids), 200)
        each.tied_embedding(ids, each.pack_int4(weight), rows)
        assert torch.equal(rows, expected)


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("with_order", [False, True])
def test_the_reference_dequantises_exactly(oracle, packing, with_order):
    weight = random_weight(40, 77, 32, packing=packing, with_order=with_order)
    expected = exact_weight(weight)
    stored = oracle.pack_int4(weight).dequantise()
    order = torch.arange(77) if weight.input_order is None else weight.input_order.long()
    assert torch.equal(stored.double(), expected[:, order])


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("group_size", [32, 64, 128, None])
def test_an_int4_layer_is_close_to_the_exact_product_of_its_weights(kernels, dtype, group_size, packing):
    weight = random_weight(64, 256, group_size, packing=packing, with_order=True)
    x, _ = activations(8, weight, dtype)
    expected = x.double() @ random_exact_weight(64, 256, group_size, packing=packing, with_order=True).T
    assert relative_error(product(kernels, x, weight), expected) < ACTIVATION_NOISE


@pytest.mark.parametrize("shape", [(3, 130, 9001), (200, 72, 4099), (97, 128, 64)])
def test_deep_layers_and_many_rows_equal_their_reference(kernels, oracle, dtype, shape):
    weight = random_weight(*shape[1:])
    x, bias = activations(shape[0], weight, dtype)
    assert relative_error(product(kernels, x, weight, bias), product(oracle, x, weight, bias)) < 2e-6


def test_zero_activations_give_zeros(kernels, dtype):
    weight = random_weight(40, 70)
    assert not product(kernels, torch.zeros(3, 70, dtype=dtype), weight).any()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_bad_activation_spoils_its_row_and_no_other(kernels, dtype, bad):
    weight = random_weight(40, 70)
    x, _ = activations(9, weight, dtype)
    clean = product(kernels, x, weight)
    x[4, 50] = bad
    result = product(kernels, x, weight)
    assert not result[4].isfinite().any()
    others = [row for row in range(9) if row != 4]
    assert torch.equal(result[others], clean[others])


@pytest.mark.promise("KERN-2")
@pytest.mark.parametrize("shape", [(130, 131), (70, 8500)], ids=str)
def test_int4_rows_do_not_depend_on_the_number_of_rows_or_their_place(kernels, dtype, shape):
    weight = random_weight(*shape)
    x, bias = activations(max(ROW_COUNTS), weight, dtype)
    layer = kernels.pack_int4(weight, bias)

    def run(rows):
        out = torch.empty(len(rows), shape[0])
        kernels.linear(rows, layer, out)
        return out

    alone = torch.cat([run(x[row : row + 1]) for row in range(len(x))])
    for count in ROW_COUNTS if shape[1] < 1000 else (2, 7, 97, 200):
        assert torch.equal(run(x[:count]), alone[:count]), count
        assert torch.equal(run(x[-count:]), alone[-count:]), count


def test_instruction_sets_with_fused_multiply_add_agree_to_the_bit(dtype):
    isas = [isa for isa in runnable_isas() if isa != "generic"]
    weight = random_weight(72, 300, 64)
    x, bias = activations(13, weight, dtype)
    results = [product(CompiledKernels(load_library(isa), dtype), x, weight, bias) for isa in isas]
    assert all(torch.equal(result, results[0]) for result in results)


@pytest.mark.parametrize(("group_size", "bytes_per_weight"), [(128, 0.5234375), (64, 0.546875), (32, 0.59375)])
def test_an_int4_layer_takes_half_a_byte_per_weight_and_three_per_scale(kernels, group_size, bytes_per_weight):
    layer = kernels.pack_int4(random_weight(256, 512, group_size))
    assert layer.num_bytes == 256 * 512 * bytes_per_weight


def test_a_layer_keeps_nothing_of_the_weight_it_was_packed_from(kernels, oracle, dtype):
    weight = random_weight(64, 96, 32, with_order=True)
    x, bias = activations(4, weight, dtype)
    for pack in (kernels, oracle):
        layer, out, again = pack.pack_int4(weight, bias), torch.empty(4, 64), torch.empty(4, 64)
        pack.linear(x, layer, out)
        assert weight.input_order is not None
        spoilt = [weight.words, weight.scales, weight.zeros, weight.input_order, bias]
        copies = [tensor.clone() for tensor in spoilt]
        for tensor in spoilt:
            tensor.zero_()
        pack.linear(x, layer, again)
        assert torch.equal(out, again)
        for tensor, copy in zip(spoilt, copies, strict=True):
            tensor.copy_(copy)
