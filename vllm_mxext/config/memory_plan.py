"""The memory plan: what weights, activations and KV cache will take, by arithmetic and before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass

from vllm_mxext.config.engine import EngineConfig, KVCacheDType, ModelConfig
from vllm_mxext.config.int4_spec import HEAD_MODULE, LAYER_STACKS, Int4Spec, module_name
from vllm_mxext.config.machine import Memory
from vllm_mxext.errors import ConfigError

DEFAULT_CPU_KV_BYTES = 4 * 2**30
"""KV cache on a CPU unless the user says otherwise; a single longest request may need more."""

_DTYPE_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
_PANEL_COLUMNS = 64
_PANEL_DEPTH = 2
_INT8_GROUP = 32
_INT8_BLOCK_BYTES = _INT8_GROUP * (_INT8_GROUP + 2)
_INT4_COLUMNS = 64
_INT4_SCALE_BYTES = 3
_NUM_NULL_BLOCKS = 1


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """How an engine's memory is divided, all in bytes.

    Attributes:
        device_total_bytes: memory of the device, or of the container if that is less.
        device_available_bytes: of these, not in use by others now.
        budget_bytes: what the engine may take in all.
        weights_bytes: packed weights with their padding, an embedding that is not tied, norms and rotary table, of
            the model and of a draft model.
        activation_bytes: forward buffers, logits and the persistent batch.
        block_bytes: one KV block over all layers.
        block_size: token positions per KV block.
        num_blocks: KV blocks, the null block included.
        kv_cache_dtype: what keys and values are kept as, for example `bfloat16`.
        max_model_len: tokens of the longest request.
        max_num_seqs: requests running at once.
        draft_weights_bytes: how much of the weights is the draft model.
        adapter_bytes: as many adapters as host memory holds, of the largest rank and on all layers.
    """

    device_total_bytes: int
    device_available_bytes: int
    budget_bytes: int
    weights_bytes: int
    activation_bytes: int
    block_bytes: int
    block_size: int
    num_blocks: int
    kv_cache_dtype: str
    max_model_len: int
    max_num_seqs: int
    draft_weights_bytes: int = 0
    adapter_bytes: int = 0

    @property
    def kv_cache_bytes(self) -> int:
        """Bytes of all KV blocks."""
        return self.num_blocks * self.block_bytes

    @property
    def total_bytes(self) -> int:
        """Bytes of everything planned."""
        return self.weights_bytes + self.adapter_bytes + self.activation_bytes + self.kv_cache_bytes

    @property
    def max_cached_tokens(self) -> int:
        """Token positions that requests can hold at once."""
        return (self.num_blocks - _NUM_NULL_BLOCKS) * self.block_size

    def table(self) -> str:
        """The plan as a small text table for the log."""
        requests = self.max_cached_tokens / self.max_model_len
        draft = (
            f"{format_bytes(self.draft_weights_bytes)} of them the draft model's" if self.draft_weights_bytes else ""
        )
        adapters = (("adapters", self.adapter_bytes, "kept free for them"),) if self.adapter_bytes else ()
        rows = (
            ("weights", self.weights_bytes, draft),
            *adapters,
            ("activations", self.activation_bytes, f"{self.max_num_seqs} requests at once"),
            (
                "KV cache",
                self.kv_cache_bytes,
                f"{self.num_blocks} blocks of {self.block_size} in {self.kv_cache_dtype}; "
                f"{requests:.1f} x {self.max_model_len} tokens",
            ),
            ("total", self.total_bytes, f"may take {format_bytes(self.budget_bytes)}"),
            ("device", self.device_total_bytes, f"{format_bytes(self.device_available_bytes)} available"),
        )
        return "\n".join(f"{name:<12}{format_bytes(size):>12}  {note}".rstrip() for name, size, note in rows)


def plan_memory(config: EngineConfig, memory: Memory) -> MemoryPlan:
    """Divides the device's memory.

    Raises:
        ConfigError: weights, or one request of `max_model_len` tokens, cannot fit; the text has the numbers and what to
            change.
    """
    weights = weights_bytes(config)
    adapters = adapter_bytes(config)
    activations = activation_bytes(config)
    block_bytes = kv_block_bytes(config)
    share = int(memory.total_bytes * config.cache.memory_utilization)
    budget = min(share, memory.available_bytes)
    room = budget - weights - adapters - activations
    min_blocks = num_request_blocks(config.model.max_model_len, config.cache.block_size) + _NUM_NULL_BLOCKS
    num_blocks = _num_blocks(config, room, block_bytes, min_blocks)
    if num_blocks < min_blocks or num_blocks * block_bytes > room:
        raise ConfigError(_refusal(config, memory, budget, room, num_blocks, min_blocks * block_bytes))
    return MemoryPlan(
        device_total_bytes=memory.total_bytes,
        device_available_bytes=memory.available_bytes,
        budget_bytes=budget,
        weights_bytes=weights,
        activation_bytes=activations,
        block_bytes=block_bytes,
        block_size=config.cache.block_size,
        num_blocks=num_blocks,
        kv_cache_dtype=config.model.dtype if config.cache.kv_cache_dtype == "auto" else config.cache.kv_cache_dtype,
        max_model_len=config.model.max_model_len,
        max_num_seqs=config.scheduler.max_num_seqs,
        draft_weights_bytes=0 if config.draft_engine is None else weights_bytes(config.draft_engine),
        adapter_bytes=adapters,
    )


def longest_model_len(config: EngineConfig, memory: Memory) -> int:
    """Returns the largest `max_model_len` up to that of `config` for which `plan_memory()` finds room; may be <= 0."""
    cache = config.cache
    room = min(int(memory.total_bytes * cache.memory_utilization), memory.available_bytes)
    room -= weights_bytes(config) + adapter_bytes(config) + activation_bytes(config)
    fitting = _longest_that_fits(config, room)
    block_bytes = kv_block_bytes(config)
    num_blocks = cache.num_blocks_override
    if num_blocks is None and cache.kv_cache_memory_bytes is not None:
        num_blocks = cache.kv_cache_memory_bytes // block_bytes
    if num_blocks is not None:
        fitting = min(fitting, (num_blocks - _NUM_NULL_BLOCKS) * cache.block_size)
    return min(fitting, config.model.max_model_len)


def weights_bytes(config: EngineConfig) -> int:
    """Bytes of all weights and rotary tables, an upper bound that is exact for the compiled kernels."""
    model, spec, itemsize = config.model, config.model.spec, _DTYPE_BYTES[config.model.dtype]
    q_width, kv_width = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    stacks = (
        (q_width + 2 * kv_width, spec.hidden_size, spec.has_qkv_bias),
        (spec.hidden_size, q_width, spec.has_o_bias),
        (2 * spec.intermediate_size, spec.hidden_size, spec.has_mlp_bias),
        (spec.hidden_size, spec.intermediate_size, spec.has_mlp_bias),
    )
    linears = sum(
        _linear_bytes(model, module_name(layer, projections[0]), *stack)
        for layer in range(spec.num_layers)
        for projections, stack in zip(LAYER_STACKS, stacks, strict=True)
    )
    norms = 2 * spec.hidden_size * itemsize + (2 * spec.head_dim * itemsize if spec.has_qk_norm else 0)
    embedding = spec.vocab_size * spec.hidden_size * itemsize
    if spec.has_tied_embeddings:
        ends = _plain_linear_bytes(model, spec.vocab_size, spec.hidden_size)
    else:
        ends = embedding + _linear_bytes(model, HEAD_MODULE, spec.vocab_size, spec.hidden_size, has_bias=False)
    final_norm = spec.hidden_size * itemsize
    rotary = config.model.max_model_len * spec.head_dim * 4
    draft = 0 if config.draft_engine is None else weights_bytes(config.draft_engine)
    return linears + spec.num_layers * norms + ends + final_norm + rotary + draft


def adapter_bytes(config: EngineConfig) -> int:
    """Bytes of all adapters that host memory may hold, of the largest rank and on all linear layers but the head."""
    if config.lora is None:
        return 0
    spec = config.model.spec
    q_width, kv_width = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    widths = 2 * (spec.hidden_size + q_width) + 2 * (spec.hidden_size + kv_width)
    widths += 3 * (spec.hidden_size + spec.intermediate_size)
    per_rank = spec.num_layers * widths * _DTYPE_BYTES[config.model.dtype]
    return config.lora.max_cpu_loras * config.lora.max_lora_rank * per_rank


def activation_bytes(config: EngineConfig) -> int:
    """Bytes of the forward buffers, the logits and the persistent batch."""
    limits, draft = config.scheduler, config.draft_engine
    max_num_tokens, max_num_seqs = limits.max_num_batched_tokens, limits.max_num_seqs
    max_blocks = num_request_blocks(config.model.max_model_len, config.cache.block_size)
    # Token ids of every row, block tables of the rows and of the step; a step's requests, samples and tokens.
    batch = max_num_seqs * 4 * (config.model.max_model_len + 2 * max_blocks) + (max_num_seqs * 2 + 1) * 4
    batch += limits.max_num_samples * 4 + max_num_tokens * (3 * 4 + 8)
    forward = _forward_bytes(config, limits.num_logits_rows)
    return batch + forward + (0 if draft is None else _forward_bytes(draft, limits.max_num_drafting))


def _forward_bytes(config: EngineConfig, num_logits_rows: int) -> int:
    """Bytes of the buffers of one model's forward pass."""
    spec, itemsize = config.model.spec, _DTYPE_BYTES[config.model.dtype]
    max_num_tokens = config.scheduler.max_num_batched_tokens
    q_width, kv_width = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    residual = spec.hidden_size * 4
    per_token = residual + (2 * spec.hidden_size + 2 * q_width + 2 * kv_width + 3 * spec.intermediate_size) * itemsize
    per_sample = residual + q_width * itemsize + spec.vocab_size * 4
    return max_num_tokens * per_token + min(num_logits_rows, max_num_tokens) * per_sample


def kv_block_bytes(config: EngineConfig) -> int:
    """Bytes of one KV block over all layers, those of a draft model included."""
    spec, cache = config.model.spec, config.cache
    row_bytes = kv_row_bytes(spec.head_dim, _DTYPE_BYTES[config.model.dtype], cache.kv_cache_dtype)
    draft = 0 if config.draft_engine is None else kv_block_bytes(config.draft_engine)
    return spec.num_layers * cache.block_size * spec.num_kv_heads * sum(row_bytes) + draft


def kv_row_bytes(head_dim: int, itemsize: int, kv_cache_dtype: KVCacheDType) -> tuple[int, int]:
    """Bytes of one token's key and of its value in one head.

    In int8 (csrc/kv_int8.h) a key has a bfloat16 scale for every 32 dimensions, the number of these rounded up to an
    even one, and a value has a float32 scale.

    Args:
        head_dim: elements per head.
        itemsize: bytes of an element of the activations.
        kv_cache_dtype: what keys and values are kept as.
    """
    if kv_cache_dtype == "auto":
        return head_dim * itemsize, head_dim * itemsize
    return head_dim + -(-head_dim // (2 * _INT8_GROUP)) * 4, head_dim + 4


def num_request_blocks(num_tokens: int, block_size: int) -> int:
    """Blocks that hold so many tokens."""
    return -(-num_tokens // block_size)


def format_bytes(num_bytes: int) -> str:
    """Bytes as text in binary units, for example `1.50 GiB`."""
    size = float(num_bytes)
    for unit in ("B", "KiB", "MiB"):
        if abs(size) < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.2f} {unit}"
        size /= 1024
    return f"{size:.2f} GiB"


def _linear_bytes(model: ModelConfig, module: str, out_features: int, in_features: int, has_bias: bool) -> int:
    """Bytes of a packed linear layer."""
    bias_bytes = 4 * out_features if has_bias else 0
    int4 = model.spec.int4
    if int4 is not None and int4.covers(module):
        return _int4_linear_bytes(int4, out_features, in_features) + bias_bytes
    return _plain_linear_bytes(model, out_features, in_features) + bias_bytes


def _int4_linear_bytes(int4: Int4Spec, out_features: int, in_features: int) -> int:
    """Blocks of 64 columns with an fp16 scale and a byte for the zero each (csrc/int4.h), and the order of inputs."""
    group_size = int4.packed_group_size(in_features)
    column_bytes = -(-in_features // group_size) * (group_size // 2 + _INT4_SCALE_BYTES)
    order_bytes = 4 * in_features if int4.has_input_order else 0
    return -(-out_features // _INT4_COLUMNS) * _INT4_COLUMNS * column_bytes + order_bytes


def _plain_linear_bytes(model: ModelConfig, out_features: int, in_features: int) -> int:
    """Panels of 64 columns, the depth in pairs (csrc/panels.h), or blocks of 32 x 32 int8, 32 scales (csrc/int8.h)."""
    if model.quantization == "int8":
        return -(-out_features // _INT8_GROUP) * -(-in_features // _INT8_GROUP) * _INT8_BLOCK_BYTES
    columns = -(-out_features // _PANEL_COLUMNS) * _PANEL_COLUMNS
    depth = -(-in_features // _PANEL_DEPTH) * _PANEL_DEPTH
    return columns * depth * _DTYPE_BYTES[model.dtype]


def _num_blocks(config: EngineConfig, room: int, block_bytes: int, min_blocks: int) -> int:
    cache = config.cache
    if cache.num_blocks_override is not None:
        return cache.num_blocks_override
    if cache.kv_cache_memory_bytes is not None:
        return cache.kv_cache_memory_bytes // block_bytes
    affordable = max(room, 0) // block_bytes
    if config.device.device != "cpu":
        return affordable
    per_request = num_request_blocks(config.model.max_model_len, cache.block_size)
    enough_for_all = config.scheduler.max_num_seqs * per_request + _NUM_NULL_BLOCKS
    default = max(DEFAULT_CPU_KV_BYTES // block_bytes, min_blocks)
    return min(affordable, enough_for_all, default)


def _refusal(config: EngineConfig, memory: Memory, budget: int, room: int, num_blocks: int, needed_bytes: int) -> str:
    block_bytes = kv_block_bytes(config)
    adapters = f"+ adapters {format_bytes(adapter_bytes(config))} " if config.lora is not None else ""
    numbers = (
        f"weights {format_bytes(weights_bytes(config))} {adapters}"
        f"+ activations {format_bytes(activation_bytes(config))} + KV cache {format_bytes(needed_bytes)} for one "
        f"request of {config.model.max_model_len} tokens, with {format_bytes(budget)} to take "
        f"({config.cache.memory_utilization:.0%} of {format_bytes(memory.total_bytes)}, "
        f"{format_bytes(memory.available_bytes)} available)"
    )
    is_fixed_by_user = config.cache.kv_cache_memory_bytes is not None or config.cache.num_blocks_override is not None
    if is_fixed_by_user and num_blocks * block_bytes > room >= needed_bytes:
        return f"The KV cache asked for does not fit: {numbers}; use --kv-cache-memory-bytes {room}."
    if is_fixed_by_user and room >= needed_bytes:
        return f"The KV cache asked for is too small: {numbers}; use --kv-cache-memory-bytes {needed_bytes}."
    return f"The model does not fit: {numbers}; {_suggestion(config, room)}."


def _suggestion(config: EngineConfig, room: int) -> str:
    max_model_len = _longest_that_fits(config, room)
    if max_model_len >= config.cache.block_size:
        remedy = f"use --max-model-len {max_model_len}"
        if config.cache.kv_cache_memory_bytes is not None or config.cache.num_blocks_override is not None:
            remedy += " and leave out --kv-cache-memory-bytes"
        return remedy
    if config.lora is not None:
        return "lower --max-cpu-loras or --max-lora-rank, or use a machine with more memory"
    is_plain = config.model.quantization == "none" and config.model.spec.int4 is None
    if is_plain and config.device.device == "cpu":
        return "use --quantization int8, a smaller model, or a machine with more memory"
    return "use a smaller model, free memory, or use a machine with more"


def _longest_that_fits(config: EngineConfig, room: int) -> int:
    """Largest multiple of the block size that could be `max_model_len`; what a shorter context frees counts too."""
    spec, size, max_num_seqs = config.model.spec, config.cache.block_size, config.scheduler.max_num_seqs
    block_bytes = kv_block_bytes(config)
    token_bytes = spec.head_dim * 4 + max_num_seqs * 4  # rotary table, token ids
    if config.draft_engine is not None:
        token_bytes += config.draft_engine.model.spec.head_dim * 4
    table_bytes = max_num_seqs * 4 * 2  # two block tables
    num_now = num_request_blocks(config.model.max_model_len, size)
    without_context = room + config.model.max_model_len * token_bytes + num_now * table_bytes
    num_fitting = (without_context - block_bytes) // (block_bytes + size * token_bytes + table_bytes)
    return min(num_fitting, num_now) * size
