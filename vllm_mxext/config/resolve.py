"""`resolve()`: the user's intent plus checkpoint and machine facts become the concrete configuration, without torch."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from vllm_mxext import builtin
from vllm_mxext.config import machine
from vllm_mxext.config.app import AppConfig
from vllm_mxext.config.engine import (
    CacheConfig,
    DeviceConfig,
    DType,
    EngineConfig,
    KVCacheDType,
    LoadFormat,
    LoRAConfig,
    ModelConfig,
    PreparedConfig,
    Quantization,
    SchedulerConfig,
    SchedulingPolicy,
)
from vllm_mxext.config.frontend import AdmissionConfig, ChatTemplateConfig, ContentFormatName, FrontendConfig
from vllm_mxext.config.generation import (
    default_sampling,
    default_template_kwargs,
    read_chat_template,
    structured_outputs,
)
from vllm_mxext.config.hub import local_folder
from vllm_mxext.config.lora import lora_reason, resolve_lora
from vllm_mxext.config.memory_plan import longest_model_len
from vllm_mxext.config.model_spec import ModelSpec, read_model_spec
from vllm_mxext.config.resolve_server import resolve_server
from vllm_mxext.config.server import LoRAServingConfig, ServerConfig
from vllm_mxext.config.speculation import resolve_speculation, shortened
from vllm_mxext.errors import ConfigError

_CPU_TOKEN_BUDGET = 512
_CUDA_TOKEN_BUDGET = 2048
"""Default token budgets of a step. A CPU computes 512 tokens as fast as 2048, and streams wait only for that step."""

_AUTO_LENGTH = -1
"""`--max-model-len auto`."""

_DTYPE_ALIASES: dict[str, DType] = {"half": "float16", "float": "float32"}


@dataclass(frozen=True, slots=True)
class Machine:
    """What the machine offers this process.

    Attributes:
        num_cores: physical cores.
        memory: main memory.
    """

    num_cores: int
    memory: machine.Memory


@dataclass(frozen=True, slots=True)
class Decision:
    """A value that was looked up rather than given.

    Attributes:
        value: what was chosen.
        reason: where it comes from, for people.
    """

    value: Any
    reason: str


@dataclass(frozen=True, slots=True)
class ResolvedConfig:
    """The concrete configuration and how it came about.

    Attributes:
        app: the intent.
        engine: everything the engine core needs.
        server: how the server listens, answers, guards and logs.
        frontend: admission, sampling defaults and chat template.
        decisions: field name -> value that was looked up.
    """

    app: AppConfig
    engine: EngineConfig
    server: ServerConfig
    frontend: FrontendConfig
    decisions: dict[str, Decision] = field(default_factory=dict)


def resolve(app: AppConfig, host: Machine | None = None) -> ResolvedConfig:
    """Looks up what the intent leaves open: checkpoint facts, data type, lengths, threads, sampling defaults.

    Args:
        app: the intent.
        host: what the machine offers; found out by default.

    Raises:
        ConfigError: model, tokenizer or template cannot be found, or values contradict each other or the checkpoint.
    """
    if app.hub.tensor_parallel_size not in (None, 1):
        raise ConfigError(
            f"tensor_parallel_size {app.hub.tensor_parallel_size} is more than the one device that the native engine "
            "runs on in this version; remove --tensor-parallel-size or set it to 1."
        )
    host = Machine(machine.usable_cores(), machine.usable_memory()) if host is None else host
    decisions: dict[str, Decision] = {}
    path, names = _find_model(app, decisions)
    spec = read_model_spec(path)
    engine, lora_serving = _engine(app, (path, names), spec, host, decisions)
    frontend = FrontendConfig(
        AdmissionConfig(app.scheduler.max_num_queued_reqs, app.scheduler.max_num_queued_tokens),
        default_sampling(app.model.generation_config, app.model.override_generation_config or {}, path),
        ChatTemplateConfig(
            read_chat_template(app.model.chat_template),
            cast("ContentFormatName", app.model.chat_template_content_format),
            default_template_kwargs(app.model.default_chat_template_kwargs),
        ),
        app.server.stream_interval,
        structured_outputs(app.model.structured_outputs_config),
        app.server.reasoning_parser,
        app.server.tool_parser_plugin,
    )
    return ResolvedConfig(app, engine, resolve_server(app.server, lora_serving), frontend, decisions)


def resolve_engine(app: AppConfig, spec: ModelSpec, host: Machine) -> EngineConfig:
    """Returns the engine's configuration for a checkpoint of which only the architecture is known, to plan with.

    Raises:
        ConfigError: values contradict each other or the checkpoint.
    """
    engine, _ = _engine(app, (Path(), ()), spec, host, {})
    return engine


def _engine(
    app: AppConfig,
    checkpoint: tuple[Path, tuple[str, ...]],
    spec: ModelSpec,
    host: Machine,
    decisions: dict[str, Decision],
) -> tuple[EngineConfig, LoRAServingConfig]:
    """Returns the engine's configuration, and what the server does about adapters.

    Args:
        app: the intent.
        checkpoint: its folder and served names.
        spec: what its `config.json` says.
        host: what the machine offers.
        decisions: takes what is looked up.
    """
    path, names = checkpoint
    dtype = _dtype(app, spec, decisions)
    cache = CacheConfig(
        block_size=app.cache.block_size,
        kv_cache_dtype=_kv_cache_dtype(app),
        enable_prefix_caching=app.cache.enable_prefix_caching,
        kv_cache_memory_bytes=app.cache.kv_cache_memory_bytes,
        memory_utilization=app.cache.gpu_memory_utilization,
        num_blocks_override=app.cache.num_gpu_blocks_override,
    )
    scheduler = _scheduler(app, spec, decisions)
    model = ModelConfig(
        path=path,
        tokenizer_path=_tokenizer_path(app, path),
        spec=spec,
        dtype=dtype,
        max_model_len=_max_model_len(app, spec, decisions),
        quantization=_quantization(app, spec, decisions),
        load_format=cast("LoadFormat", app.model.load_format),
        seed=app.model.seed,
        max_logprobs=app.model.max_logprobs,
        served_model_names=names,
    )
    device = _device(app, host.num_cores, decisions)
    speculation, num_draft_tokens = resolve_speculation(app.speculation, model, device)
    scheduler = replace(scheduler, num_draft_tokens=num_draft_tokens)
    lora, lora_serving = _lora(app, names, decisions)
    engine = EngineConfig(
        model, cache, scheduler, device, _prepared(app, decisions), speculation, app.model.logits_processors, lora
    )
    if app.model.max_model_len == _AUTO_LENGTH:
        engine = _fitted(engine, host.memory, decisions)
    return engine, lora_serving


def _find_model(app: AppConfig, decisions: dict[str, Decision]) -> tuple[Path, tuple[str, ...]]:
    """Returns the checkpoint folder and the served names."""
    given, path = app.model.model, local_folder(app)
    if path is None:
        raise ConfigError(f"There is no folder '{given}'; name one, or no model for the built-in one.")
    if path.is_file():
        raise ConfigError(f"--model names the file '{given}'; give the folder of a checkpoint in Hugging Face layout.")
    if given in builtin.BUILTIN_ALIASES and path == builtin.model_path():
        given = None
    if given is None:
        decisions["model"] = Decision(builtin.BUILTIN_MODEL_NAME, "built-in model")
    names = app.model.served_model_name
    if not names:
        names = (builtin.BUILTIN_MODEL_NAME if given is None else given,)
        decisions["served_model_name"] = Decision(names, "from the model")
    return path.resolve(), names


def _tokenizer_path(app: AppConfig, model_path: Path) -> Path:
    if app.model.tokenizer is None:
        return model_path
    path = Path(os.path.expanduser(app.model.tokenizer))
    if not os.path.exists(path):
        raise ConfigError(f"--tokenizer names '{app.model.tokenizer}', which is no folder or file on this machine.")
    return path.resolve()


def _dtype(app: AppConfig, spec: ModelSpec, decisions: dict[str, Decision]) -> DType:
    given = app.model.dtype
    if given != "auto":
        return _DTYPE_ALIASES.get(given, cast("DType", given))
    decisions["dtype"] = Decision(spec.checkpoint_dtype, "checkpoint")
    return spec.checkpoint_dtype


def _quantization(app: AppConfig, spec: ModelSpec, decisions: dict[str, Decision]) -> Quantization:
    """Returns what plain weights are converted to; weights that are int4 in the checkpoint stay so."""
    given = app.model.quantization
    found = "none" if spec.int4 is None else spec.int4.method
    if given == "auto":
        decisions["quantization"] = Decision(found, "checkpoint")
    elif given != found and (given != "int8" or spec.int4 is not None):
        weights = "are not quantised" if spec.int4 is None else f"are int4 already ({found})"
        raise ConfigError(f"--quantization {given} does not fit the checkpoint, whose weights {weights}; leave it out.")
    if (spec.int4 is not None or given == "int8") and app.device.device == "cuda":
        kind = "int8" if spec.int4 is None else "int4"
        raise ConfigError(f"{kind} weights need --device cpu: there are no {kind} kernels for CUDA in this version.")
    return "int8" if given == "int8" else "none"


def _kv_cache_dtype(app: AppConfig) -> KVCacheDType:
    if app.cache.kv_cache_dtype != "auto" and app.device.device == "cuda":
        raise ConfigError(
            "--kv-cache-dtype int8 needs --device cpu: there are no int8 kernels for CUDA in this version; use auto."
        )
    return cast("KVCacheDType", app.cache.kv_cache_dtype)


def _max_model_len(app: AppConfig, spec: ModelSpec, decisions: dict[str, Decision]) -> int:
    """Returns the length asked for; the checkpoint's where none or an automatic one is."""
    given, limit = app.model.max_model_len, spec.max_position_embeddings
    if given is None or given == _AUTO_LENGTH:
        decisions["max_model_len"] = Decision(limit, "checkpoint")
        return limit
    if given > limit:
        raise ConfigError(f"--max-model-len {given} is more than the checkpoint's limit of {limit} tokens; lower it.")
    return given


def _fitted(engine: EngineConfig, memory: machine.Memory, decisions: dict[str, Decision]) -> EngineConfig:
    """Shortens the context to what has room in memory."""
    length = longest_model_len(engine, memory)
    if length < engine.cache.block_size:
        raise ConfigError(
            "--max-model-len auto finds no room for a KV cache beside the weights; raise --gpu-memory-utilization "
            "or --kv-cache-memory-bytes, or serve a smaller model."
        )
    if length < engine.model.max_model_len:
        decisions["max_model_len"] = Decision(length, "fits into memory")
    return replace(
        engine,
        model=replace(engine.model, max_model_len=length),
        speculation=shortened(engine.speculation, length),
    )


def _scheduler(app: AppConfig, spec: ModelSpec, decisions: dict[str, Decision]) -> SchedulerConfig:
    options, given_len = app.scheduler, app.model.max_model_len
    needed, why = options.max_num_seqs, "--max-num-seqs"
    if not options.enable_chunked_prefill:
        longest = spec.max_position_embeddings if given_len in (None, _AUTO_LENGTH) else given_len
        if longest is not None and longest > needed:
            needed, why = longest, "--max-model-len without chunked prefill"
    budget = options.max_num_batched_tokens
    if budget is None:
        default = _CUDA_TOKEN_BUDGET if app.device.device == "cuda" else _CPU_TOKEN_BUDGET
        budget = max(default, needed)
        decisions["max_num_batched_tokens"] = Decision(budget, why if budget > default else "default")
    elif budget < needed:
        raise ConfigError(f"--max-num-batched-tokens {budget} is less than the {needed} that {why} needs; raise it.")
    return SchedulerConfig(
        max_num_batched_tokens=budget,
        max_num_seqs=options.max_num_seqs,
        enable_chunked_prefill=options.enable_chunked_prefill,
        long_prefill_token_threshold=options.long_prefill_token_threshold,
        policy=cast("SchedulingPolicy", options.scheduling_policy),
    )


def _device(app: AppConfig, num_cores: int, decisions: dict[str, Decision]) -> DeviceConfig:
    device, num_threads = app.device.device, app.device.num_threads
    if device == "auto":
        device = "cpu"
        decisions["device"] = Decision(device, "default")
    if num_threads is None:
        num_threads = num_cores
        decisions["num_threads"] = Decision(num_threads, "physical cores of this process")
    return DeviceConfig(device, num_threads, app.device.deterministic)


def _prepared(app: AppConfig, decisions: dict[str, Decision]) -> PreparedConfig | None:
    folder = app.model.cache_path
    if folder is None:
        folder = machine.cache_folder()
        decisions["cache_path"] = Decision(folder, "default" if folder else "there is no home folder")
    if not app.model.prepared_weights or folder is None:
        return None
    return PreparedConfig(folder.absolute() / "prepared", app.model.prepared_weights_limit)


def _lora(
    app: AppConfig, names: tuple[str, ...], decisions: dict[str, Decision]
) -> tuple[LoRAConfig | None, LoRAServingConfig]:
    lora, serving = resolve_lora(app.lora, app.origins, names)
    if lora is not None and not app.lora.enable_lora:
        decisions["enable_lora"] = Decision(True, f"for {lora_reason(app.lora)}")
    if lora is not None and lora.max_cpu_loras != app.lora.max_cpu_loras:
        decisions["max_cpu_loras"] = Decision(lora.max_cpu_loras, "as many as --max-loras")
    return lora, serving
