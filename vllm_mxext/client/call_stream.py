"""`CallStream`: one streamed call, from its first token to its end, with what is known of it meanwhile."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vllm_mxext.client.call import Attempt, Call
from vllm_mxext.client.errors import StreamInterruptedError
from vllm_mxext.client.outcome import AttemptFailedError
from vllm_mxext.client.retry import RetryPolicy
from vllm_mxext.client.run import Begun, Run

if TYPE_CHECKING:
    from vllm_mxext.client.pipeline import Pipeline


@dataclass(slots=True)
class StreamState:
    """What is known of a stream.

    Attributes:
        run: the call; None before it was sent.
        begun: the stream; None before its first token.
        ttft_s: seconds from the call to the first token, queue and retries included; None if none has come.
    """

    run: Run | None = None
    begun: Begun | None = None
    ttft_s: float | None = None


class CallStream(AsyncIterator[dict[str, Any]]):
    """The events of one streamed answer. It ends itself when it is dropped; `async with` or `aclose()` end it at once.

    Args:
        pipeline: sends the call.
        call: what is asked.
        retry: in the place of the client's.
    """

    def __init__(self, pipeline: Pipeline, call: Call, retry: RetryPolicy | None = None) -> None:
        self._state = StreamState()
        self._events = _events(pipeline, call, retry, self._state)
        self._first: deque[dict[str, Any]] = deque()

    def text_of(self, num_events: int) -> str:
        """Returns the text of the first choice in the first events, as many as somebody has been given."""
        return "" if self._state.begun is None else "".join(self._state.begun.stream.texts[:num_events])

    @property
    def request_id(self) -> str:
        """The server's name for it; empty before the first token."""
        return "" if self._state.begun is None else self._state.begun.request_id

    @property
    def endpoint_id(self) -> str:
        """Who answers; empty before the first token."""
        return "" if self._state.begun is None else self._state.begun.lease.endpoint.id

    @property
    def attempts(self) -> tuple[Attempt, ...]:
        """What has been tried and has ended; the one that streams comes last, at its end."""
        return () if self._state.run is None else tuple(self._state.run.attempts)

    @property
    def ttft_s(self) -> float | None:
        """Seconds from the call to the first token, queue and retries included; None if none has come."""
        return self._state.ttft_s

    @property
    def queue_s(self) -> float:
        """Seconds in the queue."""
        return 0.0 if self._state.run is None else self._state.run.queue_s

    def __aiter__(self) -> CallStream:
        return self

    async def start(self) -> None:
        """Waits for the first token, so that what goes wrong before is raised here.

        Raises:
            ClientError: it does not come; its class says why.
        """
        self._first.append(await anext(self._events))

    async def __anext__(self) -> dict[str, Any]:
        return self._first.popleft() if self._first else await anext(self._events)

    async def __aenter__(self) -> CallStream:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Ends it; the server is told by the closed connection."""
        await self._events.aclose()


async def _events(
    pipeline: Pipeline, call: Call, retry: RetryPolicy | None, state: StreamState
) -> AsyncGenerator[dict[str, Any], None]:
    state.run = run = pipeline.prepare(call, retry)
    clock = run.policies.clock
    with pipeline.recording(run) as outcome:
        state.begun = begun = await run.begin()
        if begun.ttft_s is not None:
            state.ttft_s = clock.now() - run.began_s
        try:
            for document in begun.held:
                yield document
            while (next_document := await _next(run, begun)) is not None:
                yield next_document
            run.note(begun.lease, begun.began_s, None, begun.ttft_s)
        finally:
            stream = begun.stream
            outcome.usage, outcome.request_id, outcome.ttft_s = stream.usage, begun.request_id, begun.ttft_s
            if begun.ttft_s is not None:
                outcome.decode_s = stream.last_token_s - begun.began_s - begun.ttft_s
            await begun.discard()


async def _next(run: Run, begun: Begun) -> dict[str, Any] | None:
    try:
        return await begun.stream.next()
    except AttemptFailedError as failure:
        run.note(begun.lease, begun.began_s, failure, begun.ttft_s)
        error, text = run.failed(failure), "".join(begun.stream.texts)
        raise StreamInterruptedError(
            f"The answer broke off after {len(text)} characters, which the attribute `text` keeps: {error}",
            text=text,
            attempts=error.attempts,
            endpoint_id=error.endpoint_id,
            request_id=begun.request_id,
        ) from error
