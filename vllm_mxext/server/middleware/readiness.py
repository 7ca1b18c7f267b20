"""Answers 503, with the reason, while the engine takes no requests."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from vllm_mxext.engine.client import EnginePhase, EngineStatus
from vllm_mxext.errors import EngineNotReadyError
from vllm_mxext.server.adapters import ServedAdapters
from vllm_mxext.server.errors import describe
from vllm_mxext.server.middleware.paths import DOWNLOADS_PATH, LIVE_PATH, METRICS_PATH, VERSION_PATH, route_path

_ALWAYS_OPEN = frozenset({LIVE_PATH, METRICS_PATH, VERSION_PATH, DOWNLOADS_PATH})

_LOADING_STEPS = {EnginePhase.STARTING: "starting the engine", EnginePhase.LOADING: "loading weights"}


class ReadinessMiddleware:
    """Holds the door until the model is loaded, and again once the server drains.

    Args:
        app: what is guarded.
        adapters: knows the status of the engine and of what is loaded with it.
    """

    def __init__(self, app: ASGIApp, adapters: ServedAdapters) -> None:
        self._app = app
        self._adapters = adapters

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Lets the request through or answers 503."""
        status = self._adapters.status
        if status.accepts_requests or scope["type"] == "lifespan" or route_path(scope) in _ALWAYS_OPEN:
            await self._app(scope, receive, send)
        else:
            await describe(EngineNotReadyError(explain(status))).response()(scope, receive, send)


def explain(status: EngineStatus) -> str:
    """Says in one sentence why requests are not served now."""
    if status.phase is EnginePhase.DEAD:
        return f"The engine has failed for good: {status.detail or 'no cause is known'}"
    if status.phase is EnginePhase.DRAINING:
        return "The server is shutting down and takes no new requests; send this one to another server."
    if status.phase is EnginePhase.RESTARTING:
        return f"The engine is restarting: {status.detail or 'requests wait for it'}"
    if status.phase is EnginePhase.STALLED:
        return f"The engine has stalled: {status.detail or 'its process says nothing'}"
    detail = (status.detail or _LOADING_STEPS.get(status.phase, status.phase.value)).rstrip(".")
    return f"The model is loading: {detail}, {status.progress:.0%}"
