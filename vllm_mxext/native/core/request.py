"""`Request`: everything the scheduler knows about one open request."""

from __future__ import annotations

from enum import Enum

from vllm_mxext.native.protocol import (
    AdapterKey,
    EngineCoreOutput,
    EngineCoreRequest,
    FinishReason,
    ModelRunnerOutput,
    TokenLogprobs,
)
from vllm_mxext.native.speculation.acceptance import Acceptance


class RequestStatus(Enum):
    """Where a request is in its life."""

    WAITING = "waiting"
    RUNNING = "running"
    PREEMPTED = "preempted"
    FINISHED = "finished"


class Request:
    """One request, mutable, owned by the scheduler; the `KVCacheManager` alone writes the fields marked (kv).

    Attributes:
        request_id: unique among open requests.
        source: the request as it came in.
        params: its sampling parameters.
        adapter: its LoRA adapter; None = none.
        order_key: sorts requests; the smallest is served first and preempted last.
        added_s: when the scheduler took it, on the scheduler's clock.
        scheduled_s: when it was first scheduled.
        token_ids: prompt and output so far.
        num_prompt_tokens: how many of them are prompt.
        max_total_tokens: tokens of prompt and output at most.
        num_computed_tokens: leading tokens whose keys and values are in the cache.
        status: where it is in its life.
        finish_reason: why it ended; None while open.
        num_preemptions: so far.
        num_passes: younger requests that started first because its adapter had no place.
        num_cached_tokens: prompt tokens found in the prefix cache when first scheduled; None before.
        has_reported: whether an output was already made for it.
        sampler_state: what the sampler has learnt with its newest token.
        num_prompt_logprobs: log probabilities of its prompt computed so far.
        new_prompt_logprobs: of these, those that no output has told of.
        acceptance: how its draft tokens have fared.
        block_ids: (kv) block table.
        block_hashes: (kv) hashes of its leading full blocks, as far as they were needed.
        hash_root: (kv) parent of the first block hash; None = its blocks are never shared.
        cache_epoch: (kv) epoch of the prefix cache that its hashes belong to.
        num_registered_blocks: (kv) leading blocks of which the prefix cache has been told.
    """

    __slots__ = (
        "acceptance",
        "adapter",
        "added_s",
        "block_hashes",
        "block_ids",
        "cache_epoch",
        "finish_reason",
        "has_reported",
        "hash_root",
        "max_total_tokens",
        "new_prompt_logprobs",
        "num_cached_tokens",
        "num_computed_tokens",
        "num_passes",
        "num_preemptions",
        "num_prompt_logprobs",
        "num_prompt_tokens",
        "num_registered_blocks",
        "order_key",
        "params",
        "request_id",
        "sampler_state",
        "scheduled_s",
        "source",
        "status",
        "token_ids",
    )

    def __init__(
        self, source: EngineCoreRequest, *, order_key: tuple[float, ...], max_model_len: int, added_s: float = 0.0
    ) -> None:
        self.request_id = source.request_id
        self.source = source
        self.params = source.params
        self.order_key = order_key
        self.added_s = added_s
        self.scheduled_s: float | None = None
        self.token_ids = [*source.prompt_token_ids, *source.output_token_ids]
        self.num_prompt_tokens = len(source.prompt_token_ids)
        max_tokens = max_model_len if source.params.max_tokens is None else source.params.max_tokens
        self.max_total_tokens = min(self.num_prompt_tokens + max_tokens, max_model_len)
        self.num_computed_tokens = 0
        self.status = RequestStatus.WAITING
        self.finish_reason: FinishReason | None = None
        self.num_preemptions = 0
        self.num_passes = 0
        self.adapter: AdapterKey | None = None
        if source.adapter_id:
            self.adapter = (source.adapter_id, source.adapter_generation)
        self.num_cached_tokens: int | None = None
        self.has_reported = False
        self.sampler_state = source.sampler_state
        self.num_prompt_logprobs = source.num_prompt_logprobs
        self.new_prompt_logprobs: list[TokenLogprobs] | None = None
        self.acceptance = Acceptance()
        self.block_ids: list[int] = []
        self.block_hashes: list[bytes] = []
        self.hash_root: bytes | None = None
        self.cache_epoch = -1
        self.num_registered_blocks = 0

    def __repr__(self) -> str:
        return (
            f"Request({self.request_id!r}, {self.status.value}, computed={self.num_computed_tokens}/{self.num_tokens}, "
            f"prompt={self.num_prompt_tokens}, blocks={self.block_ids})"
        )

    @property
    def num_tokens(self) -> int:
        """Tokens of prompt and output so far."""
        return len(self.token_ids)

    @property
    def num_output_tokens(self) -> int:
        """Output tokens so far, those delivered before a resubmission included."""
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def output_token_ids(self) -> list[int]:
        """The output tokens so far."""
        return self.token_ids[self.num_prompt_tokens :]

    @property
    def reads_prefix_cache(self) -> bool:
        """Whether it may start from cached blocks; not if its whole prompt has to go through the model."""
        wants_prompt = self.params.prompt_logprobs is not None and self.num_prompt_logprobs < self.num_prompt_tokens - 1
        return not (wants_prompt or self.params.skip_reading_prefix_cache)

    @property
    def is_finished(self) -> bool:
        """Whether the request has ended."""
        return self.finish_reason is not None

    def note(self, result: ModelRunnerOutput) -> bool:
        """Takes what a step brought besides tokens; returns whether there is something to tell of it."""
        self.sampler_state = result.sampler_states.get(self.request_id) if result.sampler_states else None
        self.new_prompt_logprobs = result.prompt_logprobs.get(self.request_id) if result.prompt_logprobs else None
        if self.new_prompt_logprobs is None:
            return False
        self.num_prompt_logprobs += len(self.new_prompt_logprobs)
        return True

    def report(self, new_token_ids: list[int], logprobs: list[TokenLogprobs] | None = None) -> EngineCoreOutput:
        """Returns an output with these tokens; the first one also says how the request came to run."""
        output = EngineCoreOutput(self.request_id, new_token_ids, logprobs, num_preemptions=self.num_preemptions)
        output.sampler_state = self.sampler_state
        output.prompt_logprobs, self.new_prompt_logprobs = self.new_prompt_logprobs, None
        if not self.has_reported:
            self.has_reported = True
            output.num_cached_tokens = self.num_cached_tokens
            if self.scheduled_s is not None:
                output.scheduled_after_s = self.scheduled_s - self.added_s
        return output


def order_key(request: Request) -> tuple[float, ...]:
    """Returns what requests are sorted by."""
    return request.order_key
