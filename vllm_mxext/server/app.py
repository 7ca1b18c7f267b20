"""`create_app()`: the HTTP application over an engine."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Lifespan

from vllm_mxext.config.server import LoRAServingConfig, ServerConfig
from vllm_mxext.engine.client import EngineClient
from vllm_mxext.errors import MxError
from vllm_mxext.observability.metrics import PrometheusMetrics
from vllm_mxext.server.adapters import ServedAdapters
from vllm_mxext.server.clock import Clock, SystemClock
from vllm_mxext.server.context import ServerContext, package_version, system_fingerprint
from vllm_mxext.server.errors import describe, describe_http
from vllm_mxext.server.middleware.body_limit import BodyLimitMiddleware
from vllm_mxext.server.middleware.guards import guards
from vllm_mxext.server.middleware.paths import RootPathMiddleware
from vllm_mxext.server.middleware.plugin import load_middleware
from vllm_mxext.server.middleware.readiness import ReadinessMiddleware
from vllm_mxext.server.middleware.telemetry import TelemetryMiddleware
from vllm_mxext.server.parsers import choose_parsers
from vllm_mxext.server.routes.hub import hub_router
from vllm_mxext.server.routes.lora import LORA_BODY_MODELS, lora_router
from vllm_mxext.server.routes.native import NATIVE_BODY_MODELS, native_router
from vllm_mxext.server.routes.openai import BODY_MODELS, openai_router
from vllm_mxext.server.routes.operations import operations_router
from vllm_mxext.server.served_hub import ServedHub

NUM_THREADS = 2
"""Threads for chat templates and `/tokenize`."""


def create_app(
    client: EngineClient,
    config: ServerConfig,
    metrics: PrometheusMetrics | None = None,
    *,
    clock: Clock | None = None,
    adapters: ServedAdapters | None = None,
    hub: ServedHub | None = None,
) -> FastAPI:
    """Builds the application; it neither starts nor stops the engine.

    Args:
        client: the engine.
        config: how to answer and guard.
        metrics: figures to show; the engine should be feeding the same ones.
        clock: time for keep-alive and durations.
        adapters: the server's adapters; by default none is loaded at start and no folder is watched.
        hub: where the model came from; by default, it is a folder that was there.

    Raises:
        ConfigError: a parser that the configuration names does not exist.
    """
    clock = clock or SystemClock()
    context = ServerContext(
        client,
        config,
        metrics or PrometheusMetrics(client.model.served_names[0], client.model.max_model_len),
        clock,
        ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="server"),
        choose_parsers(config.parsers, client.tokenizer.chat_template(has_tools=True)),
        system_fingerprint(client.model),
        adapters or ServedAdapters(client, LoRAServingConfig(), clock),
        hub or ServedHub(Path(client.model.root), client.model.served_names[0]),
    )
    context.metrics.watch_download(lambda: context.hub.downloads.progress)
    if client.model.max_loras:
        context.metrics.watch_adapters(client.model.max_loras, lambda: client.adapters)
    docs = config.is_docs_enabled
    app = FastAPI(
        title="vllm_mxext",
        version=package_version(),
        docs_url="/docs" if docs else None,
        redoc_url="/redoc" if docs else None,
        openapi_url="/openapi.json" if docs else None,
        redirect_slashes=False,
        lifespan=_lifespan(context),
        middleware=_middlewares(context),
    )
    # Listed one by one, not included as routers, so that `app.routes` can be searched for the route of a path.
    for router_of in (openai_router, native_router, lora_router, hub_router, operations_router):
        app.router.routes += router_of(context).routes
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]

    async def on_error(request: Request, error: Exception) -> Response:
        del request
        return describe(error).response()

    async def on_http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return describe_http(request, error).response()

    app.add_exception_handler(MxError, on_error)
    app.add_exception_handler(HTTPException, on_http_error)
    return app


def _lifespan(context: ServerContext) -> Lifespan[FastAPI]:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None, None]:
        del app
        yield
        context.executor.shutdown(wait=False, cancel_futures=True)

    return lifespan


def _middlewares(context: ServerContext) -> list[Middleware]:
    """Returns the layers around the routes, the outermost first."""
    config = context.config
    layers = [Middleware(RootPathMiddleware, config.root_path)] if config.root_path else []
    layers.append(Middleware(TelemetryMiddleware, context.metrics, context.clock, config.quiet_endpoints))
    layers += guards(config)
    layers.append(Middleware(ReadinessMiddleware, context.adapters))
    layers.append(Middleware(BodyLimitMiddleware, config.max_request_body_bytes))
    return [*layers, *map(load_middleware, config.middleware)]


def _openapi(app: FastAPI) -> dict[str, Any]:
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, version=app.version, routes=app.routes)
        _, definitions = models_json_schema(
            [(model, "validation") for model in (*BODY_MODELS, *NATIVE_BODY_MODELS, *LORA_BODY_MODELS)],
            ref_template="#/components/schemas/{model}",
        )
        schema.setdefault("components", {}).setdefault("schemas", {}).update(definitions["$defs"])
        for operations in schema["paths"].values():
            for operation in operations.values():
                operation["responses"].pop("422", None)  # FastAPI's own, which nothing here answers
        for unused in ("HTTPValidationError", "ValidationError"):
            schema["components"]["schemas"].pop(unused, None)
        app.openapi_schema = schema
    return app.openapi_schema
