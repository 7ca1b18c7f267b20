"""`Step`: the work of one engine step while the scheduler puts it together."""

from __future__ import annotations

from vllm_mxext.native.core.request import Request
from vllm_mxext.native.protocol import AdapterKey, CachedRequestData, NewRequestData, SchedulerOutput


class Step:
    """Scheduled requests, and what is left of the token budget.

    Args:
        token_budget: tokens of the step at most.
    """

    __slots__ = (
        "_cached_requests",
        "_new_requests",
        "_token_budget",
        "has_stalled",
        "num_draft_tokens",
        "num_free_tokens",
        "num_preempted",
        "num_scheduled_tokens",
    )

    def __init__(self, token_budget: int) -> None:
        self._token_budget = token_budget
        self._cached_requests: dict[str, CachedRequestData] = {}
        self._new_requests: list[NewRequestData] = []
        self.num_free_tokens = token_budget
        self.num_scheduled_tokens: dict[str, int] = {}
        self.num_draft_tokens: dict[str, int] = {}
        self.num_preempted = 0
        self.has_stalled = False

    def add_running(self, request: Request, num_new_tokens: int, new_block_ids: list[int]) -> None:
        """Schedules tokens of a request the runner knows."""
        request_id = request.request_id
        self.num_free_tokens -= num_new_tokens
        self.num_scheduled_tokens[request_id] = num_new_tokens
        self._cached_requests[request_id] = CachedRequestData(request_id, new_block_ids, request.num_computed_tokens)

    def add_admitted(self, request: Request, num_new_tokens: int, adapter_slot: int = 0) -> None:
        """Schedules tokens of a request the runner does not know, sending it whole.

        Its lists are copied: scheduler and runner both go on changing their own.
        """
        self.num_free_tokens -= num_new_tokens
        self.num_scheduled_tokens[request.request_id] = num_new_tokens
        self._new_requests.append(
            NewRequestData(
                request_id=request.request_id,
                token_ids=request.token_ids.copy(),
                num_prompt_tokens=request.num_prompt_tokens,
                params=request.params,
                seed=request.source.seed,
                eos_token_ids=request.source.eos_token_ids,
                block_ids=request.block_ids.copy(),
                num_computed_tokens=request.num_computed_tokens,
                adapter_slot=adapter_slot,
                adapter_scale=request.source.adapter_scale,
                rules=request.source.rules,
                sampler_state=request.sampler_state,
                num_prompt_logprobs=request.num_prompt_logprobs,
            )
        )

    def continues(self, request: Request) -> bool:
        """Whether tokens of a request that the runner knows are scheduled."""
        return request.request_id in self._cached_requests

    def add_drafts(self, request: Request, num_drafts: int, new_block_ids: list[int]) -> None:
        """Makes room for drafts behind the tokens of a scheduled request that the runner knows.

        Nothing may be preempted any more.
        """
        self.num_free_tokens -= num_drafts
        self.num_draft_tokens[request.request_id] = num_drafts
        self._cached_requests[request.request_id].new_block_ids.extend(new_block_ids)

    def preempt(self, request: Request) -> None:
        """Takes back what was scheduled for a running request, if anything, and counts the preemption."""
        self.num_free_tokens += self.num_scheduled_tokens.pop(request.request_id, 0)
        self._cached_requests.pop(request.request_id, None)
        self.num_preempted += 1

    @property
    def num_tokens(self) -> int:
        """Tokens scheduled so far."""
        return self._token_budget - self.num_free_tokens

    def finish(
        self, dropped_request_ids: list[str], adapter_slots: dict[int, AdapterKey] | None = None
    ) -> SchedulerOutput:
        """Returns the work for the runner, which is to drop these rows and fill these adapter slots first."""
        return SchedulerOutput(
            new_requests=self._new_requests,
            cached_requests=list(self._cached_requests.values()),
            num_scheduled_tokens=self.num_scheduled_tokens,
            total_num_scheduled_tokens=self.num_tokens,
            num_draft_tokens=self.num_draft_tokens,
            finished_request_ids=dropped_request_ids,
            adapter_slots=adapter_slots or {},
        )
