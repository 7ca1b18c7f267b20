"""`client.chat.completions.create(…)` and its like: calls in the shape of OpenAI's client, over the pipeline."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Generator, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import orjson

from vllm_mxext.client.call import HIGH, LOW, NORMAL, Attempt, Call, Timeouts
from vllm_mxext.client.call_stream import CallStream
from vllm_mxext.client.document import Document
from vllm_mxext.client.errors import BadRequestError, ProtocolError
from vllm_mxext.client.pipeline import Pipeline
from vllm_mxext.client.retry import RetryPolicy
from vllm_mxext.errors import ConfigError

if TYPE_CHECKING:
    import httpx

_DEFAULT_OUTPUT_TOKENS = 256
_CHARS_PER_TOKEN = 4


@dataclass(frozen=True, slots=True)
class CallOptions:
    """What calls bring along that is no field of a request; every `create()` takes these by name.

    Attributes:
        timeout: limits of time; a number of seconds is that of the whole call; an `httpx.Timeout` will do.
        priority: in the client's queue: 0 high, 1 normal, 2 low; vLLM's field of that name goes into `extra_body`.
        affinity: calls with equal values prefer one endpoint.
        endpoint_id: the only endpoint to ask.
        extra_headers: sent along.
        extra_body: further fields of the request.
        max_retries: in the place of the client's.
    """

    timeout: float | Timeouts | httpx.Timeout | None = None
    priority: int = NORMAL
    affinity: str = ""
    endpoint_id: str | None = None
    extra_headers: Mapping[str, str] = field(default_factory=dict)
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    max_retries: int | None = None

    def merged(self, fields: dict[str, Any]) -> CallOptions:
        """Takes the options among the fields of a request out of them; those win, headers and bodies are joined."""
        given = {name: fields.pop(name) for name in OPTION_NAMES if name in fields}
        for name in ("extra_headers", "extra_body"):
            own = given.get(name) or {}
            if not isinstance(own, Mapping):
                raise ConfigError(f"{name} is a mapping of names to values, not {type(own).__name__}.")
            given[name] = {**getattr(self, name), **own}
        return replace(self, **given)

    def __post_init__(self) -> None:
        if self.priority not in (HIGH, NORMAL, LOW):
            raise ConfigError(f"A priority is 0 (high), 1 (normal) or 2 (low), not {self.priority!r}.")
        timeouts_of(self.timeout)
        retries = self.max_retries
        if retries is not None and (not isinstance(retries, int) or isinstance(retries, bool) or retries < 0):
            raise ConfigError(f"max_retries is a whole number from 0, not {retries!r}.")
        if not all(isinstance(one, str) for header in self.extra_headers.items() for one in header):
            raise ConfigError("Names and values of extra_headers are texts.")


OPTION_NAMES = tuple(CallOptions.__dataclass_fields__)


class Stream(AsyncIterator[Document]):
    """A streamed answer, chunk by chunk. It ends itself when it is dropped; `async with` or `close()` end it at once.

    Args:
        events: of the pipeline.
    """

    def __init__(self, events: CallStream) -> None:
        self._events = events
        self._num_given = 0

    @property
    def text(self) -> str:
        """The text of the first choice in the chunks that have been given out."""
        return self.text_of(self._num_given)

    def text_of(self, num_chunks: int) -> str:
        """Returns the text of the first choice in the first chunks, as many as somebody has been given."""
        return self._events.text_of(num_chunks)

    @property
    def request_id(self) -> str:
        """The server's name for the request."""
        return self._events.request_id

    @property
    def endpoint_id(self) -> str:
        """Who answers."""
        return self._events.endpoint_id

    @property
    def attempts(self) -> tuple[Attempt, ...]:
        """What was tried."""
        return self._events.attempts

    @property
    def ttft_s(self) -> float | None:
        """Seconds from the call to the first token, queue and retries included."""
        return self._events.ttft_s

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> Document:
        chunk = Document(await anext(self._events))
        self._num_given += 1
        return chunk

    async def __aenter__(self) -> Stream:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Ends it."""
        await self._events.aclose()

    close = aclose


class Requests:
    """Sends requests with a client's options.

    Args:
        pipeline: through which they go.
        options: of the client.

    Attributes:
        options: the same.
    """

    def __init__(self, pipeline: Pipeline, options: CallOptions) -> None:
        self.options = options
        self._pipeline = pipeline

    async def get(self, path: str, **options: Any) -> Document:
        """Returns what is at a path.

        Raises:
            ClientError: it is not to be had.
        """
        return await self._send(Call(path, method="GET"), self.options.merged(options))

    async def post(self, path: str, fields: dict[str, Any], *, is_trial: bool = False) -> Document:
        """Returns the answer to a request.

        Args:
            path: below the server's address.
            fields: of the request and of `CallOptions`.
            is_trial: that of `Call`.

        Raises:
            ClientError: there is none.
        """
        options = self.options.merged(fields)
        body = {**fields, **options.extra_body}
        if body.get("stream"):
            raise BadRequestError(
                "A streamed answer is asked for with stream=True of create() itself, or with stream_generation()."
            )
        return await self._send(replace(_call(path, body), is_trial=is_trial), options)

    async def stream(self, path: str, fields: dict[str, Any]) -> Stream:
        """Returns a streamed answer whose first token has come.

        Args:
            path: below the server's address.
            fields: of the request and of `CallOptions`.

        Raises:
            ClientError: there is none.
        """
        options = self.options.merged(fields)
        call = _with_options(_call(path, {**fields, **options.extra_body, "stream": True}), options)
        events = self._pipeline.stream(call, self._retry(options))
        await events.start()
        return Stream(events)

    async def _send(self, call: Call, options: CallOptions) -> Document:
        answer = await self._pipeline.call(_with_options(call, options), self._retry(options))
        if not isinstance(answer.body, dict):
            raise ProtocolError(
                f"'{call.path}' of endpoint '{answer.endpoint_id}' answered with something that is no JSON object; "
                "check the address.",
                status=answer.status,
                request_id=answer.request_id,
                attempts=answer.attempts,
                endpoint_id=answer.endpoint_id,
            )
        return Document(answer.body, replace(answer, body=None))

    def _retry(self, options: CallOptions) -> RetryPolicy | None:
        if options.max_retries is None:
            return None
        return replace(self._pipeline.config.retry, max_retries=options.max_retries)


class Completions:
    """`client.completions` and `client.chat.completions`.

    Args:
        requests: sends them.
        path: of the one or the other.
    """

    def __init__(self, requests: Requests, path: str) -> None:
        self._requests = requests
        self._path = path

    async def create(self, *, stream: bool = False, **fields: Any) -> Document | Stream:
        """Returns the answer, or with `stream=True` its chunks.

        Args:
            stream: give it as it comes.
            fields: of the request (`model`, `messages` or `prompt`, …), and those of `CallOptions`.

        Raises:
            ConfigError: an option is out of range.
            ClientError: there is none; its class says why.
        """
        if stream:
            return await self._requests.stream(self._path, fields)
        return await self._requests.post(self._path, fields)


class Chat:
    """`client.chat`.

    Args:
        requests: sends them.

    Attributes:
        completions: chat completions.
    """

    def __init__(self, requests: Requests) -> None:
        self.completions = Completions(requests, "/v1/chat/completions")


class Page(Document):
    """A list that a server gives: its fields, and going through it gives what is in its field `data`."""

    def __iter__(self) -> Iterator[Any]:
        return iter(self.get("data") or ())

    async def __aiter__(self) -> AsyncIterator[Any]:
        for one in self:
            yield one


class Listing(Awaitable[Page]):
    """A list that has not been asked for: `await` gives it whole, `async for` what is in it.

    Args:
        requests: send it.
        path: of the list.
        options: those of `CallOptions`.
    """

    def __init__(self, requests: Requests, path: str, options: dict[str, Any]) -> None:
        self._requests = requests
        self._path = path
        self._options = options

    def __await__(self) -> Generator[Any, None, Page]:
        return self.page().__await__()

    async def __aiter__(self) -> AsyncIterator[Any]:
        for one in await self:
            yield one

    async def page(self) -> Page:
        """Returns it whole.

        Raises:
            ClientError: there is no answer; its class says why.
        """
        answer = await self._requests.get(self._path, **self._options)
        return Page(answer, answer.answer)


class Models:
    """`client.models`.

    Args:
        requests: sends them.
    """

    def __init__(self, requests: Requests) -> None:
        self._requests = requests

    def list(self, **options: Any) -> Listing:
        """Returns the models that are served, to be awaited or gone through; options are those of `CallOptions`.

        Raises:
            ClientError: there is no answer; its class says why.
        """
        return Listing(self._requests, "/v1/models", options)

    async def retrieve(self, model: str, **options: Any) -> Document:
        """Returns what is known of one model; options are those of `CallOptions`.

        Raises:
            ClientError: there is no such model, or no answer; its class says why.
        """
        if not isinstance(model, str) or not model:
            raise BadRequestError("A model is retrieved by its name; models.list() gives all of them.")
        return await self._requests.get(f"/v1/models/{quote(model, safe='/:')}", **options)


def timeouts_of(timeout: Any) -> Timeouts | None:
    """Returns limits of time; a number of seconds is that of the whole call, the others are not longer.

    Of an `httpx.Timeout`, which `openai` takes too, `read` is the limit of the first token and of idleness; there is
    none of the whole call then, and `write` and `pool` have no counterpart.

    Raises:
        ConfigError: it is something else, or not above 0.
    """
    if timeout is None or isinstance(timeout, Timeouts):
        return timeout
    if hasattr(timeout, "connect") and hasattr(timeout, "read"):
        return Timeouts(connect=timeout.connect, first_token=timeout.read, idle=timeout.read, total=None)
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not timeout > 0:
        raise ConfigError(
            "timeout is a number of seconds above 0, Timeouts of vllm_mxext.client.call, or an httpx.Timeout, not "
            f"{timeout!r}."
        )
    usual = Timeouts()
    return Timeouts(
        connect=min(usual.connect or timeout, timeout),
        first_token=timeout,
        idle=min(usual.idle or timeout, timeout),
        total=timeout,
    )


def _call(path: str, body: dict[str, Any]) -> Call:
    return Call(
        path,
        body,
        is_stream=bool(body.get("stream")),
        model=str(body.get("model") or ""),
        num_tokens=_num_tokens(body),
    )


def _with_options(call: Call, options: CallOptions) -> Call:
    return replace(
        call,
        priority=options.priority,
        affinity=options.affinity,
        endpoint_id=options.endpoint_id,
        headers=dict(options.extra_headers),
        timeouts=timeouts_of(options.timeout),
    )


def _num_tokens(body: Mapping[str, Any]) -> int:
    """Returns about how many tokens a request will take, for routing only."""
    prompt = next((body[name] for name in ("messages", "prompt", "input") if name in body), "")
    try:
        num_chars = len(prompt) if isinstance(prompt, str) else len(orjson.dumps(prompt))
    except TypeError:
        num_chars = 0
    limit = body.get("max_completion_tokens") or body.get("max_tokens")
    num_output = limit if isinstance(limit, int) and limit > 0 else _DEFAULT_OUTPUT_TOKENS
    return num_chars // _CHARS_PER_TOKEN + num_output
