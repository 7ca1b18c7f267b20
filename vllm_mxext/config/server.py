"""Concrete, frozen configuration of the HTTP server: what `resolve()` makes of the user's intent."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class CorsConfig:
    """What browsers of other origins may do.

    Attributes:
        allowed_origins: origins let in; `*` is any, an empty tuple switches CORS off.
        allowed_methods: methods let in.
        allowed_headers: request headers let in.
        allow_credentials: let browsers send cookies and authorization.
    """

    allowed_origins: tuple[str, ...] = ("*",)
    allowed_methods: tuple[str, ...] = ("*",)
    allowed_headers: tuple[str, ...] = ("*",)
    allow_credentials: bool = False


@dataclass(frozen=True, slots=True)
class TlsConfig:
    """Files for HTTPS.

    Attributes:
        certfile: certificate chain, PEM.
        keyfile: private key, PEM; None when `certfile` holds it.
        ca_certs: CA certificates that client certificates are checked with.
        cert_reqs: client certificates: 0 = not asked for, 1 = optional, 2 = required.
    """

    certfile: Path
    keyfile: Path | None = None
    ca_certs: Path | None = None
    cert_reqs: int = 0


@dataclass(frozen=True, slots=True)
class ParserConfig:
    """How tool calls and reasoning are found in outputs.

    Attributes:
        may_choose_tools: the model may choose on its own to call tools.
        tool_parser: name of the tool parser, or `auto`; None = none, or `auto` if the model may choose tools.
        reasoning_parser: name of the reasoning parser, or `auto`; None = none.
        plugin: Python file with further parsers.
        hides_unused_tools: tools are not shown to the model when it must not call any.
    """

    may_choose_tools: bool = False
    tool_parser: str | None = None
    reasoning_parser: str | None = None
    plugin: Path | None = None
    hides_unused_tools: bool = False


@dataclass(frozen=True, slots=True)
class LoRAModule:
    """An adapter that the server knows.

    Attributes:
        name: what requests call it.
        path: its folder or file.
        base_model_name: the model it was made for; only reported.
        format: of its files: `huggingface`, `nemo`, `trtllm` or `gguf`; None = found out.
        description: for people.
        is_loaded_at_start: served as soon as the server is; otherwise it can be loaded later by its name alone.
    """

    name: str
    path: str
    base_model_name: str | None = None
    format: str | None = None
    description: str | None = None
    is_loaded_at_start: bool = True

    def __str__(self) -> str:
        return f"{self.name}={self.path}"


@dataclass(frozen=True, slots=True)
class LoRAServingConfig:
    """Which adapters the server has and how they change.

    Attributes:
        modules: adapters that the server knows from the start.
        allows_updates: requests may load and unload adapters.
        folder: the adapters in its folders are served too; None = no such folder.
        refresh_s: seconds between two looks at it.
    """

    modules: tuple[LoRAModule, ...] = ()
    allows_updates: bool = False
    folder: Path | None = None
    refresh_s: float = 5.0


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """How the server listens, answers, guards and logs.

    Attributes:
        host: address to listen on.
        port: port to listen on; 0 lets the system choose.
        uds: Unix domain socket to listen on instead of host and port.
        tls: HTTPS files, or None for plain HTTP.
        api_keys: keys of which clients must present one; none = open to everybody.
        metrics_need_key: `/metrics` asks for a key too when there are keys.
        root_path: path prefix under which a proxy publishes the server.
        cors: what browsers of other origins may do.
        middleware: import paths of further layers around the routes, the outermost first.
        is_docs_enabled: serve `/docs`, `/redoc` and `/openapi.json`.
        max_request_body_bytes: largest request body.
        sse_keep_alive_s: silence in seconds after which a stream sends a comment; 0 = never.
        shutdown_timeout_s: seconds that open requests may go on after the first signal.
        health_timeout_s: seconds within which the engine must answer a health check.
        trust_request_chat_template: let requests bring their own chat template.
        response_role: role of the messages the model writes.
        parsers: how tool calls and reasoning are found.
        always_includes_usage: every stream ends with its usage, asked for or not.
        returns_tokens_as_ids: log probabilities name tokens by id, asked for or not.
        reports_metrics: responses carry times and drafts of their request.
        refuses_unknown_fields: requests with fields that nothing reads are refused.
        http_log_level: least severe level that the HTTP library logs.
        log_requests: log each request's id and parameters at INFO.
        log_outputs: log each request's output at INFO.
        max_log_len: characters of a prompt or output in the log at most; None = no limit. Prompts appear at DEBUG only.
        quiet_endpoints: paths that the access log leaves out.
        lora: adapters.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    uds: Path | None = None
    tls: TlsConfig | None = None
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    metrics_need_key: bool = True
    root_path: str = ""
    cors: CorsConfig = field(default_factory=CorsConfig)
    middleware: tuple[str, ...] = ()
    is_docs_enabled: bool = True
    max_request_body_bytes: int = 32 * 2**20
    sse_keep_alive_s: float = 15.0
    shutdown_timeout_s: float = 30.0
    health_timeout_s: float = 5.0
    trust_request_chat_template: bool = False
    response_role: str = "assistant"
    parsers: ParserConfig = field(default_factory=ParserConfig)
    always_includes_usage: bool = False
    returns_tokens_as_ids: bool = False
    reports_metrics: bool = False
    refuses_unknown_fields: bool = False
    http_log_level: str = "warning"
    log_requests: bool = False
    log_outputs: bool = False
    max_log_len: int | None = None
    quiet_endpoints: tuple[str, ...] = ()
    lora: LoRAServingConfig = field(default_factory=LoRAServingConfig)
