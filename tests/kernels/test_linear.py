"""Compiled linear layers against float64 products."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

# Sums of a long product in float32 lose more than half a unit in the last place.
FLOAT32_SUMS = 4.0


def reference(x, weight, bias):
    product = x.double() @ weight.double().T
    return product if bias is None else product + bias.double()


def random_problem(rows, out_features, in_features, dtype, with_bias, seed=0):
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, in_features, generator=random).to(dtype)
    weight = torch.randn(out_features, in_features, generator=random).to(dtype)
    bias = torch.randn(out_features, generator=random).to(dtype) if with_bias else None
    return x, weight, bias


@pytest.mark.promise("KERN-1")
@settings(max_examples=12, deadline=None)
@given(
    rows=st.integers(1, 40),
    out_features=st.integers(1, 200),
    in_features=st.integers(1, 200),
    with_bias=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_a_linear_layer_of_any_shape_equals_the_matrix_product(
    kernels, dtype, assert_close, rows, out_features, in_features, with_bias, seed
):
    x, weight, bias = random_problem(rows, out_features, in_features, dtype, with_bias, seed)
    layer = kernels.pack_linear(weight, bias)
    out = torch.empty(rows, out_features, dtype=dtype)
    kernels.linear(x, layer, out)
    summed = reference(x.abs(), weight.abs(), None if bias is None else bias.abs())
    assert_close(out, reference(x, weight, bias), dtype, FLOAT32_SUMS if dtype is torch.float32 else 1.0, summed)


@pytest.mark.parametrize("shape", [(3, 130, 9001), (200, 65, 4099), (97, 128, 64)])
def test_deep_layers_and_many_rows_equal_the_matrix_product(kernels, dtype, assert_close, shape):
    x, weight, bias = random_problem(*shape, dtype, with_bias=True)
    out = torch.empty(shape[0], shape[1], dtype=dtype)
    kernels.linear(x, kernels.pack_linear(weight, bias), out)
    assert_close(out, reference(x, weight, bias), dtype, FLOAT32_SUMS if dtype is torch.float32 else 1.0)


def test_float32_output_keeps_the_precision_of_the_sums(kernels, dtype, assert_close):
    x, weight, bias = random_problem(7, 100, 256, dtype, with_bias=True)
    out = torch.empty(7, 100)
    kernels.linear(x, kernels.pack_linear(weight, bias), out)
    assert_close(out, reference(x, weight, bias), torch.float32, FLOAT32_SUMS)


def test_rows_may_be_strided_and_nothing_beside_them_is_written(kernels, dtype, assert_close):
    x, weight, _ = random_problem(9, 70, 33, dtype, with_bias=False)
    wide_x = torch.full((9, 50), torch.nan).to(dtype)
    wide_x[:, 5:38] = x
    wide_out = torch.full((9, 91), 7.0).to(dtype)
    kernels.linear(wide_x[:, 5:38], kernels.pack_linear(weight), wide_out[:, 3:73])
    assert_close(wide_out[:, 3:73], reference(x, weight, None), dtype, FLOAT32_SUMS)
    assert (wide_out[:, :3] == 7).all()
    assert (wide_out[:, 73:] == 7).all()


def test_packing_accepts_transposed_and_sliced_weights(kernels, dtype):
    x, weight, _ = random_problem(2, 80, 48, dtype, with_bias=False)
    outputs = []
    wide = torch.zeros(80, 100, dtype=dtype)
    wide[:, 3:51] = weight
    for form in (weight, weight.T.contiguous().T, wide[:, 3:51]):
        out = torch.empty(2, 80, dtype=dtype)
        kernels.linear(x, kernels.pack_linear(form), out)
        outputs.append(out)
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])


def test_a_packed_layer_does_not_depend_on_the_tensors_it_was_made_from(kernels, dtype):
    x, weight, bias = random_problem(2, 65, 31, dtype, with_bias=True)
    layer = kernels.pack_linear(weight, bias)
    before, after = torch.empty(2, 65, dtype=dtype), torch.empty(2, 65, dtype=dtype)
    kernels.linear(x, layer, before)
    weight.fill_(torch.nan)
    bias.fill_(torch.nan)
    kernels.linear(x, layer, after)
    assert torch.equal(before, after)


def test_no_rows_are_harmless(kernels, dtype):
    layer = kernels.pack_linear(torch.ones(3, 5, dtype=dtype))
    kernels.linear(torch.empty(0, 5, dtype=dtype), layer, torch.empty(0, 3, dtype=dtype))
