"""Who may ask: browsers of other origins and holders of keys, the same while the model is still being downloaded."""

from __future__ import annotations

from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from vllm_mxext.config.server import CorsConfig, ServerConfig
from vllm_mxext.server.middleware.auth import ApiKeyMiddleware
from vllm_mxext.server.middleware.paths import HEALTH_PATH, LIVE_PATH, METRICS_PATH, READY_PATH

_EXPOSED_HEADERS = ("X-Request-Id", "openai-processing-ms", "Retry-After")


def guards(config: ServerConfig) -> list[Middleware]:
    """Returns the layers that a request passes first, the outermost first."""
    layers = [_cors(config.cors)] if config.cors.allowed_origins else []
    if config.api_keys:
        open_paths = [HEALTH_PATH, LIVE_PATH, READY_PATH]
        if not config.metrics_need_key:
            open_paths.append(METRICS_PATH)
        layers.append(Middleware(ApiKeyMiddleware, config.api_keys, open_paths))
    return layers


def _cors(cors: CorsConfig) -> Middleware:
    return Middleware(
        CORSMiddleware,
        allow_origins=cors.allowed_origins,
        allow_methods=cors.allowed_methods,
        allow_headers=cors.allowed_headers,
        allow_credentials=cors.allow_credentials,
        expose_headers=_EXPOSED_HEADERS,
    )
