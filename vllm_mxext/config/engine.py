"""Concrete, frozen configuration of one engine: what `resolve()` makes of the user's intent."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from vllm_mxext.config.model_spec import ModelSpec

DType = Literal["bfloat16", "float16", "float32"]
SchedulingPolicy = Literal["fcfs", "priority"]
LoadFormat = Literal["auto", "safetensors", "dummy"]
Quantization = Literal["none", "int8"]
KVCacheDType = Literal["auto", "int8"]
SpeculationMethod = Literal["ngram", "draft_model"]

_MIN_LOGITS_ROWS = 32
"""With fewer, reading the weights of the output head takes longer than computing with them."""

_MAX_DRAFTS_PER_STEP = 32


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Which model runs and how its weights are held.

    Attributes:
        path: folder with `config.json`, tokenizer and safetensors files.
        tokenizer_path: folder or file of the tokenizer.
        spec: what `config.json` says.
        dtype: element type of weights and activations.
        quantization: what the weights of linear layers are converted to when they are loaded.
        max_model_len: tokens of prompt plus output at most.
        load_format: `dummy` fills weights with seeded noise instead of reading them.
        seed: seed of dummy weights, and of request seeds that the user leaves open (offline only).
        max_logprobs: largest `SamplingParams.logprobs`; -1 = no limit.
        served_model_names: names the API answers to; the first is reported.
    """

    path: Path
    tokenizer_path: Path
    spec: ModelSpec
    dtype: DType
    max_model_len: int
    quantization: Quantization = "none"
    load_format: LoadFormat = "auto"
    seed: int = 0
    max_logprobs: int = 20
    served_model_names: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """What people call it: a served name that is no path, or else the name of the folder."""
        name = self.served_model_names[0] if self.served_model_names else ""
        return self.path.name if not name or os.path.exists(os.path.expanduser(name)) else name


@dataclass(frozen=True, slots=True)
class PreparedConfig:
    """Prepared files: packed weights kept for later starts.

    Attributes:
        folder: where they are.
        limit_bytes: all of them together, at most.
    """

    folder: Path
    limit_bytes: int


@dataclass(frozen=True, slots=True)
class CacheConfig:
    """KV cache.

    Attributes:
        block_size: token positions per KV block.
        kv_cache_dtype: what keys and values are kept as; `auto` is the model's dtype.
        enable_prefix_caching: reuse blocks of equal prefixes.
        kv_cache_memory_bytes: size of the KV cache; None = chosen by the memory plan.
        memory_utilization: share of the device's memory the engine may use in all.
        num_blocks_override: exact number of KV blocks (tests); None = from bytes.
    """

    block_size: int = 16
    kv_cache_dtype: KVCacheDType = "auto"
    enable_prefix_caching: bool = True
    kv_cache_memory_bytes: int | None = None
    memory_utilization: float = 0.92
    num_blocks_override: int | None = None


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    """Batching limits.

    Attributes:
        max_num_batched_tokens: token budget of one step.
        max_num_seqs: requests running at once.
        enable_chunked_prefill: prompts longer than what is left of the budget are cut; otherwise they wait for a step
            with room, and the budget is at least `max_model_len`.
        long_prefill_token_threshold: tokens of one prompt per step at most; 0 = no limit.
        policy: order of the waiting queue.
        num_draft_tokens: draft tokens of one request per step at most; 0 = no speculation.
    """

    max_num_batched_tokens: int = 2048
    max_num_seqs: int = 128
    enable_chunked_prefill: bool = True
    long_prefill_token_threshold: int = 0
    policy: SchedulingPolicy = "fcfs"
    num_draft_tokens: int = 0

    @property
    def max_num_samples(self) -> int:
        """Positions that one step samples at most: one per request, and some drafts.

        Not a draft of full length for each of many requests, which would take memory and cost more than it brings.
        """
        num_drafts = min(self.max_num_seqs * self.num_draft_tokens, max(self.num_draft_tokens, _MAX_DRAFTS_PER_STEP))
        return min(self.max_num_seqs + num_drafts, self.max_num_batched_tokens)

    @property
    def num_logits_rows(self) -> int:
        """Rows of the model's buffer of logits: enough for prompt log probabilities not to go row by row."""
        return min(max(self.max_num_samples, _MIN_LOGITS_ROWS), self.max_num_batched_tokens)

    @property
    def max_num_drafting(self) -> int:
        """Requests with drafts in one step at most: each samples two positions or more."""
        return max(1, self.max_num_samples // 2)


@dataclass(frozen=True, slots=True)
class SpeculationConfig:
    """Where draft tokens come from.

    Attributes:
        method: `ngram` looks them up in the request's own tokens, `draft_model` asks a smaller model.
        prompt_lookup_min: tokens that must repeat before what followed them is drafted (`ngram`).
        prompt_lookup_max: tokens that are compared at most (`ngram`).
        draft: the smaller model (`draft_model`).
    """

    method: SpeculationMethod
    prompt_lookup_min: int = 5
    prompt_lookup_max: int = 5
    draft: ModelConfig | None = None


@dataclass(frozen=True, slots=True)
class DeviceConfig:
    """Where the model runs.

    Attributes:
        device: `cpu`, `cuda` or `cuda:N`.
        num_threads: CPU threads of the compute kernels.
        is_deterministic: logits are the same bits alone and in any batch, also where that is slower.
    """

    device: str = "cpu"
    num_threads: int = 1
    is_deterministic: bool = False


@dataclass(frozen=True, slots=True)
class LoRAConfig:
    """Adapters.

    Attributes:
        max_loras: adapters that running requests may use at once, which is the number of adapter slots.
        max_lora_rank: largest rank.
        max_cpu_loras: adapters in host memory, at least `max_loras`; the others are read from their files again.
        allows_pickle: also read adapter files that have to be unpickled.
    """

    max_loras: int = 8
    max_lora_rank: int = 32
    max_cpu_loras: int = 16
    allows_pickle: bool = False


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Everything the engine core needs, and nothing else.

    `prepared` is None if packed weights are not to be kept, `speculation` if there are no draft tokens, `lora` if there
    are no adapters.
    `logits_processors` are plug-ins as `module:Class`, besides the installed ones.
    """

    model: ModelConfig
    cache: CacheConfig = field(default_factory=CacheConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    device: DeviceConfig = field(default_factory=DeviceConfig)
    prepared: PreparedConfig | None = None
    speculation: SpeculationConfig | None = None
    logits_processors: tuple[str, ...] = ()
    lora: LoRAConfig | None = None

    @property
    def draft_engine(self) -> EngineConfig | None:
        """This engine with the draft model in place of the model; None without one."""
        if self.speculation is None or self.speculation.draft is None:
            return None
        return replace(self, model=self.speculation.draft, speculation=None, lora=None)
