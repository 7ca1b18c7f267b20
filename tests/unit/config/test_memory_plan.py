"""The memory plan: arithmetic, defaults, refusals, and the plan against reality."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.int4_checkpoints import FORMATS, Int4Format
from vllm_mxext import envs
from vllm_mxext.config.engine import (
    CacheConfig,
    DeviceConfig,
    EngineConfig,
    KVCacheDType,
    ModelConfig,
    Quantization,
    SchedulerConfig,
)
from vllm_mxext.config.machine import Memory
from vllm_mxext.config.memory_plan import (
    DEFAULT_CPU_KV_BYTES,
    activation_bytes,
    format_bytes,
    kv_block_bytes,
    plan_memory,
    weights_bytes,
)
from vllm_mxext.config.model_spec import parse_model_spec
from vllm_mxext.errors import ConfigError
from vllm_mxext.native.kernels.library import TORCH_ISA, runnable_isas
from vllm_mxext.native.worker.model_runner import ModelRunner

GIB = 2**30
ROOMY = Memory(total_bytes=64 * GIB, available_bytes=60 * GIB)
LARGE = {
    "architectures": ["Qwen3ForCausalLM"],
    "vocab_size": 151_936,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 40_960,
    "tie_word_embeddings": True,
}
SMALL = {
    **LARGE,
    "vocab_size": 301,
    "hidden_size": 48,
    "intermediate_size": 100,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 24,
}


def engine_config(
    values: dict[str, Any] = LARGE,
    *,
    max_model_len: int = 4096,
    dtype: Any = "bfloat16",
    quantization: Quantization = "none",
    **cache: Any,
) -> EngineConfig:
    folder = Path("model")
    model = ModelConfig(folder, folder, parse_model_spec(values), dtype, max_model_len, quantization, "dummy")
    return EngineConfig(model, CacheConfig(**cache), SchedulerConfig(max_num_seqs=32))


def test_a_cpu_gets_four_gibibytes_of_cache_unless_told_otherwise() -> None:
    plan = plan_memory(engine_config(), ROOMY)
    assert plan.kv_cache_bytes <= DEFAULT_CPU_KV_BYTES < plan.kv_cache_bytes + plan.block_bytes


def test_a_small_model_gets_no_more_than_all_its_requests_need() -> None:
    plan = plan_memory(engine_config(SMALL, max_model_len=100), ROOMY)
    assert plan.num_blocks == 32 * 7 + 1  # a request of 100 tokens takes 7 blocks of 16; block 0 is the null block


def test_one_longest_request_gets_more_than_the_default_when_it_needs_it() -> None:
    plan = plan_memory(engine_config(max_model_len=40_960), ROOMY)
    assert plan.kv_cache_bytes > DEFAULT_CPU_KV_BYTES
    assert plan.max_cached_tokens == 40_960


def test_a_gpu_gets_all_that_its_share_allows() -> None:
    config = replace(engine_config(), device=DeviceConfig(device="cuda"))
    plan = plan_memory(config, ROOMY)
    assert plan.total_bytes <= plan.budget_bytes < plan.total_bytes + plan.block_bytes
    assert plan.budget_bytes == int(0.92 * 64 * GIB)


def test_what_others_use_is_not_planned_with() -> None:
    busy = Memory(total_bytes=64 * GIB, available_bytes=4 * GIB)
    plan = plan_memory(engine_config(), busy)
    assert plan.total_bytes <= 4 * GIB


def test_the_share_of_memory_is_kept() -> None:
    plan = plan_memory(engine_config(memory_utilization=0.05), ROOMY)
    assert plan.total_bytes <= 0.05 * 64 * GIB


def test_bytes_given_by_the_user_are_used_to_the_last_block() -> None:
    plan = plan_memory(engine_config(kv_cache_memory_bytes=GIB), ROOMY)
    assert plan.kv_cache_bytes <= GIB < plan.kv_cache_bytes + plan.block_bytes


def test_an_exact_number_of_blocks_is_used_as_it_is() -> None:
    assert plan_memory(engine_config(num_blocks_override=300), ROOMY).num_blocks == 300


def test_the_table_has_the_numbers() -> None:
    plan = plan_memory(engine_config(), ROOMY)
    table = plan.table()
    for size in (plan.weights_bytes, plan.activation_bytes, plan.kv_cache_bytes, plan.total_bytes, 64 * GIB):
        assert format_bytes(size) in table
    assert f"{plan.num_blocks} blocks of 16" in table


def refusal(config: EngineConfig, memory: Memory) -> str:
    with pytest.raises(ConfigError) as caught:
        plan_memory(config, memory)
    return str(caught.value)


def number_after(flag: str, message: str) -> int:
    found = re.search(rf"{flag} (\d+)", message)
    assert found, message
    return int(found[1])


@pytest.mark.parametrize("available_mib", [2000, 2500, 4000])
@pytest.mark.parametrize("max_num_seqs", [1, 32, 512])
@pytest.mark.parametrize("max_model_len", [40_960, 40_945])
def test_a_context_that_does_not_fit_is_refused_with_the_longest_that_does(
    available_mib: int, max_num_seqs: int, max_model_len: int
) -> None:
    memory = Memory(total_bytes=64 * GIB, available_bytes=available_mib * 2**20)
    config = replace(engine_config(max_model_len=max_model_len), scheduler=SchedulerConfig(max_num_seqs=max_num_seqs))
    message = refusal(config, memory)
    for size in (weights_bytes(config), activation_bytes(config), available_mib * 2**20):
        assert format_bytes(size) in message
    suggested = number_after("--max-model-len", message)
    plan_memory(replace(config, model=replace(config.model, max_model_len=suggested)), memory)
    with pytest.raises(ConfigError):
        plan_memory(replace(config, model=replace(config.model, max_model_len=suggested + 16)), memory)


def test_a_cache_too_small_for_one_request_is_refused_with_the_size_it_needs() -> None:
    message = refusal(engine_config(kv_cache_memory_bytes=2**20), ROOMY)
    suggested = number_after("--kv-cache-memory-bytes", message)
    plan = plan_memory(engine_config(kv_cache_memory_bytes=suggested), ROOMY)
    assert plan.max_cached_tokens == 4096


def test_a_cache_larger_than_memory_is_refused_with_the_size_there_is() -> None:
    message = refusal(engine_config(kv_cache_memory_bytes=100 * GIB), ROOMY)
    suggested = number_after("--kv-cache-memory-bytes", message)
    plan_memory(engine_config(kv_cache_memory_bytes=suggested), ROOMY)


def test_too_few_exact_blocks_are_refused() -> None:
    assert "too small" in refusal(engine_config(num_blocks_override=10), ROOMY)


def test_a_small_cache_on_a_small_machine_is_refused_with_a_context_that_fits() -> None:
    memory = Memory(total_bytes=64 * GIB, available_bytes=2 * GIB)
    message = refusal(engine_config(max_model_len=40_960, kv_cache_memory_bytes=2**20), memory)
    assert "leave out --kv-cache-memory-bytes" in message
    plan_memory(engine_config(max_model_len=number_after("--max-model-len", message)), memory)


@pytest.mark.parametrize(("quantization", "remedy"), [("none", "--quantization int8"), ("int8", "a smaller model")])
def test_weights_that_do_not_fit_are_refused(quantization: Quantization, remedy: str) -> None:
    memory = Memory(total_bytes=GIB // 2, available_bytes=GIB // 2)
    assert remedy in refusal(engine_config(quantization=quantization), memory)


@pytest.mark.parametrize("kernels", [TORCH_ISA, *runnable_isas()[:1]])
@pytest.mark.parametrize(
    ("dtype", "quantization", "kv_cache_dtype"),
    [("bfloat16", "none", "auto"), ("float32", "none", "int8"), ("bfloat16", "int8", "int8")],
    ids=str,
)
@pytest.mark.parametrize(
    "changes",
    [
        {"head_dim": 24},
        {"tie_word_embeddings": False, "vocab_size": 320},
        {"architectures": ["LlamaForCausalLM"], "attention_bias": True, "mlp_bias": True},
    ],
    ids=str,
)
def test_the_plan_is_what_is_then_allocated(
    changes: dict[str, Any],
    dtype: str,
    quantization: Quantization,
    kv_cache_dtype: KVCacheDType,
    kernels: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(envs.CPU_ISA.name, kernels)
    config = engine_config(
        {**SMALL, **changes},
        dtype=dtype,
        quantization=quantization,
        max_model_len=200,
        num_blocks_override=40,
        kv_cache_dtype=kv_cache_dtype,
    )
    runner = ModelRunner(config)
    runner.load()
    report = runner.memory_report()
    assert report.kv_cache_bytes == report.plan.kv_cache_bytes
    assert report.plan.activation_bytes == report.activation_bytes
    if kernels == TORCH_ISA:  # keeps weights without padding
        assert 0.75 * report.plan.weights_bytes < report.weights_bytes <= report.plan.weights_bytes
    else:
        assert report.weights_bytes == report.plan.weights_bytes


INT4_SHAPE = {"hidden_size": 64, "intermediate_size": 192, "head_dim": 16, "tie_word_embeddings": False}


@pytest.mark.promise("INT4-1", "MEM-1")
@pytest.mark.parametrize("kernels", [TORCH_ISA, *runnable_isas()[:1]])
@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
def test_the_plan_counts_int4_weights_where_the_checkpoint_has_them(
    form: Int4Format, kernels: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(envs.CPU_ISA.name, kernels)
    values = {**SMALL, **INT4_SHAPE, "quantization_config": form.quantization_config()}
    config = engine_config(values, max_model_len=200, num_blocks_override=40)
    runner = ModelRunner(config)
    runner.load()
    report = runner.memory_report()
    # Dummy weights have no order of inputs: four bytes for each input of four layers.
    order_bytes = 2 * 4 * (3 * 64 + 192) if form.desc_act else 0
    if kernels == TORCH_ISA:
        assert 0.75 * report.plan.weights_bytes < report.weights_bytes <= report.plan.weights_bytes
    else:
        assert report.weights_bytes == report.plan.weights_bytes - order_bytes
    plain = weights_bytes(engine_config({**SMALL, **INT4_SHAPE}, max_model_len=200))
    assert report.plan.weights_bytes < 0.8 * plain


def test_block_bytes_count_keys_and_values_of_all_layers() -> None:
    assert kv_block_bytes(engine_config()) == 2 * 16 * 8 * 128 * 2 * 28


@pytest.mark.promise("KV8-1")
def test_an_int8_cache_holds_nearly_twice_the_tokens_in_the_same_memory() -> None:
    plain, quantised = (
        plan_memory(engine_config(kv_cache_memory_bytes=GIB, kv_cache_dtype=kind), ROOMY) for kind in ("auto", "int8")
    )
    assert kv_block_bytes(engine_config(kv_cache_dtype="int8")) == 16 * 8 * (128 + 4 * 2 + 128 + 4) * 28
    assert quantised.max_cached_tokens > 1.9 * plain.max_cached_tokens
    assert "in int8" in quantised.table()
    assert "in bfloat16" in plain.table()


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.50 KiB"), (3 * 2**20, "3.00 MiB"), (GIB, "1.00 GiB")],
)
def test_sizes_are_shown_in_binary_units(num_bytes: int, text: str) -> None:
    assert format_bytes(num_bytes) == text
