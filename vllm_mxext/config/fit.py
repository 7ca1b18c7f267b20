"""How long a context fits into memory: an estimate on the safe side, from the checkpoint's shape alone.

The worker's memory plan, made later and exactly, has the last word; what this estimate allows must fit there.
"""

from __future__ import annotations

from vllm_mxext.config.engine import CacheConfig, DType, SchedulerConfig
from vllm_mxext.config.machine import Memory
from vllm_mxext.config.model_spec import ModelSpec

_DTYPE_BYTES: dict[DType, int] = {"bfloat16": 2, "float16": 2, "float32": 4}

_RESERVE = 0.03
"""Share of the memory to take that is left for padding and what else this estimate does not count."""


def fitting_tokens(
    spec: ModelSpec, dtype: DType, cache: CacheConfig, scheduler: SchedulerConfig, memory: Memory
) -> int:
    """Returns the longest request the KV cache has room for, in tokens; may be zero or less.

    Args:
        spec: the model's shape.
        dtype: type of weights, activations and KV cache.
        cache: an explicit block count or cache size comes first, then the share of memory.
        scheduler: its limits decide on the buffers.
        memory: memory of the device.
    """
    if cache.num_blocks_override is not None:
        return (cache.num_blocks_override - 1) * cache.block_size  # the null block holds nothing
    itemsize = _DTYPE_BYTES[dtype]
    token_bytes = 2 * spec.num_layers * spec.num_kv_heads * spec.head_dim * itemsize
    budget = cache.kv_cache_memory_bytes
    if budget is None:
        budget = min(int(memory.total_bytes * cache.memory_utilization), memory.available_bytes)
        budget = int(budget * (1 - _RESERVE)) - weights_bytes(spec, itemsize)
        budget -= _buffer_bytes(spec, itemsize, scheduler)
        # Per position: one row of the rotary table, and per request its token id and two block table entries.
        token_bytes += 4 * spec.head_dim + 3 * 4 * scheduler.max_num_seqs
    return (budget // (token_bytes * cache.block_size) - 1) * cache.block_size


def weights_bytes(spec: ModelSpec, itemsize: int) -> int:
    """Returns the size of the matrices; a tied head counts as well, because its packed form is a copy."""
    attention = 2 * spec.hidden_size * spec.head_dim * (spec.num_heads + spec.num_kv_heads)
    mlp = 3 * spec.hidden_size * spec.intermediate_size
    return itemsize * (2 * spec.vocab_size * spec.hidden_size + spec.num_layers * (attention + mlp))


def _buffer_bytes(spec: ModelSpec, itemsize: int, scheduler: SchedulerConfig) -> int:
    """Returns the size of the forward pass's buffers and of the logits."""
    heads = 2 * spec.head_dim * (spec.num_heads + spec.num_kv_heads)
    per_token = itemsize * (3 * spec.hidden_size + heads + 3 * spec.intermediate_size) + 64
    per_sample = 4 * spec.vocab_size + itemsize * (spec.hidden_size + spec.head_dim * spec.num_heads)
    return scheduler.max_num_batched_tokens * per_token + scheduler.max_num_seqs * per_sample
