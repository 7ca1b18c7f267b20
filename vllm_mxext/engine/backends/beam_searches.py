"""`BeamSearches`: the beam searches that a native client runs, each a task that asks for one step after the other."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable

from vllm_mxext.engine.frontend.beam_search import BeamSearch
from vllm_mxext.engine.frontend.input_processor import ProcessedRequest
from vllm_mxext.engine.frontend.output_processor import TIMEOUT
from vllm_mxext.engine.frontend.output_stream import OutputStream, RequestStream
from vllm_mxext.errors import DeadlineExceededError
from vllm_mxext.observability.stats import FinishedRequest, StatsRecorder
from vllm_mxext.outputs import FinishReasonName, RequestOutput
from vllm_mxext.tokenizer.interface import Tokenizer


class BeamStream(RequestStream):
    """The one output of a beam search; leaving the stream, or being cancelled in it, ends the search.

    Args:
        task: the search.
    """

    def __init__(self, task: asyncio.Task[RequestOutput]) -> None:
        self._task = task
        self._is_open = True

    async def __anext__(self) -> RequestOutput:
        """Returns the output.

        Raises:
            GenerationError: a step failed in the engine.
            DeadlineExceededError: the time of the search was over before its first step.
            EngineDeadError: the engine is gone for good.
        """
        if not self._is_open:
            raise StopAsyncIteration
        self._is_open = False
        return await self._task

    async def aclose(self) -> None:
        """Leaves the stream and ends the search if it goes on."""
        self._is_open = False
        if not self._task.done():
            self._task.cancel()
            await asyncio.wait((self._task,))

    def __del__(self) -> None:
        loop = self._task.get_loop()
        if not self._task.done() and not loop.is_closed():
            loop.call_soon_threadsafe(self._task.cancel)


class _Run:
    """A search while it runs: its streams, and how it was told to end."""

    def __init__(self, search: BeamSearch) -> None:
        self.search = search
        self.step_ids: list[str] = []
        self.ending: FinishReasonName | None = None


class BeamSearches:
    """Runs beam searches.

    Args:
        open_step: opens the stream of a step's request.
        abort_steps: ends such requests.
        tokenizer: makes texts.
        recorder: told about the ends of searches.
        ended: called with each search when it has ended.
    """

    def __init__(
        self,
        open_step: Callable[[ProcessedRequest], OutputStream],
        abort_steps: Callable[[Iterable[str]], None],
        tokenizer: Tokenizer,
        recorder: StatsRecorder,
        ended: Callable[[BeamSearch], None],
    ) -> None:
        self._open_step = open_step
        self._abort_steps = abort_steps
        self._tokenizer = tokenizer
        self._recorder = recorder
        self._ended = ended
        self._runs: dict[str, _Run] = {}

    @property
    def num_places(self) -> int:
        """Samples that the open searches count as: their beam widths."""
        return sum(run.search.request.params.beam_width for run in self._runs.values())

    @property
    def request_ids(self) -> list[str]:
        """Ids of the open searches."""
        return list(self._runs)

    def has_request(self, request_id: str) -> bool:
        """Whether a search of this id is open."""
        return request_id in self._runs

    def start(self, search: BeamSearch) -> BeamStream:
        """Starts a search; its id must not be in use."""
        run = _Run(search)
        self._runs[search.request.request_id] = run
        task = asyncio.create_task(self._serve(run), name=f"beam search {search.request.request_id}")
        task.add_done_callback(lambda task: self._finish(run, task))
        return BeamStream(task)

    def abort(self, request_ids: Iterable[str]) -> None:
        """Ends searches with finish reason `abort`; unknown ids are ignored."""
        for request_id in request_ids:
            if request_id in self._runs:
                self._end(self._runs[request_id], "abort")

    def _end(self, run: _Run, reason: FinishReasonName) -> None:
        run.ending = run.ending or reason
        self._abort_steps(run.step_ids)

    async def _serve(self, run: _Run) -> RequestOutput:
        search = run.search
        timeout_s = search.request.timeout_s
        timer = None
        if timeout_s is not None:
            remaining_s = search.metrics.arrival_s + timeout_s - time.monotonic()
            timer = asyncio.get_running_loop().call_later(max(0.0, remaining_s), self._end, run, "length")
        try:
            while not search.is_finished:
                if run.ending is None:
                    await self._step(run)
                if run.ending is not None and not search.is_finished:
                    search.cut(run.ending)
            if run.ending == "length" and not search.has_output:
                raise DeadlineExceededError(f"The request had no output within its {timeout_s:g} seconds.")
            return search.output(self._tokenizer, TIMEOUT if run.ending == "length" else None)
        finally:
            if timer is not None:
                timer.cancel()

    def _finish(self, run: _Run, task: asyncio.Task[RequestOutput]) -> None:
        """Forgets a search that has ended, also one that was cancelled before it began."""
        del self._runs[run.search.request.request_id]
        has_failed = task.cancelled() or task.exception() is not None
        self._record(run.search, None if has_failed else task.result())
        self._ended(run.search)

    async def _step(self, run: _Run) -> None:
        """Computes one step; leaving it early aborts its requests."""
        async with contextlib.AsyncExitStack() as stack:
            streams = []
            for step in run.search.next_steps():
                stream = self._open_step(step)
                stack.push_async_callback(stream.aclose)
                streams.append(stream)
                run.step_ids.append(step.request.request_id)
            outputs = [await anext(stream) for stream in streams]
        run.step_ids.clear()
        if run.ending is None:
            run.search.advance(outputs)

    def _record(self, search: BeamSearch, output: RequestOutput | None) -> None:
        """Counts the search as one request, whose tokens all came at its end."""
        metrics = search.metrics
        metrics.finished_s = time.monotonic()
        lengths = [] if output is None else [len(sample.token_ids) for sample in output.outputs]
        num_prompt_tokens = len(search.processed.prompt_token_ids)
        if sum(lengths):
            metrics.first_token_s = metrics.finished_s
            self._recorder.record_first_token(num_prompt_tokens, metrics.finished_s - metrics.arrival_s)
            self._recorder.record_next_tokens(sum(lengths) - 1, [0.0])
        reasons: list[FinishReasonName] = ["abort"] * search.request.params.num_returned
        if output is not None:
            reasons = [sample.finish_reason or "error" for sample in output.outputs]
        request = search.request
        self._recorder.record_finished(
            FinishedRequest(reasons, metrics, num_prompt_tokens, lengths, request.params.max_tokens, request.adapter)
        )
