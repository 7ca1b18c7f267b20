"""`Scheduler`: decides which tokens of which requests each step computes, and when requests end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence

from vllm_mxext.config.engine import SchedulerConfig
from vllm_mxext.native.core.adapter_slots import AdapterSlots
from vllm_mxext.native.core.admission import AdmissionControl, check_limits, check_request
from vllm_mxext.native.core.drafting import Drafting
from vllm_mxext.native.core.kv_cache_manager import KVCacheManager
from vllm_mxext.native.core.preemption_log import PreemptionLog
from vllm_mxext.native.core.request import Request, RequestStatus
from vllm_mxext.native.core.step import Step
from vllm_mxext.native.core.stop import Stop, find_stop
from vllm_mxext.native.core.waiting import WaitingRequests
from vllm_mxext.native.protocol import (
    AdapterKey,
    EngineCoreOutput,
    EngineCoreOutputs,
    EngineCoreRequest,
    FinishReason,
    ModelRunnerOutput,
    SchedulerOutput,
    SchedulerStats,
    TokenLogprobs,
)

Clock = Callable[[], float]


class Scheduler:
    """Lets each request's `num_computed_tokens` catch up with its `num_tokens` within one token budget per step.

    One step of the engine is

        scheduled = scheduler.schedule()
        result = runner.execute(scheduled) if scheduled.total_num_scheduled_tokens else ModelRunnerOutput({})
        outputs = scheduler.update_from_output(scheduled, result)

    while `has_work`. If `execute()` raises, `fail_step()` takes the place of `update_from_output()`.

    Requests are served in the order of their `order_key`: arrival under `fcfs`, (priority, arrival) under `priority`.
    Running requests come first, those that need a single token before the others; waiting ones follow while budget,
    `max_num_seqs` and blocks allow, and one past another only if that one's adapter has no place yet
    (`adapter_slots.py`). When blocks run out, the last running request is
    preempted; if that is the one in need, it keeps its blocks and sits the step out. The first running request is
    therefore never held up, which is why everything finishes. A request that runs is a request that has blocks.

    Args:
        config: batching limits.
        num_blocks: blocks of the KV tensor, the null block included.
        block_size: token positions per block.
        enable_prefix_caching: share blocks between unrelated requests.
        max_model_len: tokens of prompt plus output at most.
        adapters: where adapters are; without it, no request may have one.
        clock: monotonic seconds.

    Raises:
        ConfigError: a request of `max_model_len` tokens could never run.
    """

    def __init__(
        self,
        config: SchedulerConfig,
        *,
        num_blocks: int,
        block_size: int,
        enable_prefix_caching: bool,
        max_model_len: int,
        adapters: AdapterSlots | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        check_limits(config, num_blocks=num_blocks, block_size=block_size, max_model_len=max_model_len)
        self._config = config
        self._max_model_len = max_model_len
        self._clock = clock
        self._kv = KVCacheManager(
            num_blocks=num_blocks, block_size=block_size, enable_prefix_caching=enable_prefix_caching
        )
        self._adapters = adapters
        self._admission = AdmissionControl(config, self._kv)
        self._waiting = WaitingRequests(config, self._kv, self._admission, adapters, clock)
        self._drafting = Drafting(config, clock) if config.num_draft_tokens else None
        self._requests: dict[str, Request] = {}
        self._running: list[Request] = []
        """Sorted by `order_key`."""
        self._num_added = 0
        self._dropped_request_ids: list[str] = []
        """Requests the runner still knows although they run no more."""
        self._unsent_outputs: list[EngineCoreOutput] = []
        self._num_preempted = 0
        self._preemption_log = PreemptionLog()

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything: a request is open, or an output has not been handed out."""
        return bool(self._requests or self._unsent_outputs)

    @property
    def num_running(self) -> int:
        """Requests with blocks."""
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        """Queued requests."""
        return len(self._waiting)

    @property
    def num_usable_blocks(self) -> int:
        """KV blocks that requests can hold."""
        return self._kv.num_usable_blocks

    @property
    def num_free_blocks(self) -> int:
        """KV blocks nobody holds, cached ones included."""
        return self._kv.num_free_blocks

    @property
    def open_request_ids(self) -> list[str]:
        """Ids of all requests that have not ended."""
        return list(self._requests)

    @property
    def waiting(self) -> WaitingRequests:
        """The queue, to look at."""
        return self._waiting

    def add_request(self, source: EngineCoreRequest) -> None:
        """Takes a request into the waiting queue.

        One whose `output_token_ids` already reach a stop condition ends with the next `update_from_output()`.

        Raises:
            InvalidRequestError: the id is open already, or the prompt is empty or leaves no room for a token.
        """
        check_request(source, self._requests, self._max_model_len)
        key = self._next_order_key(source)
        request = Request(source, order_key=key, max_model_len=self._max_model_len, added_s=self._clock())
        self._requests[request.request_id] = request
        stop = self._find_stop(request) if source.output_token_ids else None
        if stop is None:
            self._waiting.add(request)
        else:
            self._unsent_outputs.append(self._end(request, stop.finish_reason, stop_reason=stop.stop_reason))

    def abort(self, request_ids: Iterable[str]) -> None:
        """Ends requests at once; unknown ids are ignored.

        Their blocks are free on return; their outputs come with the next `update_from_output()`.
        """
        for request_id in request_ids:
            request = self._requests.get(request_id)
            if request is not None:
                self._withdraw(request)
                self._unsent_outputs.append(self._end(request, FinishReason.ABORT))

    def schedule(self) -> SchedulerOutput:
        """Chooses the work of the next step.

        An output without scheduled tokens need not be executed; rows that the runner is to drop come with the next
        one that has some.
        """
        step = Step(self._config.max_num_batched_tokens)
        self._schedule_running(step)
        self._register_running(step)
        if step.num_preempted == 0 and not step.has_stalled:
            self._waiting.admit(step, self._running)
            if self._drafting:
                self._drafting.add_drafts(step, self._running, self._kv)
        self._num_preempted = step.num_preempted
        dropped: list[str] = []
        slots: dict[int, AdapterKey] = {}
        if step.num_scheduled_tokens:
            dropped, self._dropped_request_ids = self._dropped_request_ids, dropped
            slots = self._adapters.take_changes() if self._adapters else slots
        if self._drafting:
            self._drafting.start_step()
        return step.finish(dropped, slots)

    def update_from_output(self, scheduled: SchedulerOutput, result: ModelRunnerOutput) -> EngineCoreOutputs:
        """Takes in what a step computed and returns everything there is to tell since the last call."""
        outputs, self._unsent_outputs = self._unsent_outputs, []
        if self._drafting:
            self._drafting.end_step(scheduled, result)
        sampled = result.sampled_token_ids
        has_ended = False
        for request_id, num_tokens in scheduled.num_scheduled_tokens.items():
            request = self._requests.get(request_id)
            if request is None or request.status is not RequestStatus.RUNNING:
                continue  # aborted since schedule(); a new request may have taken its id
            request.num_computed_tokens += num_tokens
            token_ids = sampled.get(request_id)
            is_caught_up = request.num_computed_tokens == len(request.token_ids)
            assert bool(token_ids) == is_caught_up, f"The runner sampled {token_ids} for {request}."
            if request.note(result) or token_ids:
                outputs.append(self._append_tokens(request, token_ids or (), result))
                if self._drafting and request_id in scheduled.num_draft_tokens:
                    self._kv.trim(request)
                    self._drafting.record(request, result, outputs[-1])
                has_ended = has_ended or request.is_finished
        if has_ended:
            self._running = [request for request in self._running if not request.is_finished]
        return EngineCoreOutputs(outputs, self._make_stats(scheduled))

    def fail_step(self, scheduled: SchedulerOutput, message: str) -> None:
        """Ends every request of a step whose forward pass failed with `FinishReason.ERROR`; the others go on.

        Their outputs come with the next `update_from_output()`. The prefix cache is emptied, since it may know blocks
        that were never written. The next step's `finished_request_ids` cover every row of the failed one, whether or
        not the runner got to know it.
        """
        self._kv.reset_prefix_cache()
        for request_id in scheduled.num_scheduled_tokens:
            request = self._requests.get(request_id)
            if request is not None and request.status is RequestStatus.RUNNING:
                self._withdraw(request)
                self._unsent_outputs.append(self._end(request, FinishReason.ERROR, error=message))
        dropped = [*scheduled.finished_request_ids, *self._dropped_request_ids]
        self._dropped_request_ids = list(dict.fromkeys(dropped))
        if self._adapters:
            self._adapters.resend()

    def fail_adapter(self, key: AdapterKey, message: str) -> None:
        """Ends the waiting requests whose adapter cannot be had; their outputs come as those of `abort()`."""
        for request in self._waiting.naming(key):
            self._withdraw(request)
            self._unsent_outputs.append(self._end(request, FinishReason.ERROR, error=message))

    def reset_prefix_cache(self) -> None:
        """Forgets all cached blocks, at any moment; nothing computed before is found by requests admitted later."""
        self._kv.reset_prefix_cache()

    def check_integrity(self) -> None:
        """Checks blocks and requests against each other; O(blocks), meant for tests and idle moments between steps.

        Raises:
            AssertionError: they contradict each other.
        """
        self._kv.check_integrity(self._running)
        for request in self._running:
            num_needed = self._kv.num_blocks_for(request.num_tokens)
            assert len(request.block_ids) <= num_needed, f"{request} has blocks that it has no tokens for."
        assert len(self._running) + len(self._waiting) == len(self._requests), "A request is in no queue or in two."
        if not self._requests:
            assert self._kv.num_free_blocks == self._kv.num_usable_blocks, "Blocks are held while nothing is open."

    # --- running requests ---

    def _schedule_running(self, step: Step) -> None:
        """Serves requests in need of one token before longer ones, both in order."""
        prefills: list[Request] = []
        for request in self._running.copy():
            if len(request.token_ids) - request.num_computed_tokens > 1:
                prefills.append(request)
            elif request.status is RequestStatus.RUNNING:
                self._schedule_request(step, request, 1)
        for request in prefills:
            if step.num_free_tokens == 0:
                break
            if request.status is RequestStatus.RUNNING:
                num_missing = request.num_tokens - request.num_computed_tokens
                self._schedule_request(
                    step, request, min(num_missing, self._admission.prefill_limit, step.num_free_tokens)
                )

    def _schedule_request(self, step: Step, request: Request, num_new_tokens: int) -> None:
        """Schedules tokens of a running request, preempting requests behind it if it needs their blocks."""
        while (block_ids := self._kv.allocate(request, num_new_tokens)) is None:
            if self._running[-1] is request:
                step.has_stalled = True
                return
            self._preempt(step, self._running[-1])
        step.add_running(request, num_new_tokens, block_ids)

    def _preempt(self, step: Step, request: Request) -> None:
        """Takes the last running request's blocks and queues it again, also if this step had scheduled it already."""
        self._running.pop()
        step.preempt(request)
        request.num_preemptions += 1
        self._preemption_log.add(request)
        self._release(request)
        request.status = RequestStatus.PREEMPTED
        self._waiting.prepend(request)

    def _register_running(self, step: Step) -> None:
        """Makes the blocks this step fills findable, now that no scheduled request can be preempted any more."""
        block_size = self._kv.block_size
        for request in self._running:
            num_new_tokens = step.num_scheduled_tokens.get(request.request_id, 0)
            num_tokens = request.num_computed_tokens + num_new_tokens
            if num_new_tokens and num_tokens // block_size > request.num_registered_blocks:
                self._kv.register_full_blocks(request, num_tokens)

    # --- ends and outputs ---

    def _append_tokens(self, request: Request, token_ids: Sequence[int], result: ModelRunnerOutput) -> EngineCoreOutput:
        """Appends new tokens up to the one that ends the request."""
        stop: Stop | None = None
        num_taken = 0
        while stop is None and num_taken < len(token_ids):
            request.token_ids.append(token_ids[num_taken])
            num_taken += 1
            stop = self._find_stop(request)
        if result.num_accepted_tokens:
            num_accepted = min(result.num_accepted_tokens.get(request.request_id, 0), num_taken - 1)
            if num_accepted > 0:  # they were computed as drafts
                request.num_computed_tokens += num_accepted
                self._kv.register_full_blocks(request, request.num_computed_tokens)
        taken = list(token_ids[:num_taken])
        logprobs = result.logprobs.get(request.request_id) if result.logprobs else None
        if logprobs is not None:
            logprobs = logprobs[:num_taken]
        if stop is None:
            return request.report(taken, logprobs)
        self._release(request)
        return self._end(request, stop.finish_reason, taken, logprobs, stop_reason=stop.stop_reason)

    def _find_stop(self, request: Request) -> Stop | None:
        return find_stop(
            request.token_ids,
            params=request.params,
            eos_token_ids=request.source.eos_token_ids,
            num_output_tokens=request.num_output_tokens,
            num_remaining_tokens=request.max_total_tokens - request.num_tokens,
        )

    def _withdraw(self, request: Request) -> None:
        """Takes an open request out of wherever it is."""
        if request.status is RequestStatus.RUNNING:
            self._running.remove(request)
            self._release(request)
        else:
            self._waiting.remove(request)

    def _release(self, request: Request) -> None:
        self._kv.free(request)
        if self._adapters:
            self._adapters.stop(request)
        self._dropped_request_ids.append(request.request_id)

    def _end(
        self,
        request: Request,
        finish_reason: FinishReason,
        new_token_ids: list[int] | None = None,
        logprobs: list[TokenLogprobs] | None = None,
        *,
        stop_reason: int | None = None,
        error: str | None = None,
    ) -> EngineCoreOutput:
        """Closes a request that is in no queue any more; returns its last output."""
        request.status = RequestStatus.FINISHED
        request.finish_reason = finish_reason
        del self._requests[request.request_id]
        output = request.report(new_token_ids or [], logprobs)
        output.finish_reason = finish_reason
        output.stop_reason = stop_reason
        output.error = error
        return output

    def _make_stats(self, scheduled: SchedulerOutput) -> SchedulerStats:
        num_queries, num_hits = self._kv.take_prefix_counts()
        stats = SchedulerStats(
            num_running=len(self._running),
            num_waiting=len(self._waiting),
            num_blocks=self._kv.num_usable_blocks,
            num_free_blocks=self._kv.num_free_blocks,
            num_scheduled_tokens=sum(scheduled.num_scheduled_tokens.values()),
            num_preempted=self._num_preempted,
            prefix_cache_queries=num_queries,
            prefix_cache_hits=num_hits,
        )
        if self._drafting:
            self._drafting.fill_stats(stats)
        return stats

    def _next_order_key(self, source: EngineCoreRequest) -> tuple[float, ...]:
        self._num_added += 1
        if self._config.policy == "priority":
            return (source.priority, source.arrival_s, self._num_added)
        return (self._num_added,)
