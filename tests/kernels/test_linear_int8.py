"""Compiled int8 layers against the PyTorch ones, which round the same way."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernels.test_batch_invariance import ROW_COUNTS
from tests.kernels.test_linear import random_problem
from vllm_mxext.native.kernels.compiled import CompiledKernels
from vllm_mxext.native.kernels.library import load_library, runnable_isas

ROUNDING_NOISE = 0.02
"""Relative error that int8 may bring to one product of normally distributed numbers."""


def product(kernels, x, weight, bias=None, out_dtype=torch.float32):
    out = torch.empty(x.shape[0], weight.shape[0], dtype=out_dtype)
    kernels.linear(x, kernels.pack_linear(weight, bias, "int8"), out)
    return out


def relative_error(result, expected):
    return float((result.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.promise("KERN-1")
@settings(max_examples=20, deadline=None)
@given(
    rows=st.integers(1, 20),
    out_features=st.integers(1, 150),
    in_features=st.integers(1, 200),
    with_bias=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_an_int8_layer_of_any_shape_equals_its_reference(
    kernels, oracle, dtype, rows, out_features, in_features, with_bias, seed
):
    x, weight, bias = random_problem(rows, out_features, in_features, dtype, with_bias, seed)
    summed = x.abs().float() @ weight.abs().float().T + (0 if bias is None else bias.abs())
    error = product(kernels, x, weight, bias) - product(oracle, x, weight, bias)
    assert (error.abs() <= 2e-6 * summed).all()
    rounded = product(kernels, x, weight, bias, dtype)
    assert torch.equal(rounded, product(kernels, x, weight, bias).to(dtype))


@pytest.mark.parametrize("shape", [(3, 130, 9001), (200, 65, 4099), (97, 128, 64)])
def test_deep_layers_and_many_rows_equal_their_reference(kernels, oracle, dtype, shape):
    x, weight, bias = random_problem(*shape, dtype, with_bias=True)
    assert relative_error(product(kernels, x, weight, bias), product(oracle, x, weight, bias)) < 2e-6


def test_an_int8_layer_is_close_to_the_exact_product(kernels, dtype):
    x, weight, _ = random_problem(8, 256, 512, dtype, with_bias=False)
    assert relative_error(product(kernels, x, weight), x.double() @ weight.double().T) < ROUNDING_NOISE


def test_numbers_of_any_size_keep_their_relative_precision(kernels, dtype):
    x, weight, _ = random_problem(4, 64, 256, torch.float32, with_bias=False)
    sizes = torch.tensor([1e-3, 1.0, 30.0, 1e3]).repeat_interleave(64)
    x, weight = (x * sizes).to(dtype), (weight / sizes).to(dtype)
    assert relative_error(product(kernels, x, weight), x.double() @ weight.double().T) < ROUNDING_NOISE


def test_zeros_give_zeros(kernels, dtype):
    x, weight, _ = random_problem(3, 40, 70, dtype, with_bias=False)
    assert not product(kernels, torch.zeros_like(x), weight).any()
    assert not product(kernels, x, torch.zeros_like(weight)).any()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_bad_activation_spoils_its_row_and_no_other(kernels, dtype, bad):
    x, weight, _ = random_problem(9, 40, 70, dtype, with_bias=False)
    clean = product(kernels, x, weight)
    x[4, 50] = bad
    result = product(kernels, x, weight)
    assert not result[4].isfinite().any()
    others = [row for row in range(9) if row != 4]
    assert torch.equal(result[others], clean[others])


@pytest.mark.promise("KERN-2")
@pytest.mark.parametrize("shape", [(130, 131), (70, 8500)], ids=str)
def test_int8_rows_do_not_depend_on_the_number_of_rows_or_their_place(kernels, dtype, shape):
    x, weight, bias = random_problem(max(ROW_COUNTS), *shape, dtype, with_bias=True)
    layer = kernels.pack_linear(weight, bias, "int8")

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
    x, weight, bias = random_problem(13, 70, 300, dtype, with_bias=True)
    results = [product(CompiledKernels(load_library(isa), dtype), x, weight, bias) for isa in isas]
    assert all(torch.equal(result, results[0]) for result in results)


def test_an_int8_layer_takes_about_half_the_memory_of_bfloat16(kernels):
    layer = kernels.pack_linear(torch.randn(256, 512), None, "int8")
    assert layer.num_bytes == 256 * 512 * 34 // 32
