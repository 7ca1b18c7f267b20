"""What the native engine takes under a profile: its own configuration and memory plan, and what its processes add.

The plan (config/memory_plan.py) is what the engine itself goes by. What its two processes take besides was measured on
an x86 machine with 2 cores and torch 2.13 by benchmarks/hub_estimate.py, which compares whole estimates with what whole
servers hold once their KV cache is full: from 4% below to 4% above the measured one, for weights of 20 MB to 1.2 GB.
Loading has no peak above that: weights are packed tensor by tensor, and pages of checkpoint files go when memory is
short.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from vllm_mxext.config import memory_plan
from vllm_mxext.config.app import from_arguments
from vllm_mxext.config.engine import EngineConfig
from vllm_mxext.config.hub import draft_reference, is_remote
from vllm_mxext.config.machine import Memory
from vllm_mxext.config.model_spec import parse_model_spec
from vllm_mxext.config.options import SpeculationOptions, all_flags
from vllm_mxext.config.resolve import Machine, resolve_engine
from vllm_mxext.errors import ConfigError
from vllm_mxext.hub.estimate import disk_bytes, flags_of, lora_flags, serves_adapters
from vllm_mxext.hub.hardware import Hardware
from vllm_mxext.hub.judgement import Estimate
from vllm_mxext.hub.manifest.model import ModelEntry, Profile

_MIB = 2**20

_CORE_BYTES = 255 * _MIB
"""The core process without a model: Python, torch and our libraries (measured: 243 to 258 MiB)."""

_FRONT_BYTES = 85 * _MIB
"""The process that listens, without a tokenizer (measured: 84 MiB)."""

_TOKENIZER_BYTES = 400
"""Per entry of the vocabulary: five times its share of tokenizer.json (measured: 280 for a list of words, 860 for byte
pairs with a file of 170 bytes per entry; those of Qwen3 and Llama 3 have 75)."""

_CUDA_BYTES = 512 * _MIB
"""On a CUDA device besides the plan: the driver's context and workspaces (a rule of thumb, not measured)."""

_INT4_METHODS = {"gptq": "gptq", "awq": "awq", "int4": "gptq"}
"""Precision of a profile -> `quant_method` of a checkpoint whose `config.json` does not say."""

_TYPICAL_GROUP_SIZE = 128


def native_config(entry: ModelEntry, profile: Profile, hardware: Hardware) -> EngineConfig:
    """Returns the engine's configuration under a profile.

    Raises:
        ConfigError: the engine does not run this architecture, or the profile's settings contradict each other.
    """
    host = hardware.host
    spec = parse_model_spec(_checkpoint_config(entry, profile))
    machine = Machine(host.num_cores, Memory(host.memory_bytes, host.memory_available_bytes))
    app = from_arguments(_arguments(entry, profile), environ={})
    if is_remote(draft_reference(app)):  # its size is known once it is here; the engine's own plan has it then
        app = replace(app, speculation=SpeculationOptions())
    return resolve_engine(app, spec, machine)


def estimate_native(entry: ModelEntry, profile: Profile, config: EngineConfig, memory: Memory) -> Estimate:
    """Estimates the engine with the KV cache that it would allocate; if that does not fit, with the least.

    Args:
        entry: the model.
        profile: the profile.
        config: the engine's configuration under it.
        memory: of the device; of the machine on a CPU.
    """
    is_on_cpu = config.device.device == "cpu"
    length, block_size = config.model.max_model_len, config.cache.block_size
    try:
        num_blocks = memory_plan.plan_memory(config, memory_for_plan(config, memory)).num_blocks
    except ConfigError:
        num_blocks = memory_plan.num_request_blocks(length, block_size) + 1
    front_bytes = _FRONT_BYTES + config.model.spec.vocab_size * _TOKENIZER_BYTES
    return Estimate(
        weights=memory_plan.weights_bytes(config),
        kv_cache=num_blocks * memory_plan.kv_block_bytes(config),
        activations=memory_plan.activation_bytes(config),
        adapters=memory_plan.adapter_bytes(config),
        overhead=_CORE_BYTES if is_on_cpu else _CUDA_BYTES,
        host=front_bytes if is_on_cpu else front_bytes + _CORE_BYTES,
        disk=disk_bytes(entry, profile),
        max_model_len=length,
        num_requests=round((num_blocks - 1) * block_size / length, 2),
    )


def longest_native(config: EngineConfig, memory: Memory) -> int:
    """Returns the tokens of the longest request for which the engine finds room; 0 if there is none.

    Args:
        config: the engine's configuration.
        memory: of the device; of the machine on a CPU.
    """
    left = memory_for_plan(config, memory)
    try:
        memory_plan.plan_memory(config, left)
    except ConfigError:
        length = memory_plan.longest_model_len(config, left)
        return length if 0 < length < config.model.max_model_len else 0  # equal: a KV cache of fixed size is too big
    return config.model.max_model_len


def memory_for_plan(config: EngineConfig, memory: Memory) -> Memory:
    """Returns what the engine finds when it plans: its processes have started by then."""
    if config.device.device != "cpu":
        return Memory(memory.total_bytes, max(0, memory.available_bytes - _CUDA_BYTES))
    besides = _CORE_BYTES + _FRONT_BYTES + config.model.spec.vocab_size * _TOKENIZER_BYTES
    return Memory(memory.total_bytes, max(0, memory.available_bytes - besides))


def shortened(config: EngineConfig, max_model_len: int) -> EngineConfig:
    """Returns the configuration for requests of so many tokens at most."""
    return replace(config, model=replace(config.model, max_model_len=max_model_len))


def _checkpoint_config(entry: ModelEntry, profile: Profile) -> Mapping[str, Any]:
    method = _INT4_METHODS.get(profile.tags.precision)
    if method is None or entry.config.get("quantization_config"):
        return entry.config
    values = {"quant_method": method, "bits": 4, "group_size": _TYPICAL_GROUP_SIZE}
    return {**entry.config, "quantization_config": values}


def _arguments(entry: ModelEntry, profile: Profile) -> dict[str, Any]:
    """Returns what of a profile the engine hears: flags that concern the server alone are left out."""
    of_server = {flag.field for flag in all_flags() if not flag.facts.is_offline}
    given = flags_of(profile)
    if serves_adapters(entry, profile):
        given = {"enable_lora": True, **lora_flags(profile), **given}
    if profile.device.kind == "gpu":
        given.setdefault("device", "cuda")
    if str(given.get("max_model_len")) in ("auto", "-1"):
        del given["max_model_len"]  # would be fitted into the memory of now, and hide that a profile is reduced
    return {name: value for name, value in given.items() if name not in of_server}
