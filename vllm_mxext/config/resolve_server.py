"""`resolve_server()`: the server's flags become its concrete configuration, in which no model has a say."""

from __future__ import annotations

from pathlib import Path

from vllm_mxext.config.options import ServerOptions
from vllm_mxext.config.server import CorsConfig, LoRAServingConfig, ParserConfig, ServerConfig, TlsConfig
from vllm_mxext.errors import ConfigError


def resolve_server(options: ServerOptions, lora: LoRAServingConfig | None = None) -> ServerConfig:
    """Returns how the server listens, answers, guards and logs.

    Args:
        options: its flags.
        lora: what it does about adapters; None leaves them out.

    Raises:
        ConfigError: values contradict each other, or a file is missing.
    """
    return ServerConfig(
        host=options.host,
        port=options.port,
        uds=Path(options.uds).expanduser() if options.uds is not None else None,
        tls=_tls(options),
        api_keys=options.api_key,
        metrics_need_key=not options.metrics_without_key,
        root_path=options.root_path,
        cors=CorsConfig(
            options.allowed_origins, options.allowed_methods, options.allowed_headers, options.allow_credentials
        ),
        middleware=options.middleware,
        is_docs_enabled=not options.disable_fastapi_docs,
        max_request_body_bytes=options.max_request_body_bytes,
        sse_keep_alive_s=options.sse_keep_alive_interval,
        shutdown_timeout_s=options.shutdown_timeout,
        trust_request_chat_template=options.trust_request_chat_template,
        response_role=options.response_role,
        parsers=ParserConfig(
            may_choose_tools=options.enable_auto_tool_choice,
            tool_parser=options.tool_call_parser,
            reasoning_parser=options.reasoning_parser,
            plugin=options.tool_parser_plugin,
            hides_unused_tools=options.exclude_tools_when_tool_choice_none,
        ),
        always_includes_usage=options.enable_force_include_usage,
        returns_tokens_as_ids=options.return_tokens_as_token_ids,
        reports_metrics=options.enable_per_request_metrics,
        refuses_unknown_fields=options.strict_params,
        log_outputs=options.enable_log_outputs,
        http_log_level=options.uvicorn_log_level,
        log_requests=options.enable_log_requests,
        max_log_len=options.max_log_len,
        quiet_endpoints=options.disable_access_log_for_endpoints,
        lora=lora or LoRAServingConfig(),
    )


def _tls(options: ServerOptions) -> TlsConfig | None:
    files = {
        "--ssl-certfile": options.ssl_certfile,
        "--ssl-keyfile": options.ssl_keyfile,
        "--ssl-ca-certs": options.ssl_ca_certs,
    }
    for flag, path in files.items():
        if path is not None and not path.is_file():
            raise ConfigError(f"{flag} names '{path}', which is no file on this machine.")
    if options.ssl_certfile is not None:
        return TlsConfig(options.ssl_certfile, options.ssl_keyfile, options.ssl_ca_certs, options.ssl_cert_reqs)
    given = [flag for flag, path in files.items() if path is not None]
    if options.ssl_cert_reqs:
        given.append("--ssl-cert-reqs")
    if given:
        raise ConfigError(f"{given[0]} needs --ssl-certfile, without which there is no HTTPS.")
    return None
