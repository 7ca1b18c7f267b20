"""The plain PyTorch kernels, which are the oracle of the others, against independent formulations."""

from __future__ import annotations

import pytest
import torch

from vllm_mxext.errors import ConfigError
from vllm_mxext.native.kernels.interface import AttentionGeometry, AttentionMetadata, KVCacheSpec
from vllm_mxext.native.kernels.torch_kernels import TorchKernels

CPU = torch.device("cpu")
HEADS, KV_HEADS, DIM, BLOCK = 4, 2, 16, 16


@pytest.fixture
def kernels():
    return TorchKernels(CPU)


def geometry(window=None):
    return AttentionGeometry(HEADS, KV_HEADS, DIM, DIM**-0.5, window)


def write(kernels, qkv, cos_sin, blocks, first=0, norms=(None, None), cache=None):
    """Writes one request's tokens from position `first` on into `blocks`; returns metadata and cache."""
    positions = torch.arange(first, first + len(qkv))
    table = torch.tensor([blocks], dtype=torch.int32)
    metadata = AttentionMetadata(
        positions=positions.int(),
        slot_mapping=table[0, positions // BLOCK].long() * BLOCK + positions % BLOCK,
        block_tables=table,
        query_start_loc=torch.tensor([0, len(qkv)], dtype=torch.int32),
        seq_lens=torch.tensor([first + len(qkv)], dtype=torch.int32),
        max_query_len=len(qkv),
        max_seq_len=first + len(qkv),
    )
    if cache is None:
        cache = kernels.allocate_kv_cache(KVCacheSpec(1, 8, BLOCK, KV_HEADS, DIM, qkv.dtype, CPU))[0]
    kernels.rope_kv_write(qkv, *norms, 1e-6, cos_sin, geometry(), metadata, cache)
    return metadata, cache


def random_inputs(length):
    random = torch.Generator().manual_seed(0)
    angles = torch.rand(length, DIM // 2, generator=random) * 6.3
    qkv = torch.randn(length, (HEADS + 2 * KV_HEADS) * DIM, generator=random)
    return qkv, torch.cat((angles.cos(), angles.sin()), 1), angles


@pytest.mark.parametrize("window", [None, 1, 7])
def test_attention_equals_scaled_dot_product_attention(kernels, window):
    length = 37
    qkv, cos_sin, _ = random_inputs(length)
    metadata, cache = write(kernels, qkv, cos_sin, [5, 2, 7])
    out = torch.empty(length, HEADS * DIM)
    kernels.paged_attention(qkv, geometry(window), metadata, cache, out)
    slots = metadata.slot_mapping
    query = qkv[:, : HEADS * DIM].view(length, HEADS, DIM).transpose(0, 1)
    key, value = (
        tensor.view(-1, KV_HEADS, DIM)[slots].repeat_interleave(HEADS // KV_HEADS, 1).transpose(0, 1)
        for tensor in (cache.key, cache.value)
    )
    distance = torch.arange(length)[:, None] - torch.arange(length)
    mask = (distance >= 0) & (distance < (window or length))
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, mask)
    torch.testing.assert_close(out, expected.transpose(0, 1).flatten(1))


def test_a_decode_step_equals_the_last_row_of_a_prefill(kernels):
    qkv, cos_sin, _ = random_inputs(37)
    metadata, cache = write(kernels, qkv.clone(), cos_sin, [5, 2, 7])
    rotated = qkv.clone()
    write(kernels, rotated, cos_sin, [5, 2, 7], cache=cache)
    whole, last = torch.empty(37, HEADS * DIM), torch.empty(1, HEADS * DIM)
    kernels.paged_attention(rotated, geometry(), metadata, cache, whole)
    one = qkv[36:].clone()
    decode, _ = write(kernels, one, cos_sin, [5, 2, 7], first=36, cache=cache)
    kernels.paged_attention(one, geometry(), decode, cache, last)
    torch.testing.assert_close(last, whole[36:])


def test_rotation_multiplies_by_a_complex_phase(kernels):
    qkv, cos_sin, angles = random_inputs(20)
    before = qkv[:, :DIM].clone()
    write(kernels, qkv, cos_sin, [1, 2])
    rotated = torch.complex(before[:, : DIM // 2], before[:, DIM // 2 :]) * torch.exp(1j * angles)
    torch.testing.assert_close(qkv[:, :DIM], torch.cat((rotated.real, rotated.imag), 1))


def test_the_norm_of_keys_is_taken_per_head_before_the_rotation(kernels):
    qkv, _, _ = random_inputs(3)
    weight = torch.rand(DIM) + 0.5
    key = qkv[:, HEADS * DIM : (HEADS + KV_HEADS) * DIM].view(3, KV_HEADS, DIM).clone()
    still = torch.cat((torch.ones(3, DIM // 2), torch.zeros(3, DIM // 2)), 1)
    metadata, cache = write(kernels, qkv, still, [1], norms=(None, weight))
    expected = torch.nn.functional.rms_norm(key, (DIM,), weight, 1e-6)
    torch.testing.assert_close(cache.key.view(-1, KV_HEADS, DIM)[metadata.slot_mapping], expected)


@pytest.mark.parametrize("out_dtype", [torch.bfloat16, torch.float32])
def test_linear_adds_the_bias_and_honours_the_output_type(kernels, out_dtype):
    x, weight, bias = (torch.randn(*shape).bfloat16() for shape in ((3, 20), (11, 20), (11,)))
    out = torch.empty(3, 11, dtype=out_dtype)
    kernels.linear(x, kernels.pack_linear(weight, bias), out)
    expected = x.float() @ weight.float().T + bias.float()
    torch.testing.assert_close(out, expected.to(out_dtype))


def test_an_empty_step_is_harmless(kernels):
    none = torch.empty(0, dtype=torch.int32)
    metadata = AttentionMetadata(none, none.long(), none.view(0, 0), torch.zeros(1).int(), none, 0, 0)
    cache = kernels.allocate_kv_cache(KVCacheSpec(1, 2, BLOCK, KV_HEADS, DIM, torch.float32, CPU))[0]
    qkv, out = torch.empty(0, (HEADS + 2 * KV_HEADS) * DIM), torch.empty(0, HEADS * DIM)
    kernels.rope_kv_write(qkv, None, None, 1e-6, torch.empty(4, DIM), geometry(), metadata, cache)
    kernels.paged_attention(qkv, geometry(), metadata, cache, out)


def test_a_cache_of_no_tokens_per_block_is_refused(kernels):
    with pytest.raises(ConfigError, match="must be positive"):
        kernels.allocate_kv_cache(KVCacheSpec(1, 2, 0, KV_HEADS, DIM, torch.float32, CPU))
