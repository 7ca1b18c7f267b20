"""Compiled norms, activation and embedding against plain PyTorch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

EPS = 1e-6
SHAPES = given(rows=st.integers(0, 20), width=st.integers(1, 150), seed=st.integers(0, 1000))
FEW = settings(max_examples=10, deadline=None)


def random_rows(rows, width, dtype, seed, count):
    random = torch.Generator().manual_seed(seed)
    return [torch.randn(rows, width, generator=random).to(dtype) for _ in range(count)]


@pytest.mark.promise("KERN-1")
@FEW
@SHAPES
def test_rms_norm_equals_the_reference_for_any_width(kernels, oracle, dtype, assert_close, rows, width, seed):
    (x,) = random_rows(rows, width, torch.float32, seed, 1)
    weight = random_rows(1, width, dtype, seed + 1, 1)[0][0]
    out, expected = torch.empty(rows, width, dtype=dtype), torch.empty(rows, width, dtype=dtype)
    kernels.rms_norm(x, weight, EPS, out)
    oracle.rms_norm(x, weight, EPS, expected)
    assert_close(out, expected, dtype)


@FEW
@SHAPES
def test_add_rms_norm_updates_the_residual_and_normalises_it(kernels, oracle, dtype, assert_close, rows, width, seed):
    (x,), (residual,) = random_rows(rows, width, dtype, seed, 1), random_rows(rows, width, torch.float32, seed + 2, 1)
    weight = random_rows(1, width, dtype, seed + 1, 1)[0][0]
    expected_residual = residual.clone()
    out, expected = torch.empty_like(x), torch.empty_like(x)
    kernels.add_rms_norm(x, residual, weight, EPS, out)
    oracle.add_rms_norm(x, expected_residual, weight, EPS, expected)
    assert torch.equal(residual, expected_residual)
    assert_close(out, expected, dtype)


@pytest.mark.promise("KERN-1")
@FEW
@SHAPES
def test_silu_mul_equals_the_reference_for_any_width(kernels, oracle, dtype, assert_close, rows, width, seed):
    (gate_up,) = random_rows(rows, 2 * width, dtype, seed, 1)
    out, expected = torch.empty(rows, width, dtype=dtype), torch.empty(rows, width, dtype=dtype)
    kernels.silu_mul(gate_up * 8, out)
    oracle.silu_mul(gate_up * 8, expected)
    assert_close(out, expected, dtype)


def test_silu_mul_saturates_for_large_gates_and_passes_nan_on(kernels, dtype):
    gate = torch.tensor([[-60000.0, -100.0, -88.0, 0.0, 88.0, 100.0, 60000.0, torch.nan]]).to(dtype)
    gate_up = torch.cat((gate, torch.ones_like(gate)), dim=1)
    out = torch.empty_like(gate)
    kernels.silu_mul(gate_up, out)
    torch.testing.assert_close(out, torch.nn.functional.silu(gate), equal_nan=True)


@pytest.mark.parametrize("rows", [0, 1, 70])
@pytest.mark.parametrize("widens", [False, True])
def test_embedding_copies_the_rows_it_is_asked_for(kernels, dtype, rows, widens):
    (weight,) = random_rows(50, 37, dtype, 0, 1)
    token_ids = torch.randint(0, 50, (rows,), dtype=torch.int32)
    out = torch.empty(rows, 37, dtype=torch.float32 if widens else dtype)
    kernels.embedding(token_ids, weight, out)
    assert torch.equal(out, weight[token_ids.long()].to(out.dtype))


def test_rows_of_the_residual_stream_are_gathered_in_any_model(kernels):
    (residual,) = random_rows(50, 37, torch.float32, 0, 1)
    out = torch.empty(2, 37)
    kernels.embedding(torch.tensor([49, 3], dtype=torch.int32), residual, out)
    assert torch.equal(out, residual[[49, 3]])


def test_row_operations_accept_strided_rows(kernels, oracle, dtype, assert_close):
    (wide,), (residual,) = random_rows(12, 96, dtype, 3, 1), random_rows(12, 96, torch.float32, 5, 1)
    weight = random_rows(1, 40, dtype, 4, 1)[0][0]
    x = wide[:, 8:48]
    out, expected = torch.zeros(12, 64, dtype=dtype), torch.zeros(12, 64, dtype=dtype)
    expected_residual = residual.clone()
    kernels.add_rms_norm(x, residual[:, 3:43], weight, EPS, out[:, 5:45])
    oracle.add_rms_norm(x, expected_residual[:, 3:43], weight, EPS, expected[:, 5:45])
    assert_close(out, expected, dtype)
    assert torch.equal(residual, expected_residual)
    kernels.silu_mul(wide[:, 4:84], out[:, 5:45])
    oracle.silu_mul(wide[:, 4:84], expected[:, 5:45])
    assert_close(out, expected, dtype)


@pytest.mark.promise("KERN-1")
@settings(max_examples=15, deadline=None)
@given(
    vocab_size=st.integers(1, 200),
    hidden=st.integers(1, 150),
    quantization=st.sampled_from(("none", "int8")),
    data=st.data(),
)
def test_a_tied_embedding_gives_the_rows_of_the_packed_head(
    kernels, oracle, dtype, vocab_size, hidden, quantization, data
):
    weight = torch.randn(vocab_size, hidden, generator=torch.Generator().manual_seed(4)).to(dtype)
    ids = torch.tensor(data.draw(st.lists(st.integers(0, vocab_size - 1), max_size=9)), dtype=torch.int32)
    wide = torch.full((len(ids), hidden + 3), 7.0)
    kernels.tied_embedding(ids, kernels.pack_linear(weight, None, quantization), wide[:, 1:-2])
    expected = torch.empty(len(ids), hidden)
    oracle.tied_embedding(ids, oracle.pack_linear(weight, None, quantization), expected)
    assert torch.equal(wide[:, 1:-2], expected)
    assert (wide[:, :1] == 7).all()
    assert (wide[:, -2:] == 7).all()
    if quantization == "none":
        assert torch.equal(expected, weight[ids].float())
