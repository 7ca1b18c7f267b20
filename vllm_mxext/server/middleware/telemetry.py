"""The outermost layer: request ids, timing headers, HTTP metrics, the access log, and errors nobody else caught."""

from __future__ import annotations

import re
import uuid
from collections.abc import Collection

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vllm_mxext.logger import init_logger, request_context
from vllm_mxext.observability.metrics import PrometheusMetrics
from vllm_mxext.server.clock import Clock
from vllm_mxext.server.disconnect import ClientDisconnectedError
from vllm_mxext.server.errors import describe
from vllm_mxext.server.middleware.paths import route_path, route_template

logger = init_logger(__name__)

CLIENT_CLOSED_REQUEST = 499
"""Status in log and metrics (never on the wire) when the client went away first."""

_REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}")


class TelemetryMiddleware:
    """Names, times, counts and logs every request.

    Args:
        app: the rest of the application.
        metrics: where HTTP figures go.
        clock: time.
        quiet_paths: paths left out of the access log.
    """

    def __init__(self, app: ASGIApp, metrics: PrometheusMetrics, clock: Clock, quiet_paths: Collection[str]) -> None:
        self._app = app
        self._metrics = metrics
        self._clock = clock
        self._quiet_paths = frozenset(quiet_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Runs the application and keeps the books."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(scope)
        with request_context(request_id):
            await self._handle(scope, receive, send, request_id)

    async def _handle(self, scope: Scope, receive: Receive, send: Send, request_id: str) -> None:
        began_s = self._clock.monotonic()
        status = 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                elapsed_ms = round((self._clock.monotonic() - began_s) * 1000)
                message["headers"] = [
                    *message.get("headers", ()),
                    (b"x-request-id", request_id.encode("ascii")),
                    (b"openai-processing-ms", b"%d" % elapsed_ms),
                ]
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        except ClientDisconnectedError:
            status = CLIENT_CLOSED_REQUEST
        except Exception as error:
            logger.exception("%s %s failed", scope["method"], scope["path"])
            if status == 0:
                await describe(error).response()(scope, receive, send_with_headers)
        finally:
            self._record(scope, status or CLIENT_CLOSED_REQUEST, self._clock.monotonic() - began_s)

    def _record(self, scope: Scope, status: int, duration_s: float) -> None:
        method = scope["method"] if scope["method"] in _METHODS else "OTHER"
        self._metrics.record_http(route_template(scope), method, status, duration_s)
        if route_path(scope) not in self._quiet_paths:
            host, port = scope.get("client") or ("-", 0)
            path = scope["path"].encode("unicode_escape").decode()
            logger.info('%s:%s "%s %s" %d %.1f ms', host, port, scope["method"], path, status, duration_s * 1000)


_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


def _request_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _REQUEST_ID.fullmatch(value):
            return str(value, "ascii")
    return uuid.uuid4().hex
