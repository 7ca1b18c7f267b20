"""A scripted engine for tests: known tokens, paced by the test instead of by time, able to stall, fail and die."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Callable, Sequence

from vllm_mxext.engine.backends.fake_adapters import FakeAdapters
from vllm_mxext.engine.backends.fake_request import OpenRequest
from vllm_mxext.engine.backends.fake_sample import FakeSample
from vllm_mxext.engine.backends.fake_tokenizer import FakeTokenizer
from vllm_mxext.engine.client import AdapterInfo, AdapterSource, EnginePhase, EngineStatus, ModelInfo
from vllm_mxext.errors import (
    ContextLengthExceededError,
    EngineDeadError,
    EngineNotReadyError,
    GenerationError,
    InvalidRequestError,
    MxError,
    QueueFullError,
)
from vllm_mxext.observability.stats import FinishedRequest, NullStatsRecorder, StatsRecorder
from vllm_mxext.outputs import RequestMetrics, RequestOutput
from vllm_mxext.requests import BeamSearchRequest, GenerateRequest, TextPrompt
from vllm_mxext.sampling_params import OutputKind, SamplingParams

Script = Callable[[GenerateRequest, Sequence[int], int], Sequence[int]]
"""(request, prompt token ids, sample index) -> the tokens the sample would produce without any limit."""


def echo_script(request: GenerateRequest, prompt_token_ids: Sequence[int], index: int) -> Sequence[int]:
    """Says the prompt again without its special tokens, then ends; `ignore_eos` repeats it."""
    del index
    said = [token for token in prompt_token_ids if token < FakeTokenizer.FIRST_SPECIAL]
    repeats = 1 + (request.params.max_tokens or 0) // max(1, len(said)) if request.params.ignore_eos else 1
    return [*(said * repeats), FakeTokenizer.EOS]


class FakeEngineClient:
    """An `EngineClient` without a model.

    Every token waits for the pace: open by default, or as many steps as the test allows after `hold()`.

    Args:
        script: what each sample says; by default its prompt.
        max_num_seqs: requests that make progress at once; others wait.
        max_queued: requests that may wait; more get `QueueFullError`.
        ready_on_start: become ready in `start()`; otherwise the test calls `set_status()`.
        max_model_len: context length in tokens.
        default_sampling: as in `ModelInfo`.
        recorder: where figures go.
        max_loras: adapter slots.

    Attributes:
        requests: every admitted request, in order.
        aborted: ids of requests that ended by abort, in order.
        num_steps: steps made, each a token per running sample.
        num_starts: calls of `start()`.
        num_shutdowns: calls of `shutdown()`.
        is_frozen: `check_health()` does not return.
    """

    def __init__(
        self,
        script: Script = echo_script,
        *,
        max_num_seqs: int = 64,
        max_queued: int = 64,
        ready_on_start: bool = True,
        max_model_len: int = 4096,
        default_sampling: dict[str, float | int] | None = None,
        recorder: StatsRecorder | None = None,
        max_loras: int = 0,
    ) -> None:
        self.requests: list[GenerateRequest] = []
        self.aborted: list[str] = []
        self.num_starts = 0
        self.num_steps = 0
        self.num_shutdowns = 0
        self.is_frozen = False
        self._script = script
        self._max_num_seqs = max_num_seqs
        self._max_queued = max_queued
        self._ready_on_start = ready_on_start
        self._recorder = recorder or NullStatsRecorder()
        self._tokenizer = FakeTokenizer()
        self._status = EngineStatus(EnginePhase.STARTING)
        names = ("fake-model", "org/fake-model")
        self._adapters = FakeAdapters(max_loras, reserved=names)
        self._model = ModelInfo(
            names,
            "fake",
            max_model_len,
            FakeTokenizer.SIZE,
            20,
            default_sampling or {},
            1,
            max_num_seqs + max_queued,
            max_loras=max_loras,
            max_lora_rank=self._adapters.max_lora_rank,
        )
        self._open: dict[str, OpenRequest] = {}
        self._steps_allowed: int | None = None
        self._changed = asyncio.Event()
        self._loop_task: asyncio.Task[None] | None = None

    @property
    def status(self) -> EngineStatus:
        """Where the engine stands now."""
        return self._status

    @property
    def model(self) -> ModelInfo:
        """The served model."""
        return self._model

    @property
    def tokenizer(self) -> FakeTokenizer:
        """A tokenizer of bytes."""
        return self._tokenizer

    @property
    def num_open(self) -> int:
        """Requests admitted and not finished."""
        return len(self._open)

    def hold(self) -> None:
        """Lets no further token through until `release()`."""
        self._steps_allowed = 0

    def release(self, num_steps: int | None = None) -> None:
        """Lets `num_steps` more tokens per sample through, or everything."""
        self._steps_allowed = None if num_steps is None else (self._steps_allowed or 0) + num_steps
        self._wake()

    def set_status(self, status: EngineStatus) -> None:
        """Moves the engine to another phase of its life."""
        self._status = status
        self._wake()

    def fail(self, message: str) -> None:
        """Fails every open request, as a kernel error would."""
        for opened in list(self._open.values()):
            self._end(opened, GenerationError(message))

    def fail_request(self, request_id: str, message: str) -> None:
        """Fails one open request."""
        self._end(self._open[request_id], GenerationError(message))

    def die(self, message: str) -> None:
        """Kills the engine for good."""
        self._status = EngineStatus(EnginePhase.DEAD, detail=message)
        for opened in list(self._open.values()):
            self._end(opened, EngineDeadError(message))
        self._wake()

    async def wait_for(self, condition: Callable[[], bool]) -> None:
        """Returns once `condition()` holds; it is looked at again whenever something changes in the engine."""
        while not condition():
            changed = self._changed
            await changed.wait()

    async def start(self) -> None:
        """Begins "loading"."""
        self.num_starts += 1
        self._loop_task = asyncio.create_task(self._run(), name="fake-engine")
        if self._ready_on_start:
            self.set_status(EngineStatus(EnginePhase.READY, 1.0))
        else:
            self.set_status(EngineStatus(EnginePhase.LOADING, 0.0))

    async def wait_until_ready(self) -> None:
        """Returns when requests are accepted.

        Raises:
            EngineDeadError: start-up failed.
        """
        await self.wait_for(lambda: self._status.phase in (EnginePhase.READY, EnginePhase.DEAD))
        if self._status.phase is EnginePhase.DEAD:
            raise EngineDeadError(self._status.detail)

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[RequestOutput, None]:
        """Validates and admits `request`, then returns its output stream; see `EngineClient.generate`."""
        prompt_token_ids = self._admit(request)
        limit = request.params.max_tokens or self._model.max_model_len - len(prompt_token_ids)
        preamble = self._adapters.preamble(request)
        samples = [
            FakeSample(index, [*preamble, *self._script(request, prompt_token_ids, index)], request.params, limit)
            for index in range(request.params.n)
        ]
        opened = OpenRequest(request, prompt_token_ids, samples, RequestMetrics(time.monotonic()))
        self._open[request.request_id] = opened
        self.requests.append(request)
        self._wake()
        return self._stream(opened)

    async def beam_search(self, request: BeamSearchRequest) -> AsyncGenerator[RequestOutput, None]:
        """Serves a beam search as if its beams were samples; see `EngineClient.beam_search`."""
        given = request.params
        params = SamplingParams(
            n=given.num_returned,
            best_of=given.beam_width,
            max_tokens=given.max_tokens,
            ignore_eos=given.ignore_eos,
            logprobs=given.logprobs,
            include_stop_str_in_output=given.include_stop_str_in_output,
            output_kind=OutputKind.FINAL_ONLY,
        )
        return await self.generate(
            GenerateRequest(
                request.request_id, request.prompt, params, request.priority, request.cache_salt, request.timeout_s,
                adapter=request.adapter, adapter_scale=request.adapter_scale,
            )
        )  # fmt: skip

    async def abort(self, request_ids: Sequence[str]) -> None:
        """Ends open requests with finish reason `abort`; unknown ids are ignored."""
        for request_id in request_ids:
            if request_id in self._open:
                self._abort(self._open[request_id])

    async def check_health(self) -> None:
        """Returns if the engine answers; never returns while `is_frozen`.

        Raises:
            EngineDeadError: it is dead.
        """
        if self._status.phase is EnginePhase.DEAD:
            raise EngineDeadError(self._status.detail)
        await self.wait_for(lambda: not self.is_frozen)

    async def reset_prefix_cache(self) -> bool:
        """There is nothing to forget."""
        return not self._open

    @property
    def adapters(self) -> tuple[AdapterInfo, ...]:
        """The adapters that requests may name."""
        requests = [opened.request for opened in self._open.values()]
        return self._adapters.infos(requests[: self._max_num_seqs], requests[self._max_num_seqs :])

    def has_adapter(self, name: str) -> bool:
        """Whether requests may name this adapter."""
        return self._adapters.has(name)

    async def load_adapter(self, source: AdapterSource, *, replaces: bool = False, pins: bool = False) -> AdapterInfo:
        """Serves an adapter; see `EngineClient.load_adapter`."""
        return self._adapters.load(source, replaces=replaces, pins=pins)

    async def unload_adapter(self, name: str) -> AdapterInfo:
        """Takes an adapter's name away; see `EngineClient.unload_adapter`."""
        return self._adapters.unload(name)

    def begin_drain(self) -> None:
        """Refuses new requests from now on; open ones go on."""
        self.set_status(EngineStatus(EnginePhase.DRAINING, 1.0))

    async def shutdown(self, timeout_s: float = 0.0) -> None:
        """Waits up to `timeout_s` for open requests, aborts the rest and stops."""
        self.num_shutdowns += 1
        self._wake()
        if timeout_s > 0 and self._open:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self.wait_for(lambda: not self._open), timeout_s)
        await self.abort(list(self._open))
        if self._loop_task is not None:
            self._loop_task.cancel()
            await asyncio.gather(self._loop_task, return_exceptions=True)
            self._loop_task = None

    def _admit(self, request: GenerateRequest) -> list[int]:
        if self._status.phase is EnginePhase.DEAD:
            raise EngineDeadError(self._status.detail)
        if not self._status.accepts_requests:
            raise EngineNotReadyError(f"The engine is {self._status.phase.value}; retry later.")
        if request.request_id in self._open:
            raise InvalidRequestError(f"A request with id {request.request_id!r} is open.", param="request_id")
        prompt, params = request.prompt, request.params
        if isinstance(prompt, TextPrompt):
            prompt_token_ids = self._tokenizer.encode(prompt.text, add_special_tokens=prompt.add_special_tokens)
        else:
            prompt_token_ids = list(prompt.token_ids)
        self._check(prompt_token_ids, params)
        if len(self._open) >= self._max_num_seqs + self._max_queued:
            self._recorder.record_rejection("queue_full")
            raise QueueFullError("The request queue is full; retry in 2 seconds.", retry_after_s=2.0)
        return prompt_token_ids

    def _check(self, prompt_token_ids: list[int], params: SamplingParams) -> None:
        if not prompt_token_ids:
            raise InvalidRequestError("The prompt is empty.", param="prompt")
        if any(not 0 <= token < FakeTokenizer.SIZE for token in prompt_token_ids):
            raise InvalidRequestError("The prompt holds a token id outside the vocabulary.", param="prompt")
        if params.logprobs is not None and params.logprobs > self._model.max_logprobs:
            raise InvalidRequestError(f"logprobs is at most {self._model.max_logprobs}.", param="logprobs")
        limit, asked = self._model.max_model_len, len(prompt_token_ids) + (params.max_tokens or 1)
        if asked > limit:
            raise ContextLengthExceededError(
                f"This model's maximum context length is {limit} tokens. However, you requested {asked} tokens.",
                param="prompt" if len(prompt_token_ids) >= limit else "max_tokens",
            )

    async def _run(self) -> None:
        while True:
            await self.wait_for(lambda: bool(self._open) and self._steps_allowed != 0)
            if self._steps_allowed is not None:
                self._steps_allowed -= 1
            for opened in list(self._open.values())[: self._max_num_seqs]:
                self._step(opened)
            self.num_steps += 1
            self._wake()
            await asyncio.sleep(0)

    def _step(self, opened: OpenRequest) -> None:
        now = time.monotonic()
        if opened.metrics.first_token_s is None:
            opened.metrics.first_scheduled_s = opened.metrics.arrival_s
            opened.metrics.first_token_s = now
            self._recorder.record_first_token(len(opened.prompt_token_ids), now - opened.metrics.arrival_s)
        for sample in opened.samples:
            if sample.finish_reason is None:
                sample.append_token()
        if opened.is_finished:
            self._close(opened)
        opened.changed.set()

    async def _stream(self, opened: OpenRequest) -> AsyncGenerator[RequestOutput, None]:
        kind = opened.request.params.output_kind
        try:
            while True:
                await opened.changed.wait()
                opened.changed.clear()
                if opened.error is not None:
                    raise opened.error
                if kind is OutputKind.FINAL_ONLY and not opened.is_finished:
                    continue
                output = opened.take_output()
                if output.outputs:
                    yield output
                if output.finished:
                    return
        finally:
            if not opened.is_finished:
                self._abort(opened)

    def _abort(self, opened: OpenRequest) -> None:
        if self._open.get(opened.request.request_id) is not opened:
            return
        for sample in opened.samples:
            sample.finish_reason = sample.finish_reason or "abort"
        self.aborted.append(opened.request.request_id)
        self._close(opened)
        opened.changed.set()

    def _close(self, opened: OpenRequest) -> None:
        opened.metrics.finished_s = time.monotonic()
        self._open.pop(opened.request.request_id, None)
        self._recorder.record_finished(
            FinishedRequest(
                [sample.finish_reason or "error" for sample in opened.samples], opened.metrics,
                len(opened.prompt_token_ids), [len(sample.token_ids) for sample in opened.samples],
                opened.request.params.max_tokens, opened.request.adapter,
            )
        )  # fmt: skip
        self._wake()

    def _end(self, opened: OpenRequest, error: MxError) -> None:
        opened.error = error
        for sample in opened.samples:
            sample.finish_reason = "error"
        self._close(opened)
        opened.changed.set()

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
