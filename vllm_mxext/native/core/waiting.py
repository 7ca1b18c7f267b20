"""`WaitingRequests`: the queue of requests that have not come to run, and which of them start in a step."""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Mapping
from itertools import islice

from vllm_mxext.config.engine import SchedulerConfig
from vllm_mxext.native.core.adapter_slots import AdapterSlots
from vllm_mxext.native.core.admission import AdmissionControl
from vllm_mxext.native.core.kv_cache_manager import KVCacheManager
from vllm_mxext.native.core.queue import make_queue
from vllm_mxext.native.core.request import Request, RequestStatus, order_key
from vllm_mxext.native.core.step import Step
from vllm_mxext.native.protocol import AdapterKey

_LOOK_AHEAD = 4
"""Waiting requests that are looked at in a step, as a multiple of the requests that can run."""


class WaitingRequests:
    """Requests without blocks; they start in order while budget, `max_num_seqs`, blocks and adapters allow.

    One is passed only by requests that find their adapters in place when its own has none (`adapter_slots.py`).

    Args:
        config: batching limits and the order of service.
        kv_cache: where requests that start get their blocks.
        admission: says whether there are enough.
        adapters: where adapters are; without it, no request may have one.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        config: SchedulerConfig,
        kv_cache: KVCacheManager,
        admission: AdmissionControl,
        adapters: AdapterSlots | None,
        clock: Callable[[], float],
    ) -> None:
        self._queue = make_queue(config.policy)
        self._is_chunked = config.enable_chunked_prefill
        self._kv = kv_cache
        self._admission = admission
        self._adapters = adapters
        self._clock = clock
        self.add = self._queue.add
        self.prepend = self._queue.prepend
        self.remove = self._queue.remove

    def __len__(self) -> int:
        return len(self._queue)

    @property
    def adapters(self) -> Mapping[AdapterKey, int]:
        """Adapter -> waiting requests that name it."""
        return self._queue.adapters

    def next_ones(self) -> list[Request]:
        """Those that may come to run soon, in the order of service."""
        return list(islice(self._queue, _LOOK_AHEAD * self._admission.max_running))

    def naming(self, adapter: AdapterKey) -> list[Request]:
        """Those that name an adapter."""
        return [request for request in self._queue if request.adapter == adapter]

    def admit(self, step: Step, running: list[Request]) -> None:
        """Schedules the first tokens of those that start, and puts them among the running, in `order_key` order."""
        if self._adapters is not None and self._queue.adapters:
            self._admit_with_adapters(step, running, self._adapters)
            return
        while self._queue and self._has_room(step, running):
            request = self._queue.peek()
            if not self._admit(step, running, request):
                break
            self._queue.remove(request)

    def _admit_with_adapters(self, step: Step, running: list[Request], adapters: AdapterSlots) -> None:
        scan, passed = adapters.scan(), []
        for request in self.next_ones():
            if not self._has_room(step, running):
                break
            if not adapters.can_start(request, scan):
                passed.append(request)
                continue
            if not self._admit(step, running, request):
                break
            self._queue.remove(request)
            for other in passed:
                other.num_passes += 1
        adapters.end_scan(scan)

    def _has_room(self, step: Step, running: list[Request]) -> bool:
        return len(running) < self._admission.max_running and step.num_free_tokens > 0

    def _admit(self, step: Step, running: list[Request], request: Request) -> bool:
        """Starts a request unless budget or blocks are short."""
        prefix_block_ids = self._kv.find_prefix(request)
        num_prefix_tokens = len(prefix_block_ids) * self._kv.block_size
        num_new_tokens = request.num_tokens - num_prefix_tokens
        if self._is_chunked:
            num_new_tokens = min(num_new_tokens, self._admission.prefill_limit, step.num_free_tokens)
        elif num_new_tokens > step.num_free_tokens:
            return False
        if not self._admission.has_blocks_for(request, prefix_block_ids, running):
            return False
        allocated = self._kv.allocate(request, num_new_tokens, prefix_block_ids)
        assert allocated is not None, f"Blocks are missing for {request} although it was let in."
        self._kv.register_full_blocks(request, num_prefix_tokens + num_new_tokens)
        if request.scheduled_s is None:
            request.scheduled_s = self._clock()
            request.num_cached_tokens = min(request.num_computed_tokens, request.num_prompt_tokens)
            self._kv.count_prefix_query(request.num_prompt_tokens, request.num_cached_tokens)
        request.status = RequestStatus.RUNNING
        insort(running, request, key=order_key)
        step.add_admitted(request, num_new_tokens, self._adapters.start(request) if self._adapters else 0)
        return True
