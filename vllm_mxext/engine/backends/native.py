"""`NativeEngineClient`: the native engine in a process of its own, as servers and asynchronous callers see it."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TypeVar

from vllm_mxext.config.engine import EngineConfig
from vllm_mxext.config.frontend import FrontendConfig
from vllm_mxext.engine.adapter_files import InspectFiles, make_inspection
from vllm_mxext.engine.admission import Admission
from vllm_mxext.engine.backends.adapters import ClientAdapters, Loan
from vllm_mxext.engine.backends.beam_searches import BeamSearches, BeamStream
from vllm_mxext.engine.backends.requests_in_flight import RequestsInFlight
from vllm_mxext.engine.client import AdapterInfo, AdapterSource, EnginePhase, EngineStatus, ModelInfo
from vllm_mxext.engine.frontend.beam_search import BeamSearch
from vllm_mxext.engine.frontend.grammars import make_grammar_admission
from vllm_mxext.engine.frontend.input_processor import InputProcessor, ProcessedRequest
from vllm_mxext.engine.frontend.output_processor import OutputProcessor, ProcessedStep
from vllm_mxext.engine.frontend.output_stream import OutputStream
from vllm_mxext.engine.frontend.request_state import RequestState
from vllm_mxext.engine.frontend.thinking_rules import find_reasoning_format
from vllm_mxext.engine.lora_registry import LoRARegistry
from vllm_mxext.engine.model_info import model_info
from vllm_mxext.engine.supervisor import CoreSupervisor, RestartPolicy
from vllm_mxext.errors import EngineDeadError, EngineNotReadyError, InvalidRequestError, QueueFullError
from vllm_mxext.native.core_client import AsyncCoreClient, ProcessCoreClient
from vllm_mxext.observability.stats import NullStatsRecorder, StatsRecorder
from vllm_mxext.requests import BeamSearchRequest, GenerateRequest, TextPrompt
from vllm_mxext.tokenizer.interface import Tokenizer

_NUM_GRAMMAR_THREADS = 2
_MAX_TOKENS_AT_ONCE = 100_000
"""Prompts of more tokens are checked in a thread."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class NativeClientOptions:
    """How the client behaves around the engine.

    Attributes:
        num_tokenizer_threads: prompts tokenized at once.
        stall_after_s: silence of a core after which it is reported as stalled, in seconds; ten times as long while it
            is seen to compute.
        restart: how often and how fast a dead core is replaced.
    """

    num_tokenizer_threads: int = 2
    stall_after_s: float = 120.0
    restart: RestartPolicy = field(default_factory=RestartPolicy)


class NativeEngineClient:
    """The native engine behind `EngineClient`.

    Lives on the event loop that `start()` runs on; nothing here may be called from another thread.

    Args:
        config: the engine.
        frontend: admission and sampling defaults.
        tokenizer: the model's tokenizer.
        options: threads, watchdog and restarts.
        recorder: told about steps, tokens, ends and rejections.
        spawn: makes a client for a new core; by default one with a process of its own.
        inspect: looks at an adapter's files; by default for the model of the engine.
    """

    def __init__(
        self,
        config: EngineConfig,
        frontend: FrontendConfig,
        tokenizer: Tokenizer,
        *,
        options: NativeClientOptions | None = None,
        recorder: StatsRecorder | None = None,
        spawn: Callable[[], AsyncCoreClient] | None = None,
        inspect: InspectFiles | None = None,
    ) -> None:
        self._options = options or NativeClientOptions()
        self._recorder = recorder or NullStatsRecorder()
        self._tokenizer = tokenizer
        self._model = model_info(config, frontend)
        self._grammars = make_grammar_admission(config, tokenizer, frontend.structured_outputs)
        reasoning = find_reasoning_format(frontend, tokenizer)
        self._input = InputProcessor(config, tokenizer, lambda: secrets.randbits(64), self._grammars, reasoning)
        self._outputs = OutputProcessor(tokenizer, time.monotonic, self._recorder, frontend.stream_interval)
        self._admission = Admission(frontend.admission, config.scheduler.max_num_seqs)
        registry = LoRARegistry(self._model.served_names)
        self._supervisor = CoreSupervisor(
            spawn or (lambda: ProcessCoreClient(config)),
            RequestsInFlight(self._outputs, registry, self._end, self._recorder),
            self._options.restart,
        )
        inspect = inspect or make_inspection(config)
        self._adapters = ClientAdapters(registry, self._supervisor, inspect, is_on=config.lora is not None)
        self._executor = ThreadPoolExecutor(self._options.num_tokenizer_threads, thread_name_prefix="tokenize")
        self._grammar_executor = ThreadPoolExecutor(_NUM_GRAMMAR_THREADS, thread_name_prefix="grammar")
        self._searches = BeamSearches(self._open_step, self._abort_open, tokenizer, self._recorder, self._search_ended)
        self._deadline: tuple[float, asyncio.TimerHandle] | None = None
        """When the next request runs out of time, and what looks then."""
        self._arriving: dict[str, int] = {}
        """Ids of requests that are being tokenized, with their numbers of samples."""
        self._early_aborts: set[str] = set()
        self._is_draining = False
        self._is_shut_down = False
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def status(self) -> EngineStatus:
        """Where the engine stands now."""
        status = self._supervisor.status
        if status.phase is EnginePhase.DEAD:
            return status
        if self._is_draining:
            return replace(status, phase=EnginePhase.DRAINING)
        silence_s, limit_s = self._supervisor.silence_s, self._options.stall_after_s
        if silence_s > limit_s and self._supervisor.is_at_work:
            limit_s *= 10  # a slow machine may take that long for a step, but what computes for ever hangs
        if status.phase is EnginePhase.READY and silence_s > limit_s:
            detail = f"The engine process has said nothing for {silence_s:.0f} s."
            return replace(status, phase=EnginePhase.STALLED, detail=detail)
        return status

    @property
    def model(self) -> ModelInfo:
        """The served model."""
        return self._model

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer with its chat template."""
        return self._tokenizer

    @property
    def supervisor(self) -> CoreSupervisor:
        """What runs the core, for tests and tools that look at its process."""
        return self._supervisor

    async def start(self) -> None:
        """Begins loading in the background and returns at once; `status` tells how it goes."""
        self._supervisor.start()

    async def wait_until_ready(self) -> None:
        """Returns when requests are accepted.

        Raises:
            EngineDeadError: start-up failed; the text is the root cause.
        """
        await self._supervisor.wait_until_settled()

    async def generate(self, request: GenerateRequest) -> OutputStream:
        """Validates and admits `request`, then returns its output stream.

        Raises:
            InvalidRequestError: the request cannot be served as it is.
            AdapterNotFoundError: its adapter is not loaded.
            QueueFullError: too many requests are waiting.
            EngineNotReadyError: loading, draining or stalled.
            EngineDeadError: the engine is gone for good.
        """
        arrival_s = time.monotonic()
        with self._arrival(request, request.params.num_samples, arrival_s) as loan:
            executor = self._executor_for(request)
            processed = await self._in_thread(executor, lambda: self._input.process(request, arrival_s, loan.key))
            self._check_still_accepts(processed)
            stream = self._open(processed)
            loan.is_kept = True
            if request.request_id in self._early_aborts:
                self._end(self._outputs.abort([request.request_id]))
            else:
                self._supervisor.submit(processed.samples)
        return stream

    async def beam_search(self, request: BeamSearchRequest) -> BeamStream:
        """Validates and admits a beam search, which counts as `beam_width` samples, and returns a stream of one output.

        Raises:
            InvalidRequestError: the request cannot be served as it is.
            AdapterNotFoundError: its adapter is not loaded.
            QueueFullError: too many requests are waiting.
            EngineNotReadyError: loading, draining or stalled.
            EngineDeadError: the engine is gone for good.
        """
        arrival_s = time.monotonic()
        with self._arrival(request, request.params.beam_width, arrival_s) as loan:
            executor = self._executor if isinstance(request.prompt, TextPrompt) else None
            search = await self._in_thread(
                executor, lambda: BeamSearch.begin(request, self._input, arrival_s, loan.key)
            )
            self._check_still_accepts(search.processed)
            stream = self._searches.start(search)
            loan.is_kept = True
            self._searches.abort(self._early_aborts & {request.request_id})
        return stream

    async def abort(self, request_ids: Sequence[str]) -> None:
        """Ends open requests with finish reason `abort`; unknown ids are ignored."""
        self._early_aborts.update(key for key in request_ids if key in self._arriving)
        self._searches.abort(request_ids)
        self._abort_open(request_ids)

    async def check_health(self) -> None:
        """Returns if the engine answers.

        Raises:
            EngineDeadError: it does not: it is lost, or has been silent for too long while it has work.
        """
        status = self.status
        if status.phase in (EnginePhase.DEAD, EnginePhase.STALLED):
            raise EngineDeadError(status.detail)

    async def reset_prefix_cache(self) -> bool:
        """Forgets cached blocks, so that later requests find nothing computed before; False if that was refused."""
        return await self._supervisor.reset_prefix_cache()

    @property
    def adapters(self) -> tuple[AdapterInfo, ...]:
        """The adapters that requests may name, in the order of loading."""
        return self._adapters.infos

    def has_adapter(self, name: str) -> bool:
        """Whether requests may name this adapter."""
        return self._adapters.has(name)

    async def load_adapter(self, source: AdapterSource, *, replaces: bool = False, pins: bool = False) -> AdapterInfo:
        """Checks an adapter's files, reads its weights and serves it from then on; waits for an engine that is ready.

        Raises:
            AdapterConflictError: the name is taken by another adapter, or by the model.
            AdapterError: the files are missing or broken, or do not fit the model or the limits.
            UnsupportedFeatureError: the engine serves no adapters.
            EngineDeadError: the engine is gone for good.
        """
        return await self._adapters.load(source, replaces=replaces, pins=pins)

    async def unload_adapter(self, name: str) -> AdapterInfo:
        """Takes a name away at once; the weights are given back when the last open request with them has ended.

        Raises:
            AdapterNotFoundError: there is no adapter of this name.
        """
        return await self._adapters.unload(name)

    def begin_drain(self) -> None:
        """Refuses new requests from now on; open ones go on."""
        self._is_draining = True

    async def shutdown(self, timeout_s: float = 0.0) -> None:
        """Waits up to `timeout_s` seconds for open requests, aborts the rest, and stops the engine process."""
        self.begin_drain()
        if timeout_s > 0:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._idle.wait(), timeout_s)
        self._is_shut_down = True
        await self.abort([*self._arriving, *self._searches.request_ids, *self._outputs.request_ids])
        await self._supervisor.stop()
        await self._adapters.close()
        self._executor.shutdown(wait=False)
        self._grammar_executor.shutdown(wait=False)
        self._grammars.close()

    # --- requests ---

    def _check_accepts(self) -> None:
        status = self.status
        if status.phase is EnginePhase.DEAD:
            raise EngineDeadError(status.detail)
        if not status.accepts_requests:
            raise EngineNotReadyError(f"The engine takes no requests now: {status.detail or status.phase.value}.")

    def _check_still_accepts(self, processed: ProcessedRequest) -> None:
        """Checks again after tokenizing what may have changed in between; draining is not among it."""
        if self._is_shut_down:
            raise EngineNotReadyError("The engine has been shut down.")
        if self._supervisor.status.phase is EnginePhase.DEAD:
            raise EngineDeadError(self._supervisor.status.detail)
        if self._admission.has_token_limit():
            num_new = len(processed.prompt_token_ids)
            with self._recording_rejection():
                self._admission.check_tokens(num_new, self._outputs.queued_tokens(), time.monotonic())

    @contextlib.contextmanager
    def _arrival(self, request: GenerateRequest | BeamSearchRequest, num_samples: int, now_s: float) -> Iterator[Loan]:
        """Reserves a place for the request until it is open, and lends it its adapter."""
        self._check_accepts()
        request_id = request.request_id
        is_open = self._outputs.has_request(request_id) or self._searches.has_request(request_id)
        if request_id in self._arriving or is_open:
            raise InvalidRequestError(f"Request id '{request_id}' is in use; choose another.", param="request_id")
        num_open = self._outputs.num_samples + sum(self._arriving.values()) + self._searches.num_places
        with self._recording_rejection():
            self._admission.check_samples(num_samples, num_open, now_s)
        self._arriving[request_id] = num_samples
        self._refresh_idle()
        try:
            with self._adapters.lent(request.adapter) as loan:
                yield loan
        finally:
            del self._arriving[request_id]
            self._early_aborts.discard(request_id)
            self._refresh_idle()

    @contextlib.contextmanager
    def _recording_rejection(self) -> Iterator[None]:
        try:
            yield
        except QueueFullError:
            self._recorder.record_rejection("queue_full")
            raise

    def _executor_for(self, request: GenerateRequest) -> ThreadPoolExecutor | None:
        """Returns the threads that validate a request; None for a few tokens, which take no time.

        Grammars have threads of their own, so that slow ones hold nobody up but each other.
        """
        params, prompt = request.params, request.prompt
        if params.structured_outputs is not None:
            return self._grammar_executor
        if isinstance(prompt, TextPrompt) or len(prompt.token_ids) > _MAX_TOKENS_AT_ONCE:
            return self._executor
        limits_reasoning = params.thinking_token_budget is not None
        looks_further = params.bad_words or params.dry_multiplier or limits_reasoning or params.extra_args
        return self._executor if looks_further else None

    async def _in_thread(self, executor: ThreadPoolExecutor | None, work: Callable[[], T]) -> T:
        """Validates a request, in a thread if that may take a while."""
        if executor is None:
            return work()
        return await asyncio.get_running_loop().run_in_executor(executor, work)

    def _open(self, processed: ProcessedRequest) -> OutputStream:
        changed = asyncio.Event()
        state = self._outputs.add(processed, changed.set)
        self._watch_deadlines()
        return OutputStream(state, changed, self._release)

    def _open_step(self, processed: ProcessedRequest) -> OutputStream:
        """Opens one step of a beam search, which has its place already."""
        status = self._supervisor.status
        if status.phase is EnginePhase.DEAD:
            raise EngineDeadError(status.detail)
        stream = self._open(processed)
        self._supervisor.submit(processed.samples)
        return stream

    def _abort_open(self, request_ids: Iterable[str]) -> None:
        self._end(self._outputs.abort(request_ids))

    def _search_ended(self, search: BeamSearch) -> None:
        self._adapters.take_back(search.processed.adapter)
        self._admission.record_end(time.monotonic())
        self._refresh_idle()

    def _watch_deadlines(self) -> None:
        """Sets the timer for the request that runs out of time next; one that is set for an earlier one stays."""
        next_s = self._outputs.next_deadline_s
        if next_s is None or (self._deadline is not None and self._deadline[0] <= next_s):
            return
        if self._deadline is not None:
            self._deadline[1].cancel()
        delay_s = max(0.0, next_s - time.monotonic())
        self._deadline = (next_s, asyncio.get_running_loop().call_later(delay_s, self._expire))

    def _expire(self) -> None:
        self._deadline = None
        self._end(self._outputs.expire())
        self._watch_deadlines()

    def _release(self, state: RequestState) -> None:
        """Ends a request whose consumer has left; by now its id may belong to another one."""
        if self._outputs.is_open(state):
            self._end(self._outputs.abort([state.request_id]))

    def _end(self, step: ProcessedStep) -> None:
        """Tells the core about requests that ended on this side."""
        if step.abort_ids:
            self._supervisor.abort(step.abort_ids)
        now_s = time.monotonic()
        for state in step.changed:
            if state.is_finished and not state.processed.is_step:
                self._adapters.take_back(state.processed.adapter)
                self._admission.record_end(now_s)
        self._refresh_idle()

    def _refresh_idle(self) -> None:
        if self._outputs.num_requests or self._arriving or self._searches.request_ids:
            self._idle.clear()
        else:
            self._idle.set()
