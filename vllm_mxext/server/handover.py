"""An HTTP server that gives its port to the next one without a connection being refused, reset or forgotten."""

from __future__ import annotations

import asyncio
import contextlib
import socket

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vllm_mxext.server.http_server import ABORT_FLUSH_S, HttpServer

LAST_ANSWERS_S = 1.0
"""Seconds that accepted connections have, at the end, to send their request and take its answer."""

_POLL_S = 0.01
_ACCEPTED_AT_ONCE = 100
_RETRY_S = 1.0
"""Seconds until connections are accepted again after the process had no file descriptors left."""


class HandoverServer(HttpServer):
    """Serves one socket; at the end it first stops accepting, then answers what it has accepted, then closes.

    uvicorn's own way would lose what asyncio has accepted and not yet begun, and hang up on those who have connected
    and not yet asked. The application is to be in `OneRequestPerConnection`, so that connections end by themselves.
    """

    _sock: socket.socket
    _is_accepting = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Accepts connections from the one socket."""
        await self.lifespan.startup()
        self.servers = []
        self._opening: set[asyncio.Task[None]] = set()
        (self._sock,) = sockets or []
        self._sock.setblocking(False)
        self._is_accepting = True
        self._listen()
        self.started = True
        self.is_listening.set()

    def _listen(self) -> None:
        if self._is_accepting:
            asyncio.get_running_loop().add_reader(self._sock, self._accept)

    def _accept(self) -> None:
        for _ in range(_ACCEPTED_AT_ONCE):
            try:
                connection, _ = self._sock.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError:
                loop = asyncio.get_running_loop()
                loop.remove_reader(self._sock)
                loop.call_later(_RETRY_S, self._listen)
                return
            opening = asyncio.create_task(self._open(connection))
            self._opening.add(opening)
            opening.add_done_callback(self._opening.discard)

    async def _open(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        with contextlib.suppress(OSError):  # a handshake that fails is the client's affair
            await asyncio.get_running_loop().connect_accepted_socket(
                self._make_protocol, connection, ssl=self.config.ssl
            )

    def _make_protocol(self) -> asyncio.Protocol:
        make = self.config.http_protocol_class
        return make(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)  # type: ignore[call-arg]

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Leaves the next connections to others, and ends when the last of its own is answered, or soon."""
        loop = asyncio.get_running_loop()
        self._is_accepting = False
        loop.remove_reader(self._sock)
        for _ in range(round(LAST_ANSWERS_S / _POLL_S)):  # turns and not time: what came while we were held up is read
            if not (self._opening or self.server_state.connections):
                break
            await asyncio.sleep(_POLL_S)
        self.config.timeout_graceful_shutdown = ABORT_FLUSH_S
        await super().shutdown(sockets)


class OneRequestPerConnection:
    """Answers when the request is read to its end, and closes the connection after the answer.

    An idle connection would be closed at the handover just when its client sends the next request on it; and what is
    closed with unread bytes is reset, which may cost the client the answer.

    Args:
        app: what answers.
        max_body_bytes: bytes of a request that are read at most.
    """

    def __init__(self, app: ASGIApp, max_body_bytes: int) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Reads, answers and closes."""

        async def send_last(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["connection"] = "close"
            await send(message)

        if scope["type"] == "http":
            await self._read(receive)
        await self._app(scope, receive, send_last)

    async def _read(self, receive: Receive) -> None:
        num_bytes = 0
        while num_bytes <= self._max_body_bytes:
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if not message.get("more_body", False):
                return
