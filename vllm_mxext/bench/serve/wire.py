"""HTTP/1.1 connections that timestamp arriving bytes before anything else is done with them.

httpx would cost several times as much per event (`tests/bench_servers/calibration.py --overhead` measures it), and the
client must not be what limits a measurement. The bytes of all connections are stamped first and parsed afterwards:
parsing one answer must not delay the timestamp of another that arrived at the same time.
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
        """Takes a piece that arrived at `at`, in monotonic seconds."""


@dataclass(slots=True)
class Exchange:
    """One request and its answer.

    Attributes:
        sent_s: monotonic seconds when its connection was asked for.
        written_s: when it was written to the connection; later than that if a new one was opened.
        ended_s: when the end of the answer came.
        status: of HTTP.
        headers: lower-case names.
        body: collected unless a reader takes it as it comes.
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
    """A pool of keep-alive connections to one server.

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
            timeout_s: for connecting and the whole answer; None = no limit.

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
            # As late as possible, so that this process's own work is not counted as the server's, but before
            # connecting, which is part of what a user waits for.
            sent_s = sent_s or time.monotonic()
            connection = kept or await self._new(timeout_s)
            exchange = Exchange(reader, loop.create_future(), sent_s, time.monotonic())
            timer = None if timeout_s is None else loop.call_at(deadline, connection.expire, timeout_s)
            try:
                connection.start(exchange, request)
                await exchange.done
            except WireError as error:
                # The server may close an idle connection just as it is reused: then send it again.
                if error.kind != "disconnected" or kept is None or exchange.status:
                    raise
            else:
                return exchange
            finally:
                if timer is not None:
                    timer.cancel()
                connection.release()

    def close(self) -> None:
        """Closes idle connections; one in use is closed at the end of its exchange."""
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
        self._transport = cast(asyncio.Transport, transport)  # uvloop's does not inherit from it
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
        """Returns the connection to the pool if its answer was complete, else closes it."""
        done = None if self._exchange is None else self._exchange.done
        is_complete = done is not None and done.done() and not done.cancelled() and done.exception() is None
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
            self._is_reusable = False  # unsolicited bytes
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
