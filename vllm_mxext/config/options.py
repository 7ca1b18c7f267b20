"""The one registry of flags: each option of the server and of `LLM` as a typed field with its flag's facts."""

# ruff: noqa: RUF009 - the calls return dataclasses.field()

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_mxext.config import values
from vllm_mxext.config.flags import Flag, flag, flags_of, server_flag
from vllm_mxext.config.hub_options import HubOptions
from vllm_mxext.config.int4_spec import INT4_METHODS
from vllm_mxext.config.lora_modules import lora_modules
from vllm_mxext.config.server import LoRAModule


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """How the server listens, answers and logs."""

    host: str = server_flag("127.0.0.1", values.text("ADDRESS"), "Address to listen on; 0.0.0.0 is every interface.")
    port: int = server_flag(8000, values.integer(0, 65535), "Port to listen on; 0 lets the system choose one.")
    uds: str | None = server_flag(None, values.text("PATH"), "Unix domain socket to listen on instead of a port.")
    api_key: tuple[str, ...] = server_flag(
        (), values.text_list("KEY", separator=None), "Key that clients must present; repeat it for several keys.",
        variables=("VLLM_API_KEY",), is_secret=True,
    )  # fmt: skip
    metrics_without_key: bool = server_flag(False, values.switch(), "Let /metrics be read without a key.")
    root_path: str = server_flag("", values.text("PATH"), "Path prefix under which a proxy publishes the server.")
    ssl_keyfile: Path | None = server_flag(None, values.path(), "Private key file for HTTPS.")
    ssl_certfile: Path | None = server_flag(None, values.path(), "Certificate file for HTTPS.")
    ssl_ca_certs: Path | None = server_flag(None, values.path(), "CA file that client certificates are checked with.")
    ssl_cert_reqs: int = server_flag(
        0, values.integer(0, 2), "Client certificates: 0 = not asked for, 1 = optional, 2 = required."
    )
    allowed_origins: tuple[str, ...] = server_flag(("*",), values.text_list("ORIGIN"), "CORS: origins let in.")
    allowed_methods: tuple[str, ...] = server_flag(("*",), values.text_list("METHOD"), "CORS: methods let in.")
    allowed_headers: tuple[str, ...] = server_flag(("*",), values.text_list("HEADER"), "CORS: headers let in.")
    allow_credentials: bool = server_flag(False, values.switch(), "CORS: let browsers send credentials.")
    middleware: tuple[str, ...] = server_flag(
        (), values.text_list("MODULE.NAME", separator=None),
        "ASGI middleware class, or coroutine function (request, call_next), around the routes; may be repeated.",
    )  # fmt: skip
    trust_request_chat_template: bool = server_flag(
        False, values.switch(), "Let requests bring their own chat template."
    )
    response_role: str = server_flag("assistant", values.text("ROLE"), "Role of the messages the model writes.")
    enable_auto_tool_choice: bool = server_flag(
        False, values.switch(), "Let the model choose on its own whether to call tools."
    )
    tool_call_parser: str | None = server_flag(
        None, values.text("NAME"),
        "Parser of tool calls; auto is what the chat template suggests, the default with --enable-auto-tool-choice.",
    )  # fmt: skip
    tool_parser_plugin: Path | None = flag(
        None, values.path(), "Python file with further parsers, in TOOL_PARSERS and REASONING_PARSERS."
    )
    reasoning_parser: str | None = flag(
        None, values.text("NAME"),
        "Parser of reasoning; auto is what the chat template suggests. `thinking_token_budget` needs one.",
    )  # fmt: skip
    exclude_tools_when_tool_choice_none: bool = server_flag(
        False, values.switch(), "Do not show the tools to the model when tool_choice is none."
    )
    enable_force_include_usage: bool = server_flag(
        False, values.switch(), "End every stream with its usage, asked for or not."
    )
    return_tokens_as_token_ids: bool = server_flag(
        False, values.switch(), "Name tokens in log probabilities by id, `token_id:123`, asked for or not."
    )
    enable_per_request_metrics: bool = server_flag(
        False, values.switch(), "Report times and drafts of each request in `metrics` of its response."
    )
    strict_params: bool = server_flag(
        False, values.switch(), "Refuse requests with fields that the server does not know, instead of ignoring them."
    )
    disable_fastapi_docs: bool = server_flag(False, values.switch(), "Switch off /docs, /redoc and /openapi.json.")
    enable_log_requests: bool = server_flag(False, values.switch(), "Log each request's id and parameters.")
    enable_log_outputs: bool = server_flag(False, values.switch(), "Log each request's output when it has ended.")
    max_log_len: int | None = server_flag(
        None, values.integer(0), "Characters of a prompt or output in the log at most; prompts appear at DEBUG only."
    )
    disable_access_log_for_endpoints: tuple[str, ...] = server_flag(
        (), values.text_list("PATH"), "Paths that the access log leaves out, such as /health,/metrics."
    )
    log_config_file: Path | None = server_flag(
        None, values.path(), "JSON or YAML file for `logging.config.dictConfig`.",
        variables=("VLLM_MXEXT_LOGGING_CONFIG_PATH",),
    )  # fmt: skip
    uvicorn_log_level: str = server_flag(
        "warning", values.choice("critical", "error", "warning", "info", "debug", "trace"),
        "Least severe level that the HTTP library logs.",
    )  # fmt: skip
    shutdown_timeout: float = server_flag(30.0, values.seconds(), "Seconds that open requests may go on after SIGTERM.")
    sse_keep_alive_interval: float = server_flag(
        15.0, values.seconds(), "Seconds of silence after which a stream sends a comment; 0 = never."
    )
    stream_interval: int = server_flag(
        1, values.integer(1), "Tokens per chunk of a stream, unless the request says; the first one comes at once."
    )
    max_request_body_bytes: int = server_flag(32 * 2**20, values.byte_size(1), "Largest request body.")


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """Which model is served and how."""

    model: str | None = flag(
        None, values.text("NAME|URI|FOLDER"),
        "Model: a name of the manifest, ORG/NAME or URI of a source (docs/hub.md), or the folder of a checkpoint; "
        "without one the built-in model is used.",
        variables=("MIM_MODEL_NAME", "NIM_MODEL_PATH"),
    )  # fmt: skip
    served_model_name: tuple[str, ...] = flag(
        (), values.text_list("NAME"), "Names the API answers to, the first one is reported; default: --model as given.",
        variables=("MIM_SERVED_MODEL_NAME", "NIM_SERVED_MODEL_NAME"),
    )  # fmt: skip
    tokenizer: str | None = flag(None, values.text("FOLDER"), "Folder of the tokenizer, if not the model's.")
    chat_template: str | None = flag(
        None, values.text("FILE|NAME"),
        "Chat template instead of the tokenizer's: a file, the template itself, or the name of one of the tokenizer's.",
    )  # fmt: skip
    chat_template_content_format: str = flag(
        "auto", values.choice("auto", "string", "openai"),
        "Form of message content for the template: text, OpenAI's lists of parts, or what its loops ask for.",
    )  # fmt: skip
    default_chat_template_kwargs: dict[str, Any] | None = flag(
        None, values.json_object(), "Variables of the chat template that a request does not set."
    )
    dtype: str = flag(
        "auto", values.choice("auto", "bfloat16", "float16", "half", "float32", "float"),
        "Element type of weights and activations; auto is the checkpoint's.",
    )  # fmt: skip
    quantization: str = flag(
        "auto", values.choice("auto", "none", "int8", *INT4_METHODS),
        "Weights of linear layers: auto keeps the checkpoint's, int4 ones (gptq, awq, compressed-tensors) included; "
        "int8 converts plain ones at load, at half the memory of bfloat16 and some loss (CPU).",
    )  # fmt: skip
    max_model_len: int | None = flag(
        None, values.integer(1, special={"auto": -1, "-1": -1}),
        "Tokens of prompt plus output at most; default: the checkpoint's limit; auto or -1: what fits into memory.",
        variables=("MIM_MAX_MODEL_LEN", "NIM_MAX_MODEL_LEN"),
    )  # fmt: skip
    seed: int = flag(0, values.integer(0, 2**63 - 1), "Seed of dummy weights, and offline of requests without a seed.")
    load_format: str = flag(
        "auto", values.choice("auto", "safetensors", "dummy"), "How weights are read; dummy makes random ones."
    )
    prepared_weights: bool = flag(
        True, values.switch(), "Keep packed weights in a file, so that later starts need not read and pack them again."
    )
    prepared_weights_limit: int = flag(
        20 * 2**30, values.byte_size(1), "Size of all these files together; those used longest ago make room."
    )
    cache_path: Path | None = flag(
        None, values.path(), "Folder for what later starts can use; default: $XDG_CACHE_HOME or ~/.cache, vllm_mxext.",
        variables=("MIM_CACHE_PATH", "NIM_CACHE_PATH"),
    )  # fmt: skip
    generation_config: str = flag(
        "auto", values.text("auto|vllm|FOLDER"),
        "Where default sampling parameters come from: auto is the model's folder, vllm is none.",
    )  # fmt: skip
    override_generation_config: dict[str, Any] | None = flag(
        None, values.json_object(), "Default sampling parameters that replace those of the generation config."
    )
    structured_outputs_config: dict[str, Any] | None = flag(
        None, values.json_object(),
        'Rules for structured output: {"disable_any_whitespace": true} and {"disable_additional_properties": true} '
        "concern JSON; backend may be auto or guidance.",
    )  # fmt: skip
    logits_processors: tuple[str, ...] = flag(
        (), values.text_list("MODULE:CLASS"), "Plug-ins that change logits, besides the installed ones."
    )
    max_logprobs: int = flag(
        20, values.integer(0, special={"-1": -1}), "Largest number of log probabilities per token; -1 = no limit."
    )


@dataclass(frozen=True, slots=True)
class CacheOptions:
    """KV cache."""

    block_size: int = flag(16, values.integer(1, 256), "Token positions per KV block.")
    kv_cache_dtype: str = flag(
        "auto", values.choice("auto", "int8"),
        "What keys and values are kept as: auto is --dtype; int8 takes half of bfloat16's memory, at some loss (CPU).",
    )  # fmt: skip
    enable_prefix_caching: bool = flag(True, values.switch(), "Reuse KV blocks of equal prefixes.")
    kv_cache_memory_bytes: int | None = flag(
        None, values.byte_size(1), "Size of the KV cache, such as 2GiB; default: chosen by the memory plan."
    )
    gpu_memory_utilization: float = flag(
        0.92, values.number(0, 1), "Share of the device's memory that may be used in all; on CPU, of the main memory."
    )
    num_gpu_blocks_override: int | None = flag(None, values.integer(2), "Exact number of KV blocks, for tests.")


@dataclass(frozen=True, slots=True)
class SchedulerOptions:
    """Batching, queue and its limits."""

    max_num_batched_tokens: int | None = flag(
        None,
        values.integer(1),
        "Token budget of one step; default: 512 on cpu, 2048 on cuda, or more if --max-num-seqs needs it.",
    )
    max_num_seqs: int = flag(128, values.integer(1), "Requests running at once.")
    enable_chunked_prefill: bool = flag(
        True, values.switch(), "Cut long prompts over several steps; otherwise the budget is at least --max-model-len."
    )
    long_prefill_token_threshold: int = flag(
        0, values.integer(0), "Tokens of one prompt per step at most; 0 = no limit."
    )
    scheduling_policy: str = flag("fcfs", values.choice("fcfs", "priority"), "Order of the waiting queue.")
    max_num_queued_reqs: int | None = server_flag(
        1024, values.integer(0, special={"none": None}), "Requests waiting at most; more get 429. none = no limit."
    )
    max_num_queued_tokens: int | None = server_flag(
        None, values.integer(0, special={"none": None}), "Prompt tokens waiting at most; none = no limit."
    )


@dataclass(frozen=True, slots=True)
class SpeculationOptions:
    """Draft tokens: several tokens per step, with the same tokens as result."""

    speculative_config: dict[str, Any] | None = flag(
        None,
        values.json_object(),
        "Where draft tokens come from, with vLLM's keys: method (ngram, draft_model), num_speculative_tokens, "
        "prompt_lookup_min and prompt_lookup_max (ngram), model and quantization (draft_model).",
    )
    spec_method: str | None = flag(
        None, values.choice("ngram", "draft_model"), "The same as method in --speculative-config."
    )
    spec_model: str | None = flag(None, values.text("FOLDER"), "The same as model in --speculative-config.")
    spec_tokens: int | None = flag(
        None, values.integer(1, 64), "The same as num_speculative_tokens in --speculative-config."
    )


@dataclass(frozen=True, slots=True)
class LoRAOptions:
    """LoRA adapters."""

    enable_lora: bool = flag(
        False, values.switch(), "Serve LoRA adapters; on as well if another flag or variable asks for them."
    )
    max_loras: int = flag(
        8, values.integer(1), "Adapters that running requests use at once; requests for others wait.",
        variables=("VLLM_MAX_LORAS", "MIM_MAX_GPU_LORAS"),
    )  # fmt: skip
    max_lora_rank: int = flag(32, values.integer(1), "Largest rank of an adapter.", variables=("VLLM_MAX_LORA_RANK",))
    max_cpu_loras: int = flag(
        16, values.integer(1), "Adapters in main memory, at least --max-loras; others are read again when needed.",
        variables=("MIM_MAX_CPU_LORAS",),
    )  # fmt: skip
    lora_allow_pickle: bool = flag(
        False, values.switch(), "Read adapter files that have to be unpickled too; those of strangers can do harm."
    )
    lora_modules: tuple[LoRAModule, ...] = server_flag(
        (), lora_modules(),
        'Adapters served from the start: NAME=PATH, or {"name": ..., "path": ..., "base_model_name": ...}.',
    )  # fmt: skip
    lora_config: Path | None = server_flag(
        None, values.path(), "YAML file with the base model, adapters and settings of LoRA (docs/lora.md); flags win."
    )
    allow_runtime_lora_updating: bool = server_flag(
        False, values.switch(), "Let requests load and unload adapters; only for clients who may read any file.",
        variables=("VLLM_ALLOW_RUNTIME_LORA_UPDATING",),
    )  # fmt: skip
    lora_dir: Path | None = server_flag(
        None, values.path(), "Folder whose adapters are served: new ones are loaded, changed ones loaded again.",
        variables=("NIM_PEFT_SOURCE",),
    )  # fmt: skip
    lora_refresh_interval: float = server_flag(
        5.0, values.number(0, 86_400), "Seconds between two looks at --lora-dir."
    )


@dataclass(frozen=True, slots=True)
class DeviceOptions:
    """Where the model runs."""

    device: str = flag(
        "auto",
        values.choice("auto", "cpu", "cuda"),
        "Device; auto is cpu. On cuda everything goes through PyTorch, which is untested.",
    )
    num_threads: int | None = flag(
        None, values.integer(1), "CPU threads that compute; default: the physical cores this process may use."
    )
    deterministic: bool = flag(
        False, values.switch(),
        "Make logits the same bits alone and in any batch: compiled kernels always do, PyTorch goes token by token.",
        variables=("VLLM_BATCH_INVARIANT",),
    )  # fmt: skip


GROUPS: tuple[tuple[str, type], ...] = (
    ("server", ServerOptions),
    ("model", ModelOptions),
    ("hub", HubOptions),
    ("cache", CacheOptions),
    ("scheduler", SchedulerOptions),
    ("speculation", SpeculationOptions),
    ("lora", LoRAOptions),
    ("device", DeviceOptions),
)
"""Fields of `AppConfig` and their types, in the order of help and documentation."""


def all_flags() -> Iterator[Flag]:
    """Yields every flag, in the order of help and documentation."""
    for group, options in GROUPS:
        yield from flags_of(group, options)
