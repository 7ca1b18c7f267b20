"""When a waiting request may start: limits under which all can run, and the blocks to leave for those ahead of it."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Container, Sequence

from vllm_mxext.config.engine import SchedulerConfig
from vllm_mxext.errors import ConfigError, InvalidRequestError
from vllm_mxext.native.core.kv_cache_manager import KVCacheManager
from vllm_mxext.native.core.request import Request, order_key
from vllm_mxext.native.protocol import EngineCoreRequest

_MAX_DOUBLINGS = 10


def check_limits(config: SchedulerConfig, *, num_blocks: int, block_size: int, max_model_len: int) -> None:
    """Refuses limits under which some valid request could never run.

    Raises:
        ConfigError: with the numbers and what to change.
    """
    num_needed = -(-max_model_len // block_size)
    if num_blocks - 1 < num_needed:
        raise ConfigError(
            f"A request of max_model_len = {max_model_len} tokens needs {num_needed} KV blocks of {block_size} tokens, "
            f"but only {num_blocks - 1} fit; lower max_model_len to {(num_blocks - 1) * block_size} or give the KV "
            "cache more memory."
        )
    if config.max_num_batched_tokens < 1 or config.max_num_seqs < 1:
        raise ConfigError(
            f"max_num_batched_tokens ({config.max_num_batched_tokens}) and max_num_seqs ({config.max_num_seqs}) must "
            "be at least 1."
        )
    if not config.enable_chunked_prefill and config.max_num_batched_tokens < max_model_len:
        raise ConfigError(
            f"Without chunked prefill max_num_batched_tokens ({config.max_num_batched_tokens}) must be at least "
            f"max_model_len ({max_model_len}); raise it or enable chunked prefill."
        )


def check_request(source: EngineCoreRequest, open_ids: Container[str], max_model_len: int) -> None:
    """Refuses a request that cannot be taken.

    Raises:
        InvalidRequestError: the id is open already, or the prompt is empty or leaves no room for a token.
    """
    if source.request_id in open_ids:
        raise InvalidRequestError(f"Request id '{source.request_id}' is in use; choose another.")
    num_tokens = len(source.prompt_token_ids)
    if not 1 <= num_tokens < max_model_len:
        raise InvalidRequestError(
            f"The prompt must have 1 to {max_model_len - 1} tokens, got {num_tokens}.", param="prompt"
        )


class AdmissionControl:
    """Keeps admitting requests from ending in preempting them.

    A request starts only if all its known tokens fit and the running requests ahead of it in the order of service can
    still grow for a number of steps: until it has its next token and a block more, where each preemption doubles the
    latter. Requests that do not fit together thus stop throwing each other out, and one that comes back gains at least
    a token before those ahead of it can preempt it again.

    Args:
        config: batching limits.
        kv_cache: whose free blocks are counted.
    """

    def __init__(self, config: SchedulerConfig, kv_cache: KVCacheManager) -> None:
        self._kv = kv_cache
        self._token_budget = config.max_num_batched_tokens
        self.max_running = min(config.max_num_seqs, config.max_num_batched_tokens)
        """Requests running at once; with no more than tokens in the budget, each can have one in every step."""
        self.prefill_limit = config.max_num_batched_tokens
        """Tokens of one request per step."""
        if config.enable_chunked_prefill and config.long_prefill_token_threshold > 0:
            self.prefill_limit = min(self.prefill_limit, config.long_prefill_token_threshold)

    def has_blocks_for(self, request: Request, prefix_block_ids: Sequence[int], running: Sequence[Request]) -> bool:
        """Whether a waiting request may start from this prefix beside the running ones (sorted by `order_key`)."""
        if not running:
            return True  # alone, any request fits
        num_taken = self._kv.num_blocks_taken(request.num_tokens + 1, prefix_block_ids)
        num_left = self._kv.num_free_blocks - num_taken
        if num_left < 0:
            return False
        ahead = running[: bisect_left(running, request.order_key, key=order_key)]
        num_prefix_tokens = len(prefix_block_ids) * self._kv.block_size
        # What comes back counts on the worst case; anything else on the present load.
        num_others = self.max_running - 1 if request.num_preemptions else len(running)
        num_steps = self._steps_until_sampled(request, num_prefix_tokens, ahead, num_others)
        num_steps += self._kv.block_size << min(request.num_preemptions, _MAX_DOUBLINGS)
        return num_left >= self._num_growth_blocks(ahead, num_steps)

    def _steps_until_sampled(
        self, request: Request, num_prefix_tokens: int, ahead: Sequence[Request], num_others: int
    ) -> int:
        """Returns an upper bound of the steps until the request's next token, `num_others` taking a token in each."""
        num_ahead = sum(other.num_tokens - other.num_computed_tokens for other in ahead)
        num_own = request.num_tokens - num_prefix_tokens
        tokens_per_step = max(1, self._token_budget - num_others)
        return -(-(num_ahead + num_own) // tokens_per_step) - (-num_own // self.prefill_limit)

    def _num_growth_blocks(self, requests: Sequence[Request], num_steps: int) -> int:
        """Returns the blocks that running requests need beyond those they hold to go on for so many steps."""
        block_size = self._kv.block_size
        num_blocks = 0
        for request in requests:
            num_tokens = min(len(request.token_ids) + num_steps, request.max_total_tokens)
            num_missing = -(-num_tokens // block_size) - len(request.block_ids)
            if num_missing > 0:
                num_blocks += num_missing
        return num_blocks
