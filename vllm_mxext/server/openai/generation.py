"""Open requests of one HTTP exchange: admitted together, read together, and always closed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from vllm_mxext.engine.client import EngineClient
from vllm_mxext.errors import EngineNotReadyError, GenerationError
from vllm_mxext.outputs import RequestOutput
from vllm_mxext.requests import BeamSearchRequest, GenerateRequest

_END = object()


class OpenGeneration:
    """The output streams of one or several admitted requests.

    Whoever gets one must call `aclose()`; it aborts what has not finished.
    """

    def __init__(
        self,
        client: EngineClient,
        request_ids: Sequence[str],
        streams: Sequence[AsyncGenerator[RequestOutput, None]],
    ) -> None:
        self._client = client
        self._streams = streams
        self._unfinished = dict.fromkeys(request_ids)

    @classmethod
    async def admit(
        cls, client: EngineClient, requests: Sequence[GenerateRequest | BeamSearchRequest]
    ) -> OpenGeneration:
        """Submits `requests`; if one is refused, none stays open.

        Raises:
            RequestError: a request was refused.
            EngineError: the engine takes none.
        """
        request_ids = [request.request_id for request in requests]
        streams: list[AsyncGenerator[RequestOutput, None]] = []
        try:
            for request in requests:
                if isinstance(request, BeamSearchRequest):
                    streams.append(await client.beam_search(request))
                else:
                    streams.append(await client.generate(request))
        except BaseException:
            await cls(client, request_ids, streams).aclose()
            raise
        return cls(client, request_ids, streams)

    async def aclose(self) -> None:
        """Ends the streams and aborts what has not finished."""
        for stream in self._streams:
            await stream.aclose()
        if self._unfinished:  # closing a generator that was never started runs none of its code
            await self._client.abort(list(self._unfinished))
            self._unfinished.clear()

    async def outputs(self) -> AsyncGenerator[tuple[int, RequestOutput], None]:
        """Yields (position of the request, output) as outputs come, from all requests.

        Raises:
            GenerationError: a request failed in the engine.
        """
        if len(self._streams) == 1:
            async for output in self._streams[0]:
                self._note(output)
                yield 0, output
            return
        queue: asyncio.Queue[tuple[int, RequestOutput | object | Exception]] = asyncio.Queue(maxsize=1)
        readers = [asyncio.create_task(_read_into(queue, i, stream)) for i, stream in enumerate(self._streams)]
        try:
            num_open = len(readers)
            while num_open:
                position, item = await queue.get()
                if isinstance(item, RequestOutput):
                    self._note(item)
                    yield position, item
                elif isinstance(item, Exception):
                    raise item
                else:
                    num_open -= 1
        finally:
            for reader in readers:
                reader.cancel()
            await asyncio.wait(readers)

    async def final_outputs(self) -> list[RequestOutput]:
        """Waits for every request and returns its last output, in the order of the requests.

        Raises:
            GenerationError: a request failed in the engine.
            EngineNotReadyError: a request was aborted by the server.
        """
        last: dict[int, RequestOutput] = {}
        async with aclosing(self.outputs()) as outputs:
            async for position, output in outputs:
                last[position] = output  # noqa: PERF403 - the ruff rule's suggestion hides that only the last one counts
        finals = [last[position] for position in range(len(self._streams))]
        reasons = {sample.finish_reason for output in finals for sample in output.outputs}
        if "error" in reasons:
            raise GenerationError("The engine failed on this request; its log says why.")
        if "abort" in reasons:
            raise EngineNotReadyError("The server aborted this request before it was finished; send it again.")
        return finals

    def _note(self, output: RequestOutput) -> None:
        if output.finished:
            self._unfinished.pop(output.request_id, None)


async def _read_into(
    queue: asyncio.Queue[tuple[int, RequestOutput | object | Exception]],
    position: int,
    stream: AsyncGenerator[RequestOutput, None],
) -> None:
    try:
        async for output in stream:
            await queue.put((position, output))
    except Exception as error:  # handed on to whoever reads
        await queue.put((position, error))
    else:
        await queue.put((position, _END))
