"""`Drafting`: room for draft tokens in each step, as much as pays, and the account of how they fared."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

from vllm_mxext.config.engine import SchedulerConfig
from vllm_mxext.native.core.kv_cache_manager import KVCacheManager
from vllm_mxext.native.core.request import Request
from vllm_mxext.native.core.step import Step
from vllm_mxext.native.protocol import EngineCoreOutput, ModelRunnerOutput, SchedulerOutput, SchedulerStats
from vllm_mxext.native.speculation.costs import RowCosts

_FIRST_RUN = 8
_LONGEST_RUN = 40
"""Steps with drafts that may follow each other. Then comes one without, or nothing would tell what drafts cost."""


class Drafting:
    """Gives requests that need one token room for drafts behind it, from what everybody else left of a step.

    Nobody is preempted, delayed or refused for drafts. How many a request may have follows from how its earlier ones
    fared and from what rows cost; the tokens that come out are the same in any case.

    Args:
        config: drafts per request, and positions sampled per step.
        clock: monotonic seconds.
    """

    def __init__(self, config: SchedulerConfig, clock: Callable[[], float]) -> None:
        self._num_tokens = config.num_draft_tokens
        self._max_num_samples = config.max_num_samples
        self._clock = clock
        self._costs: defaultdict[int, RowCosts] = defaultdict(RowCosts)
        """By binary digits of the number of requests: what small batches cost tells nothing of drafts in large ones."""
        self._run_length = 0
        """Steps with drafts since the last one without."""
        self._max_run_length = _FIRST_RUN
        self._started_s = 0.0
        self._num_drafts = 0
        self._num_draft_tokens = 0
        self._num_accepted = [0] * self._num_tokens

    def add_drafts(self, step: Step, running: Sequence[Request], kv: KVCacheManager) -> None:
        """Makes room in a step that is complete otherwise."""
        if self._run_length >= self._max_run_length:
            self._max_run_length = min(2 * self._max_run_length, _LONGEST_RUN)
            return
        price = self._costs[len(running).bit_length()].price(len(running))
        num_free_samples = self._max_num_samples - len(running)
        for request in running:
            limit = min(step.num_free_tokens, num_free_samples)
            if limit <= 0:
                break
            if request.num_computed_tokens == request.num_tokens - 1 and step.continues(request):
                num_drafts = self._num_worthwhile(request, price, limit)
                if num_drafts:
                    num_free_samples -= self._add(step, request, num_drafts, kv)

    def start_step(self) -> None:
        """Says that the runner begins."""
        self._started_s = self._clock()

    def end_step(self, scheduled: SchedulerOutput, result: ModelRunnerOutput) -> None:
        """Learns what the step cost."""
        seconds = self._clock() - self._started_s
        num_drafts = sum(result.num_draft_tokens.values())
        self._run_length = self._run_length + 1 if num_drafts else 0
        num_requests = len(scheduled.num_scheduled_tokens)
        num_known = scheduled.total_num_scheduled_tokens - sum(scheduled.num_draft_tokens.values())
        if num_known == num_requests > 0 and not scheduled.new_requests and not result.is_catching_up:
            self._costs[num_requests.bit_length()].record(num_requests + num_drafts, seconds)

    def record(self, request: Request, result: ModelRunnerOutput, output: EngineCoreOutput) -> None:
        """Takes in how a request's drafts fared, if it had any, and notes it in its output."""
        num_drafts = result.num_draft_tokens.get(request.request_id, 0)
        if not num_drafts:
            return
        num_accepted = result.num_accepted_tokens.get(request.request_id, 0)
        request.acceptance.record(num_drafts, num_accepted)
        output.num_draft_tokens, output.num_accepted_tokens = num_drafts, num_accepted
        self._num_drafts += 1
        self._num_draft_tokens += num_drafts
        for position in range(num_accepted):
            self._num_accepted[position] += 1

    def fill_stats(self, stats: SchedulerStats) -> None:
        """Adds the counts of a step."""
        stats.num_scheduled_tokens += self._num_draft_tokens
        stats.num_drafts, stats.num_draft_tokens = self._num_drafts, self._num_draft_tokens
        stats.num_accepted_per_position = self._num_accepted
        self._num_drafts = self._num_draft_tokens = 0
        self._num_accepted = [0] * self._num_tokens

    def _num_worthwhile(self, request: Request, price: float, limit: int) -> int:
        if request.params.mirostat and request.source.grammar is not None:
            return 0  # what Mirostat has learnt leaves out forced tokens, which drafts would have it sample
        num_left = request.max_total_tokens - request.num_tokens
        return request.acceptance.num_worthwhile(price, min(self._num_tokens, limit, num_left - 1))

    def _add(self, step: Step, request: Request, num_drafts: int, kv: KVCacheManager) -> int:
        """Adds drafts to a scheduled request; fewer if there are no blocks for all of them."""
        num_tokens = request.num_tokens + num_drafts
        new_block_ids = kv.allocate(request, num_tokens - request.num_computed_tokens)
        if new_block_ids is None:
            num_drafts = min(num_drafts, len(request.block_ids) * kv.block_size - request.num_tokens)
            new_block_ids = []
        if num_drafts > 0:
            step.add_drafts(request, num_drafts, new_block_ids)
        return max(num_drafts, 0)
