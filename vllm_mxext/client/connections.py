"""`Connections`: those to one server, each lent to one request at a time; what httpx sends through.

In the place of httpcore's pool, which looks at every connection for every request, gives one connection to several
requests of which all but one must ask again, and does so in a time that grows with the square of what is under way.
"""

from __future__ import annotations

import ssl
import time
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator
from typing import NoReturn, cast

import anyio
import httpcore
import httpx

MAX_IDLE = 100
"""Connections that are kept for later requests."""

_REASON = "reason_phrase"
"""What a server says beside the status; httpx would log it, whatever is in it."""


class Connections(httpx.AsyncBaseTransport):
    """A transport to one server; the connection that was used last is used first.

    Args:
        keep_alive_s: seconds for which an idle connection is kept.
        context: for TLS; None if the server does without.
    """

    def __init__(self, keep_alive_s: float, context: ssl.SSLContext | None) -> None:
        self._keep_alive_s = keep_alive_s
        self._context = context
        self._idle: deque[tuple[float, httpcore.AsyncHTTPConnection]] = deque()
        """With the time from which each is too old, oldest first."""
        self._busy: set[httpcore.AsyncHTTPConnection] = set()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Sends a request."""
        url = httpcore.URL(
            scheme=request.url.raw_scheme,
            host=request.url.raw_host,
            port=request.url.port,
            target=request.url.raw_path,
        )
        connection = await self._take(url.origin)
        try:
            response = await connection.handle_async_request(
                httpcore.Request(
                    method=request.method,
                    url=url,
                    headers=request.headers.raw,
                    content=request.stream,
                    extensions=request.extensions,
                )
            )
        except BaseException as error:
            await self.give_back(connection)
            _raise(error)
        return httpx.Response(
            response.status,
            headers=response.headers,
            stream=_Body(self, connection, cast("AsyncIterable[bytes]", response.stream)),
            extensions={name: one for name, one in response.extensions.items() if name != _REASON},
        )

    async def give_back(self, connection: httpcore.AsyncHTTPConnection) -> None:
        """Keeps a connection for later if its answer was read to the end, and closes it otherwise."""
        if connection not in self._busy:
            return
        self._busy.remove(connection)
        if connection.is_idle() and not connection.is_closed():
            self._idle.append((time.monotonic() + self._keep_alive_s, connection))
            if len(self._idle) > MAX_IDLE:
                await _close(self._idle.popleft()[1])
        else:
            await _close(connection)

    async def aclose(self) -> None:
        """Closes all connections, also those with requests under way."""
        connections = [*self._busy, *(connection for _, connection in self._idle)]
        self._busy.clear()
        self._idle.clear()
        for connection in connections:
            await _close(connection)

    async def _take(self, origin: httpcore.Origin) -> httpcore.AsyncHTTPConnection:
        now_s = time.monotonic()
        old = []
        while self._idle and self._idle[0][0] <= now_s:
            old.append(self._idle.popleft()[1])
        connection = None
        while self._idle and connection is None:
            _, connection = self._idle.pop()
            if connection.has_expired():  # the server has closed it
                old.append(connection)
                connection = None
        if connection is None:
            connection = httpcore.AsyncHTTPConnection(origin, ssl_context=self._context)
        self._busy.add(connection)
        try:
            for one in old:
                await _close(one)
        except BaseException:
            await self.give_back(connection)
            raise
        return connection


class _Body(httpx.AsyncByteStream):
    """The body of an answer; its end gives the connection back."""

    def __init__(
        self, connections: Connections, connection: httpcore.AsyncHTTPConnection, parts: AsyncIterable[bytes]
    ) -> None:
        self._connections = connections
        self._connection = connection
        self._parts = parts

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for part in self._parts:
                yield part
        except Exception as error:
            _raise(error)

    async def aclose(self) -> None:
        try:
            close = getattr(self._parts, "aclose", None)
            if close is not None:
                await close()
        finally:
            await self._connections.give_back(self._connection)


async def _close(connection: httpcore.AsyncHTTPConnection) -> None:
    with anyio.CancelScope(shield=True):
        await connection.aclose()


def _raise(error: BaseException) -> NoReturn:
    """Raises httpx's error for one of httpcore's, whose names are the same."""
    if type(error).__module__.partition(".")[0] != "httpcore":
        raise error
    kind = getattr(httpx, type(error).__name__, httpx.TransportError)
    raise kind(str(error)) from error
