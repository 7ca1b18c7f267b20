"""Routes for those who run the server: health, version, metrics."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from vllm_mxext.engine.client import EnginePhase
from vllm_mxext.errors import EngineNotReadyError
from vllm_mxext.server.context import ServerContext, package_version
from vllm_mxext.server.json_response import json_response
from vllm_mxext.server.middleware.paths import HEALTH_PATH, LIVE_PATH, METRICS_PATH, READY_PATH
from vllm_mxext.server.middleware.readiness import explain
from vllm_mxext.server.routes.statuses import ANY, FIGURES


def operations_router(context: ServerContext) -> APIRouter:
    """Returns the routes; the readiness middleware has already answered while the engine takes no requests."""
    router = APIRouter(tags=["operations"])

    @router.head(LIVE_PATH, include_in_schema=False)
    @router.get(LIVE_PATH, responses=ANY)
    async def live() -> Response:
        """Says that the process is worth keeping: 503 only once the engine is dead for good."""
        status = context.adapters.status
        if status.phase is EnginePhase.DEAD:
            raise EngineNotReadyError(explain(status))
        return json_response({"status": "live", "phase": status.phase.value})

    @router.head(READY_PATH, include_in_schema=False)
    @router.get(READY_PATH, responses=ANY)
    async def ready() -> Response:
        """Says that a request sent now is served now: 503 while the engine loads, restarts, stalls or drains."""
        status = context.adapters.status
        if status.phase is not EnginePhase.READY:
            raise EngineNotReadyError(explain(status))
        await _ask_engine(context)
        return json_response(_report(context))

    @router.head(HEALTH_PATH, include_in_schema=False)
    @router.get(HEALTH_PATH, responses=ANY)
    async def health() -> Response:
        """Says that requests are accepted and the engine answers, and how long start-up took."""
        if context.adapters.status.phase is EnginePhase.READY:
            await _ask_engine(context)
        return json_response(_report(context))

    @router.head("/version", include_in_schema=False)
    @router.get("/version", responses=ANY)
    async def version() -> Response:
        """Names the version of the server."""
        return json_response({"version": package_version()})

    @router.head(METRICS_PATH, include_in_schema=False)
    @router.get(METRICS_PATH, responses=FIGURES)
    async def metrics(request: Request) -> Response:
        """Returns the figures for Prometheus."""
        text, content_type = context.metrics.render(request.headers.get("accept", ""))
        return Response(text, headers={"Content-Type": content_type})

    return router


async def _ask_engine(context: ServerContext) -> None:
    timeout_s = context.config.health_timeout_s
    try:
        await asyncio.wait_for(context.client.check_health(), timeout_s)
    except asyncio.TimeoutError:
        raise EngineNotReadyError(f"The engine has not answered a health check for {timeout_s:g} seconds.") from None


def _report(context: ServerContext) -> dict[str, Any]:
    status = context.adapters.status
    seconds = context.hub.downloads.phase_seconds | dict(status.phase_seconds)
    return {
        "status": "ready" if status.phase is EnginePhase.READY else "waiting",
        "phase": status.phase.value,
        "phase_seconds": {phase: round(value, 3) for phase, value in seconds.items()},
    }
