"""HTTP/1.1 connections that note when bytes came before anything else is done with them.

httpx would cost several times as much per event (`tests/bench_servers/calibration.py --overhead` measures it), and the
client must not be what limits a measurement. Bytes of all connections are stamped first and parsed afterwards, so that
an event is not stamped later because another one that came together with it was parsed before.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, cast

import httptools

from vllm_mxext.bench.serve.address import Address


class WireError(Exception):
    """An exchange failed.

    Attributes:
        kind: one of `result.FAILURES`.
    """

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind


class BodyReader(Protocol):
    """Takes an answer's body as it comes."""

    def feed(self, at: float, data: bytes) -> None:
        """Takes a piece; `at` is monotonic seconds of its arrival."""


@dataclass(slots=True)
class Exchange:
    """One request and its answer.

    Attributes:
        sent_s: monotonic seconds when its connection was asked for.
        written_s: when it was written to the connection; later than that if a new one was opened.
        ended_s: when the end of the answer came.
        status: of HTTP.
        headers: lower-case names.
        body: of an answer that nobody reads as it comes.
    """

    reader: BodyReader | None
    done: asyncio.Future[None]
    sent_s: float = 0.0
    written_s: float = 0.0
    ended_s: float = 0.0
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytearray = field(default_factory=bytearray)


class Wire:
    """Connections to one server, kept open and used again.

    Args:
        address: of the server.
        headers: of every request.
    """

    def __init__(self, address: Address, headers: Mapping[str, str] | None = None) -> None:
        self._address = address
        default = 443 if address.is_tls else 80
        host = f"[{address.host}]" if ":" in address.host else address.host
        shown = host if address.port == default else f"{host}:{address.port}"
        lines = [f"Host: {shown}", "Accept: */*", *(f"{name}: {value}" for name, value in (headers or {}).items())]
        self._headers = "".join(f"{line}\r\n" for line in lines)
        self._idle: deque[_Connection] = deque()
        self._arrivals: list[tuple[_Connection, float, bytes | None]] = []
        self._tls = ssl.create_default_context() if address.is_tls else None

    async def send(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        reader: BodyReader | None = None,
        timeout_s: float | None = None,
    ) -> Exchange:
        """Sends a request and returns when its answer is complete.

        Args:
            method: of HTTP.
            path: of the route.
            body: JSON.
            reader: takes the body of an answer with status 200 as it comes.
            timeout_s: for all of it; None = no limit.

        Raises:
            WireError: no answer, or not all of it.
        """
        head = f"{method} {self._address.path}{path} HTTP/1.1\r\n{self._headers}"
        content = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n" if method == "POST" else ""
        request = f"{head}{content}\r\n".encode() + body
        loop, sent_s = asyncio.get_running_loop(), 0.0
        deadline = loop.time() + (timeout_s or 0.0)
        while True:
            kept = self._kept()
            # As late as possible, so that what this process does beforehand is not taken for the server's time; but
            # connecting is part of the time that a user waits.
            sent_s = sent_s or time.monotonic()
            connection = kept or await self._new(timeout_s)
            exchange = Exchange(reader, loop.create_future(), sent_s, time.monotonic())
            timer = None if timeout_s is None else loop.call_at(deadline, connection.expire, timeout_s)
            try:
                connection.start(exchange, request)
                await exchange.done
            except WireError as error:
                # The server may close a kept connection at the moment it is used; that says nothing about the request.
                if error.kind != "disconnected" or kept is None or exchange.status:
                    raise
            else:
                return exchange
            finally:
                if timer is not None:
                    timer.cancel()
                connection.release()

    def close(self) -> None:
        """Closes idle connections; those in use close with their exchange."""
        while self._idle:
            self._idle.popleft().abort()

    def _kept(self) -> _Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open:
                return connection
        return None

    async def _new(self, timeout_s: float | None) -> _Connection:
        connecting = asyncio.get_running_loop().create_connection(
            lambda: _Connection(self._arrived, self._idle), self._address.host, self._address.port, ssl=self._tls
        )
        place = f"{self._address.host}:{self._address.port}"
        try:
            _, connection = await asyncio.wait_for(connecting, timeout_s)
        except asyncio.TimeoutError:
            raise WireError("timeout", f"no connection to {place} within {timeout_s:g} s") from None
        except OSError as error:
            raise WireError("connect", f"no connection to {place}: {error.strerror or error}") from None
        return connection

    def _arrived(self, connection: _Connection, data: bytes | None) -> None:
        at = time.monotonic()
        if not self._arrivals:
            asyncio.get_running_loop().call_soon(self._parse)
        self._arrivals.append((connection, at, data))

    def _parse(self) -> None:
        arrivals, self._arrivals = self._arrivals, []
        for connection, at, data in arrivals:
            connection.parse(at, data)


class _Connection(asyncio.Protocol):
    def __init__(self, arrived: Callable[[_Connection, bytes | None], None], idle: deque[_Connection]) -> None:
        self._arrived = arrived
        self._idle = idle
        self._transport: asyncio.Transport | None = None
        self._exchange: Exchange | None = None
        self._parser: httptools.HttpResponseParser | None = None
        self._at = 0.0
        self._is_reusable = True
        self.is_open = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by type
        self.is_open = True

    def data_received(self, data: bytes) -> None:
        self._arrived(self, data)

    def connection_lost(self, _: Exception | None) -> None:
        self.is_open = False
        self._arrived(self, None)

    def start(self, exchange: Exchange, request: bytes) -> None:
        assert self._transport is not None
        self._exchange = exchange
        self._parser = httptools.HttpResponseParser(self)
        self._transport.write(request)

    def release(self) -> None:
        """Ends the use of the connection; it is kept if the answer was complete."""
        is_complete = self._exchange is not None and self._exchange.done.done() and not self._exchange.done.cancelled()
        is_complete = is_complete and self._exchange is not None and self._exchange.done.exception() is None
        self._exchange = self._parser = None
        if is_complete and self._is_reusable and self.is_open:
            self._idle.append(self)
        else:
            self.abort()

    def expire(self, timeout_s: float) -> None:
        self._at = time.monotonic()
        self._fail("timeout", f"no complete answer within {timeout_s:g} s")

    def abort(self) -> None:
        self.is_open = False
        if self._transport is not None:
            self._transport.abort()

    def parse(self, at: float, data: bytes | None) -> None:
        exchange, parser = self._exchange, self._parser
        if exchange is None or parser is None or exchange.done.done():
            self._is_reusable = False  # bytes that nobody asked for
            return
        self._at = at
        if data is None:
            self._closed(exchange)
            return
        try:
            parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail("protocol", f"the answer is not HTTP: {error}")

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._exchange is not None:
            self._exchange.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        if self._exchange is not None and self._parser is not None:
            self._exchange.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        exchange = self._exchange
        if exchange is None:
            return
        if exchange.reader is not None and exchange.status == 200:
            exchange.reader.feed(self._at, body)
        else:
            exchange.body += body

    def on_message_complete(self) -> None:
        exchange, parser = self._exchange, self._parser
        if exchange is None or parser is None or exchange.done.done():
            return
        if exchange.status < 200:  # an interim answer, such as 103; the answer follows
            exchange.status = 0
            exchange.headers.clear()
            return
        self._is_reusable = self._is_reusable and parser.should_keep_alive()
        exchange.ended_s = self._at
        exchange.done.set_result(None)

    def _closed(self, exchange: Exchange) -> None:
        has_length = "content-length" in exchange.headers or "chunked" in exchange.headers.get("transfer-encoding", "")
        if exchange.status and not has_length:
            exchange.ended_s = self._at
            exchange.done.set_result(None)
        else:
            self._fail("disconnected", "the connection ended before the answer did")

    def _fail(self, kind: str, detail: str) -> None:
        if self._exchange is not None and not self._exchange.done.done():
            self._exchange.ended_s = self._at
            self._exchange.done.set_exception(WireError(kind, detail))
