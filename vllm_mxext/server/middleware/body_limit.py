"""Refuses request bodies above a size, before they are read where the client says their length."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vllm_mxext.server.errors import RequestTooLargeError, describe


class BodyLimitMiddleware:
    """Limits request bodies.

    Args:
        app: what is guarded.
        max_bytes: largest body.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers 413 by the Content-Length, or lets `receive()` fail once too much has come.

        Raises:
            RequestTooLargeError: out of `receive()`, to whoever reads the body.
        """
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        for name, value in scope["headers"]:
            if name == b"content-length" and int(value) > self._max_bytes:
                await describe(self._error()).response()(scope, receive, send)
                return
        num_received = 0

        async def limited_receive() -> Message:
            nonlocal num_received
            message = await receive()
            if message["type"] == "http.request":
                num_received += len(message.get("body", b""))
                if num_received > self._max_bytes:
                    raise self._error()
            return message

        await self._app(scope, limited_receive, send)

    def _error(self) -> RequestTooLargeError:
        return RequestTooLargeError(
            f"The request body is larger than the {self._max_bytes} bytes this server takes (--max-request-body-bytes)."
        )
