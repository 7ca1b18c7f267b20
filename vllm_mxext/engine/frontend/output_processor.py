"""Open requests of a front: engine outputs come in as tokens and become text, finish reasons and times."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import msgspec

from vllm_mxext.engine.frontend.input_processor import ProcessedRequest
from vllm_mxext.engine.frontend.request_state import RequestState
from vllm_mxext.engine.frontend.sample_state import SampleState
from vllm_mxext.errors import DeadlineExceededError, EngineError, GenerationError
from vllm_mxext.logger import init_logger
from vllm_mxext.native.protocol import (
    EngineCoreOutput,
    EngineCoreOutputs,
    EngineCoreRequest,
    FinishReason,
    SchedulerStats,
)
from vllm_mxext.observability.stats import FinishedRequest, NullStatsRecorder, StatsRecorder, StepStats
from vllm_mxext.outputs import FinishReasonName
from vllm_mxext.tokenizer.interface import Tokenizer

logger = init_logger(__name__)

TIMEOUT = "timeout"
"""`stop_reason` of what ended because its time was over."""


@dataclass(slots=True)
class ProcessedStep:
    """What one engine step meant for the open requests.

    Attributes:
        changed: requests with something new to take, the finished ones included.
        abort_ids: core requests that ended here while the core still works on them.
    """

    changed: list[RequestState] = field(default_factory=list)
    abort_ids: list[str] = field(default_factory=list)


class OutputProcessor:
    """Owner of all text state.

    Args:
        tokenizer: the model's tokenizer.
        clock: monotonic time in seconds.
        recorder: told about steps, tokens and ends.
        stream_interval: tokens per streamed output, for requests that do not say.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        clock: Callable[[], float] = time.monotonic,
        recorder: StatsRecorder | None = None,
        stream_interval: int = 1,
    ) -> None:
        self._tokenizer = tokenizer
        self._clock = clock
        self._recorder = recorder or NullStatsRecorder()
        self._stream_interval = stream_interval
        self._requests: dict[str, RequestState] = {}
        self._samples: dict[str, tuple[RequestState, SampleState]] = {}
        self._num_steps = 0
        """Open samples that are steps of beam searches."""
        self._deadlines: dict[str, float] = {}

    @property
    def num_requests(self) -> int:
        """Open requests."""
        return len(self._requests)

    @property
    def num_samples(self) -> int:
        """Open samples, each of them one request of the core, less the steps of beam searches."""
        return len(self._samples) - self._num_steps

    @property
    def request_ids(self) -> list[str]:
        """Ids of open requests, oldest first."""
        return list(self._requests)

    def has_request(self, request_id: str) -> bool:
        """Whether a request of this id is open."""
        return request_id in self._requests

    def is_open(self, state: RequestState) -> bool:
        """Whether this very request is open, and not just another one of its id."""
        return self._requests.get(state.request_id) is state

    def add(self, processed: ProcessedRequest, on_change: Callable[[], None] | None = None) -> RequestState:
        """Opens a request.

        Args:
            processed: the request; its id must not be in use.
            on_change: called whenever there is something new to take.
        """
        state = RequestState(processed, self._tokenizer, on_change, self._stream_interval)
        self._requests[state.request_id] = state
        for sample in state.samples:
            self._samples[sample.request.request_id] = (state, sample)
        if processed.is_step:
            self._num_steps += 1
        timeout_s = processed.request.timeout_s
        if timeout_s is not None:
            self._deadlines[state.request_id] = processed.arrival_s + timeout_s
        return state

    @property
    def next_deadline_s(self) -> float | None:
        """When the time of an open request ends next, on the clock of arrivals; None = no request has a limit."""
        return min(self._deadlines.values(), default=None)

    def expire(self) -> ProcessedStep:
        """Ends the requests whose time is over: with what they have, or with an error if that is nothing."""
        step = ProcessedStep()
        if not self._deadlines:
            return step
        now_s = self._clock()
        for request_id in [key for key, deadline_s in self._deadlines.items() if deadline_s <= now_s]:
            state = self._requests[request_id]
            step.changed.append(state)
            if any(sample.token_ids for sample in state.samples):
                step.abort_ids += self._end_open_samples(state, "length", TIMEOUT)
            else:
                timeout_s = state.processed.request.timeout_s
                state.error = DeadlineExceededError(f"The request had no output within its {timeout_s:g} seconds.")
                step.abort_ids += self._end_open_samples(state, "abort", TIMEOUT)
            state.notify()
        return step

    def process(self, outputs: EngineCoreOutputs) -> ProcessedStep:
        """Takes one engine step's outputs; outputs of requests that are not open any more are ignored."""
        step = ProcessedStep()
        changed: dict[str, RequestState] = {}
        now_s = self._clock()
        num_next_tokens = 0
        gaps_s: list[float] = []
        for output in outputs.outputs:
            entry = self._samples.get(output.request_id)
            if entry is None:
                continue
            state, sample = entry
            changed[state.request_id] = state
            if not sample.has_output or output.num_preemptions or output.num_draft_tokens:
                _note_work(state, sample, output)
            if output.new_token_ids and not state.processed.is_step:
                num_next_tokens += self._time_tokens(state, sample, output, now_s, gaps_s)
            if output.finish_reason is FinishReason.ERROR:
                step.abort_ids += self._fail(state, GenerationError(output.error or "The engine gave no reason."))
                continue
            try:
                if output.prompt_logprobs is not None:
                    state.add_prompt_logprobs(output.prompt_logprobs)
                sample.add(output)
            except Exception as error:  # one request's text must not take the others down
                logger.exception("The text of request %s could not be made.", state.request_id)
                step.abort_ids += self._fail(state, GenerationError(f"Its text could not be made: {error}"))
                continue
            limit_s = state.processed.request.max_generation_s
            if (
                limit_s is not None
                and sample.has_line_break
                and now_s - (state.metrics.first_token_s or now_s) > limit_s
            ):
                sample.finish("length", TIMEOUT)
            if sample.is_finished:
                if output.finish_reason is None:
                    step.abort_ids.append(output.request_id)
                self._close_sample(state, sample)
        if num_next_tokens:
            self._recorder.record_next_tokens(num_next_tokens, gaps_s)
        step.changed = list(changed.values())
        for state in step.changed:
            state.notify()
        if outputs.stats is not None:
            self._recorder.record_step(_step_stats(outputs.stats))
        return step

    def abort(self, request_ids: Iterable[str]) -> ProcessedStep:
        """Ends requests with finish reason `abort`; unknown ids are ignored."""
        step = ProcessedStep()
        for request_id in request_ids:
            state = self._requests.get(request_id)
            if state is None:
                continue
            step.changed.append(state)
            step.abort_ids += self._end_open_samples(state, "abort")
            state.notify()
        return step

    def fail(self, core_request_id: str, error: EngineError) -> ProcessedStep:
        """Ends the request that a core request belongs to with an error; no effect if it is not open."""
        step = ProcessedStep()
        entry = self._samples.get(core_request_id)
        if entry is not None:
            state = entry[0]
            step.changed.append(state)
            step.abort_ids += self._fail(state, error)
            state.notify()
        return step

    def open_core_requests(self) -> list[EngineCoreRequest]:
        """The core requests that go on where they stand: tokens delivered so far count as output."""
        return [
            msgspec.structs.replace(
                sample.request,
                output_token_ids=list(sample.token_ids),
                sampler_state=sample.sampler_state,
                num_prompt_logprobs=state.num_prompt_logprobs,
            )
            for state, sample in self._samples.values()
        ]

    def count_restart(self) -> None:
        """Notes in every open request's metrics that the engine process was replaced."""
        for state in self._requests.values():
            state.metrics.num_restarts += 1

    def queued_tokens(self) -> int:
        """Prompt tokens of requests of which the core has reported nothing yet."""
        return sum(
            len(state.processed.prompt_token_ids)
            for state in self._requests.values()
            if not state.processed.is_step and not any(sample.has_output for sample in state.samples)
        )

    def _fail(self, state: RequestState, error: EngineError) -> list[str]:
        state.error = error
        logger.error("Request %s failed: %s", state.request_id, error)
        return self._end_open_samples(state, "error")

    def _end_open_samples(
        self, state: RequestState, reason: FinishReasonName, stop_reason: str | None = None
    ) -> list[str]:
        ended = [sample for sample in state.samples if not sample.is_finished]
        for sample in ended:
            sample.finish(reason, stop_reason)
            self._close_sample(state, sample)
        return [sample.request.request_id for sample in ended]

    def _close_sample(self, state: RequestState, sample: SampleState) -> None:
        del self._samples[sample.request.request_id]
        state.num_open_samples -= 1
        if state.processed.is_step:
            self._num_steps -= 1
        if state.is_finished:
            state.metrics.finished_s = self._clock()
            del self._requests[state.request_id]
            self._deadlines.pop(state.request_id, None)
            if state.processed.is_step:
                return
            self._recorder.record_finished(
                FinishedRequest(
                    finish_reasons=[sample.finish_reason for sample in state.samples if sample.finish_reason],
                    metrics=state.metrics,
                    num_prompt_tokens=len(state.processed.prompt_token_ids),
                    num_generation_tokens=[len(sample.token_ids) for sample in state.samples],
                    max_tokens=state.processed.request.params.max_tokens,
                    adapter=state.processed.request.adapter,
                )
            )

    def _time_tokens(
        self, state: RequestState, sample: SampleState, output: EngineCoreOutput, now_s: float, gaps_s: list[float]
    ) -> int:
        """Notes when a sample's newest tokens came, and how long after the ones before; records a request's first.

        Returns how many of them are left to be recorded.
        """
        metrics, previous_s, num_tokens = state.metrics, sample.last_token_s, len(output.new_token_ids)
        sample.last_token_s = now_s
        if metrics.first_token_s is None:
            metrics.first_token_s = now_s
            self._recorder.record_first_token(len(state.processed.prompt_token_ids), now_s - metrics.arrival_s)
            return num_tokens - 1
        gaps_s.append(now_s - (metrics.first_token_s if previous_s is None else previous_s))
        return num_tokens


def _note_work(state: RequestState, sample: SampleState, output: EngineCoreOutput) -> None:
    """Takes over what a sample's first output tells of its start, how often it was preempted, how drafts fared."""
    metrics = state.metrics
    if output.num_draft_tokens:
        fared = (output.num_draft_tokens, output.num_accepted_tokens)
        metrics.drafts[fared] = metrics.drafts.get(fared, 0) + 1
    metrics.num_preemptions = max(metrics.num_preemptions, output.num_preemptions)
    if output.scheduled_after_s is not None and metrics.first_scheduled_s is None:
        metrics.first_scheduled_s = metrics.arrival_s + output.scheduled_after_s
    if sample.index == 0 and output.num_cached_tokens is not None and state.num_cached_tokens is None:
        state.num_cached_tokens = output.num_cached_tokens


def _step_stats(stats: SchedulerStats) -> StepStats:
    num_used = stats.num_blocks - stats.num_free_blocks
    return StepStats(
        num_running=stats.num_running,
        num_waiting=stats.num_waiting,
        kv_cache_usage=num_used / stats.num_blocks if stats.num_blocks else 0.0,
        num_scheduled_tokens=stats.num_scheduled_tokens,
        num_preempted=stats.num_preempted,
        prefix_cache_queries=stats.prefix_cache_queries,
        prefix_cache_hits=stats.prefix_cache_hits,
        num_drafts=stats.num_drafts,
        num_draft_tokens=stats.num_draft_tokens,
        num_accepted_per_position=stats.num_accepted_per_position,
    )
