"""The one registry of flags: each option of the server and of `LLM` as a typed field with its flag's facts."""

# ruff: noqa: RUF009 - the calls return dataclasses.field()

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vllm_mxext.config import values
from vllm_mxext.config.int4_spec import INT4_METHODS
from vllm_mxext.config.lora_modules import lora_modules
from vllm_mxext.config.server import LoRAModule
from vllm_mxext.config.values import ValueKind
from vllm_mxext.envs import FLAG_PREFIX

_METADATA_KEY = "flag"


@dataclass(frozen=True, slots=True)
class FlagFacts:
    """What the registry knows of a flag besides its name and default.

    Attributes:
        kind: its values.
        help: one sentence for help and documentation.
        variables: environment variables that set it besides `VLLM_MXEXT_<NAME>`.
        is_secret: never print the value.
        is_offline: also a keyword argument of `LLM`.
    """

    kind: ValueKind
    help: str
    variables: tuple[str, ...] = ()
    is_secret: bool = False
    is_offline: bool = True


@dataclass(frozen=True, slots=True)
class Flag:
    """One flag of the registry.

    Attributes:
        group: the group's name, a field of `AppConfig`.
        field: name of the dataclass field and keyword argument.
        default: value when nothing sets it.
        facts: the rest.
    """

    group: str
    field: str
    default: Any
    facts: FlagFacts

    @property
    def name(self) -> str:
        """The long flag without dashes in front: `max-model-len`."""
        return self.field.replace("_", "-")

    @property
    def variables(self) -> tuple[str, ...]:
        """Environment variables that set it, the strongest first."""
        return (FLAG_PREFIX + self.field.upper(), *self.facts.variables)


def _flag(default: Any, kind: ValueKind, help_text: str, **facts: Any) -> Any:
    return field(default=default, metadata={_METADATA_KEY: FlagFacts(kind, help_text, **facts)})


def _server_flag(default: Any, kind: ValueKind, help_text: str, **facts: Any) -> Any:
    return _flag(default, kind, help_text, is_offline=False, **facts)


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """How the server listens, answers and logs."""

    host: str = _server_flag("127.0.0.1", values.text("ADDRESS"), "Address to listen on; 0.0.0.0 is every interface.")
    port: int = _server_flag(8000, values.integer(0, 65535), "Port to listen on; 0 lets the system choose one.")
    uds: str | None = _server_flag(None, values.text("PATH"), "Unix domain socket to listen on instead of a port.")
    api_key: tuple[str, ...] = _server_flag(
        (), values.text_list("KEY", separator=None), "Key that clients must present; repeat it for several keys.",
        variables=("VLLM_API_KEY",), is_secret=True,
    )  # fmt: skip
    metrics_without_key: bool = _server_flag(False, values.switch(), "Let /metrics be read without a key.")
    root_path: str = _server_flag("", values.text("PATH"), "Path prefix under which a proxy publishes the server.")
    ssl_keyfile: Path | None = _server_flag(None, values.path(), "Private key file for HTTPS.")
    ssl_certfile: Path | None = _server_flag(None, values.path(), "Certificate file for HTTPS.")
    ssl_ca_certs: Path | None = _server_flag(None, values.path(), "CA file that client certificates are checked with.")
    ssl_cert_reqs: int = _server_flag(
        0, values.integer(0, 2), "Client certificates: 0 = not asked for, 1 = optional, 2 = required."
    )
    allowed_origins: tuple[str, ...] = _server_flag(("*",), values.text_list("ORIGIN"), "CORS: origins let in.")
    allowed_methods: tuple[str, ...] = _server_flag(("*",), values.text_list("METHOD"), "CORS: methods let in.")
    allowed_headers: tuple[str, ...] = _server_flag(("*",), values.text_list("HEADER"), "CORS: headers let in.")
    allow_credentials: bool = _server_flag(False, values.switch(), "CORS: let browsers send credentials.")
    middleware: tuple[str, ...] = _server_flag(
        (), values.text_list("MODULE.NAME", separator=None),
        "ASGI middleware class, or coroutine function (request, call_next), around the routes; may be repeated.",
    )  # fmt: skip
    trust_request_chat_template: bool = _server_flag(
        False, values.switch(), "Let requests bring their own chat template."
    )
    response_role: str = _server_flag("assistant", values.text("ROLE"), "Role of the messages the model writes.")
    enable_auto_tool_choice: bool = _server_flag(
        False, values.switch(), "Let the model choose on its own whether to call tools."
    )
    tool_call_parser: str | None = _server_flag(
        None, values.text("NAME"),
        "Parser of tool calls; auto is what the chat template suggests, the default with --enable-auto-tool-choice.",
    )  # fmt: skip
    tool_parser_plugin: Path | None = _flag(
        None, values.path(), "Python file with further parsers, in TOOL_PARSERS and REASONING_PARSERS."
    )
    reasoning_parser: str | None = _flag(
        None, values.text("NAME"),
        "Parser of reasoning; auto is what the chat template suggests. `thinking_token_budget` needs one.",
    )  # fmt: skip
    exclude_tools_when_tool_choice_none: bool = _server_flag(
        False, values.switch(), "Do not show the tools to the model when tool_choice is none."
    )
    enable_force_include_usage: bool = _server_flag(
        False, values.switch(), "End every stream with its usage, asked for or not."
    )
    return_tokens_as_token_ids: bool = _server_flag(
        False, values.switch(), "Name tokens in log probabilities by id, `token_id:123`, asked for or not."
    )
    enable_per_request_metrics: bool = _server_flag(
        False, values.switch(), "Report times and drafts of each request in `metrics` of its response."
    )
    strict_params: bool = _server_flag(
        False, values.switch(), "Refuse requests with fields that the server does not know, instead of ignoring them."
    )
    disable_fastapi_docs: bool = _server_flag(False, values.switch(), "Switch off /docs, /redoc and /openapi.json.")
    enable_log_requests: bool = _server_flag(False, values.switch(), "Log each request's id and parameters.")
    enable_log_outputs: bool = _server_flag(False, values.switch(), "Log each request's output when it has ended.")
    max_log_len: int | None = _server_flag(
        None, values.integer(0), "Characters of a prompt or output in the log at most; prompts appear at DEBUG only."
    )
    disable_access_log_for_endpoints: tuple[str, ...] = _server_flag(
        (), values.text_list("PATH"), "Paths that the access log leaves out, such as /health,/metrics."
    )
    log_config_file: Path | None = _server_flag(
        None, values.path(), "JSON or YAML file for `logging.config.dictConfig`.",
        variables=("VLLM_MXEXT_LOGGING_CONFIG_PATH",),
    )  # fmt: skip
    uvicorn_log_level: str = _server_flag(
        "warning", values.choice("critical", "error", "warning", "info", "debug", "trace"),
        "Least severe level that the HTTP library logs.",
    )  # fmt: skip
    shutdown_timeout: float = _server_flag(
        30.0, values.seconds(), "Seconds that open requests may go on after SIGTERM."
    )
    sse_keep_alive_interval: float = _server_flag(
        15.0, values.seconds(), "Seconds of silence after which a stream sends a comment; 0 = never."
    )
    stream_interval: int = _server_flag(
        1, values.integer(1), "Tokens per chunk of a stream, unless the request says; the first one comes at once."
    )
    max_request_body_bytes: int = _server_flag(32 * 2**20, values.byte_size(1), "Largest request body.")


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """Which model is served and how."""

    model: str | None = _flag(
        None, values.text("FOLDER"), "Folder of the checkpoint; without one the built-in model is used.",
        variables=("MIM_MODEL_NAME",),
    )  # fmt: skip
    served_model_name: tuple[str, ...] = _flag(
        (), values.text_list("NAME"), "Names the API answers to, the first one is reported; default: --model as given."
    )
    tokenizer: str | None = _flag(None, values.text("FOLDER"), "Folder of the tokenizer, if not the model's.")
    chat_template: str | None = _flag(
        None, values.text("FILE|NAME"),
        "Chat template instead of the tokenizer's: a file, the template itself, or the name of one of the tokenizer's.",
    )  # fmt: skip
    chat_template_content_format: str = _flag(
        "auto", values.choice("auto", "string", "openai"),
        "Form of message content for the template: text, OpenAI's lists of parts, or what its loops ask for.",
    )  # fmt: skip
    default_chat_template_kwargs: dict[str, Any] | None = _flag(
        None, values.json_object(), "Variables of the chat template that a request does not set."
    )
    dtype: str = _flag(
        "auto", values.choice("auto", "bfloat16", "float16", "half", "float32", "float"),
        "Element type of weights and activations; auto is the checkpoint's.",
    )  # fmt: skip
    quantization: str = _flag(
        "auto", values.choice("auto", "none", "int8", *INT4_METHODS),
        "Weights of linear layers: auto keeps the checkpoint's, int4 ones (gptq, awq, compressed-tensors) included; "
        "int8 converts plain ones at load, at half the memory of bfloat16 and some loss (CPU).",
    )  # fmt: skip
    max_model_len: int | None = _flag(
        None, values.integer(1, special={"auto": -1, "-1": -1}),
        "Tokens of prompt plus output at most; default: the checkpoint's limit; auto or -1: what fits into memory.",
    )  # fmt: skip
    seed: int = _flag(0, values.integer(0, 2**63 - 1), "Seed of dummy weights, and offline of requests without a seed.")
    load_format: str = _flag(
        "auto", values.choice("auto", "safetensors", "dummy"), "How weights are read; dummy makes random ones."
    )
    prepared_weights: bool = _flag(
        True, values.switch(), "Keep packed weights in a file, so that later starts need not read and pack them again."
    )
    prepared_weights_limit: int = _flag(
        20 * 2**30, values.byte_size(1), "Size of all these files together; those used longest ago make room."
    )
    cache_path: Path | None = _flag(
        None, values.path(), "Folder for what later starts can use; default: $XDG_CACHE_HOME or ~/.cache, vllm_mxext.",
        variables=("MIM_CACHE_PATH",),
    )  # fmt: skip
    generation_config: str = _flag(
        "auto", values.text("auto|vllm|FOLDER"),
        "Where default sampling parameters come from: auto is the model's folder, vllm is none.",
    )  # fmt: skip
    override_generation_config: dict[str, Any] | None = _flag(
        None, values.json_object(), "Default sampling parameters that replace those of the generation config."
    )
    structured_outputs_config: dict[str, Any] | None = _flag(
        None, values.json_object(),
        'Rules for structured output: {"disable_any_whitespace": true} and {"disable_additional_properties": true} '
        "concern JSON; backend may be auto or guidance.",
    )  # fmt: skip
    logits_processors: tuple[str, ...] = _flag(
        (), values.text_list("MODULE:CLASS"), "Plug-ins that change logits, besides the installed ones."
    )
    max_logprobs: int = _flag(
        20, values.integer(0, special={"-1": -1}), "Largest number of log probabilities per token; -1 = no limit."
    )


@dataclass(frozen=True, slots=True)
class CacheOptions:
    """KV cache."""

    block_size: int = _flag(16, values.integer(1, 256), "Token positions per KV block.")
    kv_cache_dtype: str = _flag(
        "auto", values.choice("auto", "int8"),
        "What keys and values are kept as: auto is --dtype; int8 takes half of bfloat16's memory, at some loss (CPU).",
    )  # fmt: skip
    enable_prefix_caching: bool = _flag(True, values.switch(), "Reuse KV blocks of equal prefixes.")
    kv_cache_memory_bytes: int | None = _flag(
        None, values.byte_size(1), "Size of the KV cache, such as 2GiB; default: chosen by the memory plan."
    )
    gpu_memory_utilization: float = _flag(
        0.92, values.number(0, 1), "Share of the device's memory that may be used in all; on CPU, of the main memory."
    )
    num_gpu_blocks_override: int | None = _flag(None, values.integer(2), "Exact number of KV blocks, for tests.")


@dataclass(frozen=True, slots=True)
class SchedulerOptions:
    """Batching, queue and its limits."""

    max_num_batched_tokens: int | None = _flag(
        None,
        values.integer(1),
        "Token budget of one step; default: 512 on cpu, 2048 on cuda, or more if --max-num-seqs needs it.",
    )
    max_num_seqs: int = _flag(128, values.integer(1), "Requests running at once.")
    enable_chunked_prefill: bool = _flag(
        True, values.switch(), "Cut long prompts over several steps; otherwise the budget is at least --max-model-len."
    )
    long_prefill_token_threshold: int = _flag(
        0, values.integer(0), "Tokens of one prompt per step at most; 0 = no limit."
    )
    scheduling_policy: str = _flag("fcfs", values.choice("fcfs", "priority"), "Order of the waiting queue.")
    max_num_queued_reqs: int | None = _server_flag(
        1024, values.integer(0, special={"none": None}), "Requests waiting at most; more get 429. none = no limit."
    )
    max_num_queued_tokens: int | None = _server_flag(
        None, values.integer(0, special={"none": None}), "Prompt tokens waiting at most; none = no limit."
    )


@dataclass(frozen=True, slots=True)
class SpeculationOptions:
    """Draft tokens: several tokens per step, with the same tokens as result."""

    speculative_config: dict[str, Any] | None = _flag(
        None,
        values.json_object(),
        "Where draft tokens come from, with vLLM's keys: method (ngram, draft_model), num_speculative_tokens, "
        "prompt_lookup_min and prompt_lookup_max (ngram), model and quantization (draft_model).",
    )
    spec_method: str | None = _flag(
        None, values.choice("ngram", "draft_model"), "The same as method in --speculative-config."
    )
    spec_model: str | None = _flag(None, values.text("FOLDER"), "The same as model in --speculative-config.")
    spec_tokens: int | None = _flag(
        None, values.integer(1, 64), "The same as num_speculative_tokens in --speculative-config."
    )


@dataclass(frozen=True, slots=True)
class LoRAOptions:
    """LoRA adapters."""

    enable_lora: bool = _flag(
        False, values.switch(), "Serve LoRA adapters; on as well if another flag or variable asks for them."
    )
    max_loras: int = _flag(
        8, values.integer(1), "Adapters that running requests use at once; requests for others wait.",
        variables=("VLLM_MAX_LORAS", "MIM_MAX_GPU_LORAS"),
    )  # fmt: skip
    max_lora_rank: int = _flag(32, values.integer(1), "Largest rank of an adapter.", variables=("VLLM_MAX_LORA_RANK",))
    max_cpu_loras: int = _flag(
        16, values.integer(1), "Adapters in main memory, at least --max-loras; others are read again when needed.",
        variables=("MIM_MAX_CPU_LORAS",),
    )  # fmt: skip
    lora_allow_pickle: bool = _flag(
        False, values.switch(), "Read adapter files that have to be unpickled too; those of strangers can do harm."
    )
    lora_modules: tuple[LoRAModule, ...] = _server_flag(
        (), lora_modules(),
        'Adapters served from the start: NAME=PATH, or {"name": ..., "path": ..., "base_model_name": ...}.',
    )  # fmt: skip
    lora_config: Path | None = _server_flag(
        None, values.path(), "YAML file with the base model, adapters and settings of LoRA (docs/lora.md); flags win."
    )
    allow_runtime_lora_updating: bool = _server_flag(
        False, values.switch(), "Let requests load and unload adapters; only for clients who may read any file.",
        variables=("VLLM_ALLOW_RUNTIME_LORA_UPDATING",),
    )  # fmt: skip
    lora_dir: Path | None = _server_flag(
        None, values.path(), "Folder whose adapters are served: new ones are loaded, changed ones loaded again."
    )
    lora_refresh_interval: float = _server_flag(
        5.0, values.number(0, 86_400), "Seconds between two looks at --lora-dir."
    )


@dataclass(frozen=True, slots=True)
class DeviceOptions:
    """Where the model runs."""

    device: str = _flag(
        "auto",
        values.choice("auto", "cpu", "cuda"),
        "Device; auto is cpu. On cuda everything goes through PyTorch, which is untested.",
    )
    num_threads: int | None = _flag(
        None, values.integer(1), "CPU threads that compute; default: the physical cores this process may use."
    )
    deterministic: bool = _flag(
        False, values.switch(),
        "Make logits the same bits alone and in any batch: compiled kernels always do, PyTorch goes token by token.",
        variables=("VLLM_BATCH_INVARIANT",),
    )  # fmt: skip


GROUPS: tuple[tuple[str, type], ...] = (
    ("server", ServerOptions),
    ("model", ModelOptions),
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
        for entry in dataclasses.fields(options):
            yield Flag(group, entry.name, entry.default, entry.metadata[_METADATA_KEY])
