"""Server-sent events: a response that streams, keeps the connection alive, and stops its work when the client goes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import orjson
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from vllm_mxext.errors import MxError
from vllm_mxext.logger import init_logger
from vllm_mxext.server.clock import Clock
from vllm_mxext.server.disconnect import run_until_disconnect
from vllm_mxext.server.errors import describe

logger = init_logger(__name__)

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"


def event(data: Any) -> bytes:
    """Returns one event with `data` as JSON."""
    return b"data: " + orjson.dumps(data) + b"\n\n"


class EventStream(Response):
    """Sends events as they come; a failure becomes an `error` event, and `[DONE]` always ends the stream.

    Args:
        events: encoded events; each item is sent in one piece.
        on_close: called once at the end, whether or not `events` was ever started.
        clock: times the silence.
        keep_alive_s: seconds of silence after which a comment is sent; 0 = never.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        on_close: Callable[[], Awaitable[None]],
        clock: Clock,
        keep_alive_s: float,
    ) -> None:
        self._events = events
        self._on_close = on_close
        self._clock = clock
        self._keep_alive_s = keep_alive_s
        self._last_sent_s = clock.monotonic()
        self._is_sending = False
        self.status_code = 200
        self.background = None
        self.init_headers({"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Runs the stream to its end.

        Raises:
            ClientDisconnectedError: the client went away; the work has been stopped.
        """
        del scope
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await run_until_disconnect(receive, self._run(send))
        finally:
            await self._events.aclose()
            await self._on_close()

    async def _run(self, send: Send) -> None:
        ticker = asyncio.create_task(self._tick(send)) if self._keep_alive_s > 0 else None
        try:
            try:
                async for data in self._events:
                    await self._send(send, data)
            except Exception as error:  # whatever it is, the client is told in the stream
                _log(error)
                await self._send(send, b"data: " + describe(error).body() + b"\n\n")
        finally:
            if ticker is not None:
                ticker.cancel()
                await asyncio.wait((ticker,))
        await send({"type": "http.response.body", "body": DONE, "more_body": False})

    async def _send(self, send: Send, data: bytes) -> None:
        self._is_sending = True
        await send({"type": "http.response.body", "body": data, "more_body": True})
        self._is_sending = False
        self._last_sent_s = self._clock.monotonic()

    async def _tick(self, send: Send) -> None:
        while True:
            silence_s = self._clock.monotonic() - self._last_sent_s
            if self._is_sending:  # the client is slower than the stream: its connection is alive
                await self._clock.sleep(self._keep_alive_s)
            elif silence_s >= self._keep_alive_s:
                await self._send(send, KEEP_ALIVE)
            else:
                await self._clock.sleep(self._keep_alive_s - silence_s)


def _log(error: Exception) -> None:
    if isinstance(error, MxError):
        logger.warning("Stream failed: %s", error)
    else:
        logger.error("Stream failed", exc_info=error)
