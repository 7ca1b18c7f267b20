"""`Exchange`: one request over `httpx` and its answer, within the time limits."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator, Awaitable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import anyio
import httpx
import orjson

from vllm_mxext.client.call import Call, Timeouts
from vllm_mxext.client.clock import Clock
from vllm_mxext.client.errors import BadRequestError
from vllm_mxext.client.outcome import (
    AttemptFailedError,
    Judgement,
    Retry,
    connection_failed,
    protocol_failed,
    request_id,
    status_failed,
    timed_out,
)
from vllm_mxext.network_errors import reason_of

T = TypeVar("T")

MAX_ERROR_BYTES = 2**16
"""Of an error's answer; the rest is not read."""

_NOT_SENDABLE = Judgement(Retry.NEVER, is_endpoints_fault=False, was_received=False)


@dataclass(frozen=True, slots=True)
class Limits:
    """When one attempt must give up.

    Attributes:
        timeouts: of the call.
        ends_s: time of the clock at which the whole call ends.
    """

    timeouts: Timeouts
    ends_s: float = math.inf


class Exchange:
    """One request and its answer, with the limits of time.

    Args:
        client: sends it.
        urls: of the endpoint, and the same as it may be shown.
        call: what is asked.
        content: its body, encoded.
        limits: when to give up.
        clock: time.

    Attributes:
        was_sent: the request may have reached the server.
    """

    def __init__(
        self,
        client: httpx.AsyncClient,
        urls: tuple[str, str],
        call: Call,
        content: bytes | None,
        limits: Limits,
        clock: Clock,
    ) -> None:
        self.was_sent = False
        self._client = client
        self._base, self._url = urls
        self._call = call
        self._content = content
        self._limits = limits
        self._clock = clock
        self._began_s = clock.now()
        self._first_ends_s = math.inf
        self._scope: anyio.CancelScope | None = None
        self._response: httpx.Response | None = None
        self._data: bytearray | None = None
        self._is_over = False

    async def begin(self, max_bytes: int = 0) -> httpx.Response:
        """Sends the request and returns the answer when its headers have come.

        Args:
            max_bytes: of a good answer that are read at once, for `read()`; 0 = nothing is.
        """
        connect_s = _least(self._limits.timeouts.connect, self._limits.ends_s - self._clock.now())
        accepted = "text/event-stream" if self._call.is_stream else "application/json, text/plain;q=0.9, */*;q=0.1"
        try:
            request = self._client.build_request(
                self._call.method,
                self._base + self._call.path,
                content=self._content,
                headers={"Content-Type": "application/json", "Accept": accepted, **self._call.headers},
                timeout=httpx.Timeout(None, connect=connect_s),
                extensions={"trace": self._trace},
            )
        except (TypeError, ValueError, httpx.InvalidURL) as error:
            raise _not_sendable(error) from error
        return await self._within(sheltered(self._send(request, max_bytes)))

    async def check_status(self, response: httpx.Response) -> None:
        """Raises for an answer that is not a good one.

        Raises:
            AttemptFailedError: with the server's words.
        """
        if response.is_success:
            return
        if response.has_redirect_location:
            place = shown(response.headers.get("location", ""))
            name = request_id(response.headers)
            raise protocol_failed(self._url, f"sends on to '{place}'", status=response.status_code, request_id=name)
        try:
            body = json_or_text(await self.read(response, MAX_ERROR_BYTES, cut=True))
        except AttemptFailedError:  # the status says enough
            body = ""
        raise status_failed(self._url, response.status_code, body, response.headers)

    async def read(self, response: httpx.Response, max_bytes: int, *, cut: bool = False) -> bytes:
        """Returns the body.

        Args:
            response: the answer.
            max_bytes: of it.
            cut: take the beginning of a longer one, in the place of an error.

        Raises:
            AttemptFailedError: it breaks off, takes too long or is too large.
        """
        data = self._data
        if data is None:
            data = await self._within(sheltered(_beginning(response, max_bytes)))
        if len(data) > max_bytes and not cut:
            raise protocol_failed(self._url, f"sends more than {max_bytes} bytes", status=response.status_code)
        return bytes(memoryview(data)[:max_bytes])

    async def drain(self, chunks: AsyncIterator[bytes]) -> None:
        """Reads past the end, so that the connection can be used again.

        Raises:
            AttemptFailedError: the connection broke.
        """
        await self._within(sheltered(anext(chunks, None)), self.idle_ends_s())

    async def next_chunk(self, chunks: AsyncIterator[bytes], idle_ends_s: float | None = None) -> bytes | None:
        """Returns the next bytes, None at the end.

        Args:
            chunks: of the answer.
            idle_ends_s: when the stream counts as stalled; None = the limit of the first token holds.

        Raises:
            AttemptFailedError: the connection broke, or a limit was reached.
        """
        return await self._within(anext(chunks, None), idle_ends_s)

    def now(self) -> float:
        """Returns the clock's time."""
        return self._clock.now()

    def idle_ends_s(self) -> float:
        """Returns when a stream that has just brought something counts as stalled."""
        return self._clock.now() + _or_inf(self._limits.timeouts.idle)

    async def close(self) -> None:
        """Ends it; an answer that is not read to its end takes its connection along."""
        self._is_over = True
        if self._response is not None and not self._response.is_closed:
            with anyio.CancelScope(shield=True):
                await asyncio.shield(asyncio.ensure_future(self._response.aclose()))

    async def _send(self, request: httpx.Request, max_bytes: int) -> httpx.Response:
        self._response = await self._client.send(request, stream=True)
        if self._is_over:
            await self.close()
        elif max_bytes and self._response.is_success:
            self._data = await _beginning(self._response, max_bytes)
        return self._response

    async def _trace(self, name: str, _: object) -> None:
        if name.endswith("send_request_headers.started"):  # the connection stands
            self.was_sent = True
            self._first_ends_s = self._clock.now() + _or_inf(self._limits.timeouts.first_token)
            if self._scope is not None:
                self._scope.deadline = min(self._scope.deadline, self._deadline(self._first_ends_s))

    def _deadline(self, ends_s: float) -> float:
        return anyio.current_time() + min(ends_s, self._limits.ends_s) - self._clock.now()

    async def _within(self, work: Awaitable[T], idle_ends_s: float | None = None) -> T:
        ends_s = self._first_ends_s if idle_ends_s is None else idle_ends_s
        with anyio.CancelScope(deadline=self._deadline(ends_s)) as scope:
            self._scope = scope
            try:
                return await work
            except httpx.ConnectTimeout as error:
                limit_s = _or_inf(self._limits.timeouts.connect)
                if self._limits.ends_s - self._clock.now() < 0.001:
                    raise self._late_in_all() from error
                raise timed_out(self._url, "connect", limit_s, was_received=False) from error
            except httpx.LocalProtocolError as error:
                raise _not_sendable(error) from error
            except httpx.HTTPError as error:
                raise connection_failed(self._url, _words(error), was_received=self.was_sent) from error
            finally:
                self._scope = None
        raise self._late(idle_ends_s is not None)

    def _late_in_all(self) -> AttemptFailedError:
        total_s = _or_inf(self._limits.timeouts.total)
        failure = timed_out(self._url, "total", total_s, was_received=self.was_sent)
        # Of a call whose time went by in the queue, or before retries, the last endpoint is not guilty.
        had_time = self._clock.now() - self._began_s >= total_s / 2
        failure.judgement = Judgement(Retry.NEVER, is_endpoints_fault=had_time)
        return failure

    def _late(self, is_idle: bool) -> AttemptFailedError:
        timeouts = self._limits.timeouts
        if self._clock.now() >= self._limits.ends_s:
            return self._late_in_all()
        if is_idle:
            return timed_out(self._url, "idle", _or_inf(timeouts.idle), was_received=True)
        return timed_out(self._url, "first token", _or_inf(timeouts.first_token), was_received=True)


async def sheltered(work: Awaitable[T]) -> T:
    """Returns what `work` does, and cancels it in the one way in which httpcore's connections are not lost.

    Cancelled by asyncio while it gives a connection back, httpcore keeps the connection, and the request, for ever; its
    shields hold off only the cancellation by an anyio scope.
    """
    scope = anyio.CancelScope()

    async def run() -> list[T]:
        with scope:
            return [await work]
        return []

    task = asyncio.ensure_future(run())
    try:
        return (await asyncio.shield(task))[0]
    except asyncio.CancelledError:
        scope.cancel()
        with anyio.CancelScope(shield=True):
            await asyncio.wait((task,))
        if not task.cancelled():
            task.exception()  # is told to nobody
        raise


async def _beginning(response: httpx.Response, max_bytes: int) -> bytearray:
    """Returns the body, or a little more than may be of it."""
    data = bytearray()
    async for chunk in response.aiter_bytes():
        data += chunk
        if len(data) > max_bytes:
            break
    return data


def encoded(body: Mapping[str, Any] | None) -> bytes | None:
    """Returns a request's body as it is sent.

    Raises:
        BadRequestError: there is something in it that JSON has not.
    """
    if body is None:
        return None
    try:
        content = orjson.dumps(dict(body), default=_plain, option=orjson.OPT_SERIALIZE_NUMPY)
    except TypeError as error:
        raise BadRequestError(f"The request cannot be written as JSON ({error}); give it plain values.") from error
    if b"null" in content:  # what orjson writes for NaN too, which the server would take for its default
        name = next((name for name, value in body.items() if _has_no_number(value)), None)
        if name is not None:
            raise BadRequestError(
                f"The request's field '{name}' has NaN or an infinite number, which JSON has not; give a finite one."
            )
    return content


def parsed(data: bytes | str) -> Any:
    """Returns what JSON says, also such as servers in Python send: NaN, halves of surrogate pairs, huge integers.

    Raises:
        ValueError: it is none.
    """
    try:
        return orjson.loads(data)
    except ValueError:
        try:
            return json.loads(data)
        except RecursionError as error:
            raise ValueError("it is nested too deeply") from error


def json_or_text(data: bytes) -> Any:
    """Returns what an error's answer says: parsed, where it is JSON."""
    try:
        return parsed(data)
    except ValueError:
        return data.decode("utf-8", "replace")


def shown(url: str) -> str:
    """Returns an address without what may be secret in it."""
    try:
        return str(httpx.URL(url).copy_with(userinfo=b"", query=None, fragment=None)).rstrip("/")
    except httpx.InvalidURL:
        return "an address that is none"


def _not_sendable(error: Exception) -> AttemptFailedError:
    problem = BadRequestError(f"The request cannot be sent ({error}); look at its headers.")
    return AttemptFailedError(problem, _NOT_SENDABLE)


def _plain(value: Any) -> Any:
    if hasattr(value, "model_dump"):  # of pydantic, as what the openai package answers with
        return value.model_dump(mode="json", exclude_unset=True)
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Iterable) and not isinstance(value, (bytes, bytearray, memoryview)):
        return list(value)
    raise TypeError(f"of a {type(value).__name__}")


def _has_no_number(value: Any) -> bool:
    """Tells whether NaN or an infinity is in a value that can be written."""
    if isinstance(value, float):
        return not math.isfinite(value)
    if hasattr(value, "tolist"):  # of numpy
        return _has_no_number(value.tolist())
    if hasattr(value, "model_dump"):
        value = value.model_dump(mode="json", exclude_unset=True)
    if isinstance(value, Mapping):
        value = value.values()
    is_many = isinstance(value, Iterable) and not isinstance(value, (str, bytes, bytearray, memoryview))
    return is_many and any(_has_no_number(item) for item in value)


def _least(seconds: float | None, remaining_s: float) -> float | None:
    least = max(0.001, min(_or_inf(seconds), remaining_s))
    return None if math.isinf(least) else least


def _or_inf(seconds: float | None) -> float:
    return math.inf if seconds is None else seconds


def _words(error: Exception) -> str:
    if isinstance(error, httpx.ConnectError):
        return f"no connection ({reason_of(error)})"
    return f"the connection broke ({reason_of(error)})"
