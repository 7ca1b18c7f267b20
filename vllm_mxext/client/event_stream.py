"""`EventStream`: a streamed answer as parsed events, which ends well or says what is wrong with it."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Mapping
from typing import Any

import anyio
import httpx

from vllm_mxext.client.chunks import Completeness, has_token, text_of
from vllm_mxext.client.exchange import Exchange, parsed
from vllm_mxext.client.outcome import (
    AttemptFailedError,
    Retry,
    error_object,
    protocol_failed,
    raise_inner_error,
    request_id,
)
from vllm_mxext.client.sse import Event, EventReader, MalformedEventError

DONE = "[DONE]"
DRAIN_S = 0.05
"""Waited for the end of the body after `[DONE]`, so that the connection can be used again."""


class EventStream:
    """The events of a streamed answer, parsed, until `[DONE]`.

    Comments prove a connection, not progress: neither the limit of the first token nor that of idleness starts anew
    with them.

    Args:
        url: of the endpoint.
        exchange: brings it.
        response: the answer.

    Attributes:
        status: of HTTP.
        headers: of the answer.
        request_id: the server's name for it; with the answer's own id if there is no other.
        texts: what each event so far has added to the first choice.
        has_token: whether a first token has come.
        usage: what the server says of tokens, as far as it does.
        last_token_s: when the last one came.
    """

    def __init__(self, url: str, exchange: Exchange, response: httpx.Response) -> None:
        self.status = response.status_code
        self.headers: Mapping[str, str] = response.headers
        self.request_id = request_id(response.headers)
        self.texts: list[str] = []
        self.has_token = False
        self.usage: Mapping[str, Any] = {}
        self.last_token_s = 0.0
        self._is_empty = True
        self._failure: AttemptFailedError | None = None
        self._url = url
        self._exchange = exchange
        self._chunks = response.aiter_bytes()
        self._reader = EventReader()
        self._completeness = Completeness()
        self._ready: deque[dict[str, Any]] = deque()
        self._is_done = False

    async def next(self) -> dict[str, Any] | None:
        """Returns the next event, None at the end.

        Raises:
            AttemptFailedError: the stream broke, stalled or cannot be understood.
        """
        idle_ends_s = self._exchange.idle_ends_s() if self.has_token else None  # time that the caller takes is his
        while not self._ready and not self._is_done and self._failure is None:
            chunk = await self._exchange.next_chunk(self._chunks, idle_ends_s)
            if chunk is None:
                self._end()
                break
            self._take(chunk)
        if not self._ready:
            if self._failure is not None:
                raise self._failure
            if self._is_empty:
                raise self._unclear("it has no event")
            await self._drain()
            return None
        document = self._ready.popleft()
        raise_inner_error(self._url, document, self.headers)
        self._note(document)
        return document

    async def close(self) -> None:
        """Ends it: what has not come is not wanted."""
        await self._exchange.close()

    def _take(self, chunk: bytes) -> None:
        """Reads events; what is wrong with one is raised when those before it have been given out."""
        try:
            for event in self._reader.feed(chunk):
                if event.data.strip() == DONE:
                    self._is_done = True
                    break
                if event.data:
                    self._ready.append(self._parsed(event))
        except MalformedEventError as error:
            self._failure = self._unclear(str(error))
        except AttemptFailedError as failure:
            self._failure = failure

    def _parsed(self, event: Event) -> dict[str, Any]:
        try:
            document = parsed(event.data)
        except ValueError as error:
            raise self._unclear("an event is not JSON") from error
        if event.name == "error" and error_object(document) is None:
            document = {"error": document}
        if not isinstance(document, dict):
            raise self._unclear("an event is no object")
        return document

    def _note(self, document: dict[str, Any]) -> None:
        self._is_empty = False
        self.request_id = self.request_id or request_id({}, document)
        self._completeness.note(document)
        self.texts.append(text_of(document))
        usage = document.get("usage")
        if isinstance(usage, Mapping):
            self.usage = usage
        if has_token(document):
            self.last_token_s = self._exchange.now()
            self.has_token = True

    def _end(self) -> None:
        self._is_done = True
        if not self._completeness.is_whole:
            raise self._unclear("it ended before the answer did", Retry.ANYWHERE)

    async def _drain(self) -> None:
        with anyio.move_on_after(DRAIN_S), contextlib.suppress(AttemptFailedError):
            await self._exchange.drain(self._chunks)

    def _unclear(self, problem: str, retry: Retry = Retry.ELSEWHERE) -> AttemptFailedError:
        return protocol_failed(
            self._url,
            f"sent a broken stream ({problem})",
            status=self.status,
            request_id=self.request_id,
            retry=retry,
        )
