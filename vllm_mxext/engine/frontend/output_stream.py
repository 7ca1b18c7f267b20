"""`OutputStream`: the outputs of one request as its consumer sees them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from types import TracebackType

from vllm_mxext.engine.frontend.request_state import RequestState
from vllm_mxext.outputs import RequestOutput


class RequestStream(AsyncGenerator[RequestOutput, None]):
    """What asynchronous generators of outputs have in common; `__anext__` and `aclose` make them."""

    async def asend(self, value: None) -> RequestOutput:
        """Returns the next output; `value` is ignored."""
        del value
        return await self.__anext__()

    async def athrow(
        self,
        typ: type[BaseException] | BaseException,
        val: BaseException | object = None,
        tb: TracebackType | None = None,
    ) -> RequestOutput:
        """Closes the stream and raises the given exception."""
        await self.aclose()
        error = typ if isinstance(typ, BaseException) else val if isinstance(val, BaseException) else typ()
        raise error.with_traceback(tb)


class OutputStream(RequestStream):
    """An asynchronous generator over the outputs of one request.

    Outputs are merged while nobody asks for them. Unlike a generator function it also releases its request when it is
    closed, cancelled or forgotten before the first output was asked for.

    Args:
        state: the request.
        changed: set by the state's owner whenever there may be something to take.
        release: called with the state when the consumer leaves before the end; must not wait.
    """

    def __init__(self, state: RequestState, changed: asyncio.Event, release: Callable[[RequestState], None]) -> None:
        self._state = state
        self._changed = changed
        self._release = release
        self._loop = asyncio.get_running_loop()
        self._is_open = True

    async def __anext__(self) -> RequestOutput:
        """Returns the next output, or everything that has come since the last one.

        Raises:
            GenerationError: the request failed in the engine.
            EngineDeadError: the engine is gone for good.
        """
        if not self._is_open:
            raise StopAsyncIteration
        try:
            output = await self._next()
        except BaseException:
            self._close()
            raise
        self._is_open = not output.finished
        return output

    async def aclose(self) -> None:
        """Leaves the stream; an unfinished request is aborted."""
        self._close()

    def __del__(self) -> None:
        if self._is_open and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._release, self._state)

    async def _next(self) -> RequestOutput:
        while True:
            if self._state.error is not None:
                raise self._state.error
            output = self._state.take_output()
            if output is not None:
                return output
            self._changed.clear()
            await self._changed.wait()

    def _close(self) -> None:
        if self._is_open:
            self._is_open = False
            self._release(self._state)
