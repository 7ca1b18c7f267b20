"""Data passed between the parts of the native engine (no torch, no text).

Structs cross a process boundary as msgpack; frozen dataclasses stay inside the core process.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum

import msgspec

from vllm_mxext.sampling_params import SamplingParams

AdapterKey = tuple[int, int]
"""Id and generation of an adapter: one set of weights."""


class FinishReason(IntEnum):
    """Why a request ended."""

    STOP = 0
    LENGTH = 1
    ABORT = 2
    ERROR = 3
    REPETITION = 4


class ThinkingRule(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """How reasoning is marked in an output, for a request that limits it; made by the front, which has the tokenizer.

    Attributes:
        starts: texts with which reasoning begins; the output may have white space before.
        closings: tokens that end reasoning, of each of `starts`; the first ones where it began without.
        ends: texts that end it.
        pieces: bytes of the tokens that can be part of these texts, and of white space; all others cannot.
        is_open: the output begins within reasoning, whether it has a start or not.
    """

    starts: list[bytes]
    closings: list[list[int]]
    ends: list[bytes]
    pieces: dict[int, bytes]
    is_open: bool = False


class TokenRules(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What texts among the sampling parameters are as tokens; made by the front, which has the tokenizer.

    Attributes:
        bad_words: sequences that the output must not contain.
        dry_breakers: sequences that end a repetition.
        thinking: how reasoning is marked, if `thinking_token_budget` limits it.
    """

    bad_words: list[list[int]] = msgspec.field(default_factory=list)
    dry_breakers: list[list[int]] = msgspec.field(default_factory=list)
    thinking: ThinkingRule | None = None


class EngineCoreRequest(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True, gc=False):
    """One sample to generate; every limit has been checked, past here nothing can be invalid.

    Attributes:
        request_id: unique among open requests; `n > 1` is n requests `{id}/{index}` made by the frontend.
        prompt_token_ids: at least one id.
        params: sampling parameters with `max_tokens` set to an integer that fits the context.
        seed: 64-bit seed of the sampling noise, always set (drawn by the frontend if the user gave none).
        eos_token_ids: ids that end the output unless `params.ignore_eos`.
        priority: lower first under the priority policy.
        arrival_s: the frontend's monotonic clock; orders requests.
        output_token_ids: tokens already delivered before the engine process was replaced; they count as output.
        adapter_id: LoRA adapter, 0 = none.
        adapter_generation: grows when other weights are loaded under the adapter's name.
        cache_salt: part of the block hash.
        group_id: request whose samples share prompt blocks even when prefix caching is off.
        rules: texts of `params` as tokens; None if it has none.
        sampler_state: what the sampler has learnt with the last of `output_token_ids` (Mirostat); None before.
        grammar: normalised grammar of the output (`structured.grammar`), which `params` does not repeat.
        num_prompt_logprobs: log probabilities of the prompt already delivered before the engine process was replaced.
        adapter_scale: factor on everything that the adapter adds.
    """

    request_id: str
    prompt_token_ids: list[int]
    params: SamplingParams
    seed: int
    eos_token_ids: list[int] = msgspec.field(default_factory=list)
    priority: int = 0
    arrival_s: float = 0.0
    output_token_ids: list[int] = msgspec.field(default_factory=list)
    adapter_id: int = 0
    adapter_generation: int = 0
    cache_salt: str | None = None
    group_id: str | None = None
    rules: TokenRules | None = None
    sampler_state: float | None = None
    grammar: str | None = None
    num_prompt_logprobs: int = 0
    adapter_scale: float = 1.0


class TokenLogprobs(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Log probabilities at one position: the chosen token, the most likely ones in order, then those asked for by id.

    Attributes:
        token_ids: `[1 + k + m]` ids.
        logprobs: `[1 + k + m]` natural logarithms.
        rank: rank of the chosen token, 1 = most likely; those of the next k are 1, 2, ... k.
        other_ranks: `[m]` ranks of the tokens asked for by id.
    """

    token_ids: list[int]
    logprobs: list[float]
    rank: int
    other_ranks: list[int] = msgspec.field(default_factory=list)


class EngineCoreOutput(msgspec.Struct, array_like=True, omit_defaults=True, gc=False):
    """What one step brought for one request.

    Attributes:
        request_id: whose.
        new_token_ids: tokens sampled in this step; empty for an abort or error.
        logprobs: one entry per new token when asked for.
        finish_reason: set exactly once, in the request's last output.
        stop_reason: the stop token id that ended it, None for end-of-text.
        num_cached_tokens: prompt tokens found in the prefix cache; set in the first output.
        scheduled_after_s: seconds from arrival in the core to the first scheduled step; set in the first output.
        num_preemptions: so far.
        error: why the request failed, with `FinishReason.ERROR`.
        sampler_state: what the sampler has learnt with the last new token (Mirostat).
        is_whole: it ended because its grammar lets nothing follow; the last token is text, not an end.
        prompt_logprobs: log probabilities of the next prompt tokens, from the second one on, when asked for.
        num_draft_tokens: draft tokens that were computed for it.
        num_accepted_tokens: of these, accepted.
    """

    request_id: str
    new_token_ids: list[int] = msgspec.field(default_factory=list)
    logprobs: list[TokenLogprobs] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | None = None
    num_cached_tokens: int | None = None
    scheduled_after_s: float | None = None
    num_preemptions: int = 0
    error: str | None = None
    sampler_state: float | None = None
    is_whole: bool = False
    prompt_logprobs: list[TokenLogprobs] | None = None
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0


class AdapterTier(IntEnum):
    """Where an adapter's weights are."""

    DISK = 0
    HOST = 1
    SLOT = 2


class AdapterUse(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """How an adapter stands.

    Attributes:
        adapter_id: which one.
        generation: and which of its weights.
        tier: where they are.
        num_bytes: host memory they take now.
        num_running: running requests that use it.
        num_waiting: queued requests that are going to.
    """

    adapter_id: int
    generation: int
    tier: AdapterTier
    num_bytes: int = 0
    num_running: int = 0
    num_waiting: int = 0


class SchedulerStats(msgspec.Struct, array_like=True, gc=False):
    """Gauges and per-step counts for metrics.

    Attributes:
        num_running: requests with blocks.
        num_waiting: queued requests.
        num_blocks: KV blocks that can be used.
        num_free_blocks: of these, free (cached but unreferenced blocks count as free).
        num_scheduled_tokens: tokens of this step.
        num_preempted: requests preempted in this step.
        prefix_cache_queries: prompt tokens looked up since the last stats.
        prefix_cache_hits: of these, found.
        num_drafts: requests with draft tokens in this step.
        num_draft_tokens: their draft tokens.
        num_accepted_per_position: of these, accepted: first drafts, second drafts, and so on.
        adapters: how all known adapters stand; None if that is as it was in the last stats.
    """

    num_running: int = 0
    num_waiting: int = 0
    num_blocks: int = 0
    num_free_blocks: int = 0
    num_scheduled_tokens: int = 0
    num_preempted: int = 0
    prefix_cache_queries: int = 0
    prefix_cache_hits: int = 0
    num_drafts: int = 0
    num_draft_tokens: int = 0
    num_accepted_per_position: list[int] = msgspec.field(default_factory=list)
    adapters: list[AdapterUse] | None = None


class EngineCoreOutputs(msgspec.Struct, array_like=True, gc=False):
    """Everything one engine step has to say, in one message."""

    outputs: list[EngineCoreOutput] = msgspec.field(default_factory=list)
    stats: SchedulerStats | None = None


@dataclass(frozen=True, slots=True)
class ReadAdapter:
    """How reading an adapter has ended.

    Attributes:
        key: which one.
        num_bytes: host memory it takes.
        error: why it could not be read.
    """

    key: AdapterKey
    num_bytes: int = 0
    error: str | None = None


@dataclass(frozen=True, slots=True)
class NewRequestData:
    """A request the runner does not know: sent whole when first scheduled, and again when resumed after preemption.

    Attributes:
        request_id: key of the runner's row.
        token_ids: prompt and output tokens so far.
        num_prompt_tokens: how many of `token_ids` are prompt.
        params: sampling parameters.
        seed: seed of the sampling noise.
        eos_token_ids: ids suppressed below `params.min_tokens` (together with stop token ids).
        block_ids: all blocks of the request, leading prefix hits included.
        num_computed_tokens: leading tokens whose keys are in the cache already.
        adapter_slot: slot of its LoRA adapter; 0 = none.
        adapter_scale: factor on everything that the adapter adds.
        rules: texts of `params` as tokens; None if it has none.
        sampler_state: what the sampler has learnt with the last of `token_ids`; None before the first output token.
        num_prompt_logprobs: log probabilities of the prompt that have been told already.
    """

    request_id: str
    token_ids: list[int]
    num_prompt_tokens: int
    params: SamplingParams
    seed: int
    eos_token_ids: list[int]
    block_ids: list[int]
    num_computed_tokens: int
    adapter_slot: int = 0
    adapter_scale: float = 1.0
    rules: TokenRules | None = None
    sampler_state: float | None = None
    num_prompt_logprobs: int = 0


@dataclass(frozen=True, slots=True)
class CachedRequestData:
    """A request the runner knows: only what changed. The runner appends its own sampled tokens to its row.

    After a step with room for drafts, scheduler and runner both cut the block table down to the blocks that the
    request's tokens need.

    Attributes:
        request_id: key of the runner's row.
        new_block_ids: blocks appended to its block table.
        num_computed_tokens: leading tokens whose keys are in the cache.
    """

    request_id: str
    new_block_ids: list[int]
    num_computed_tokens: int


@dataclass(frozen=True, slots=True)
class SchedulerOutput:
    """One step's work.

    Attributes:
        new_requests: requests sent whole.
        cached_requests: requests known to the runner.
        num_scheduled_tokens: request id -> tokens to compute, every value >= 1. A request samples a token in this step
            exactly when `num_computed_tokens + num_scheduled_tokens` reaches its number of tokens.
        num_draft_tokens: request id -> draft tokens that the runner may add behind the scheduled ones, at least 1. Only
            requests that sample in this step are named; there are blocks for the drafts.
        total_num_scheduled_tokens: the sum of both, within the token budget.
        finished_request_ids: requests whose rows the runner drops (finished or preempted since the last step).
        adapter_slots: adapter slot -> what it holds from this step on.
    """

    new_requests: list[NewRequestData] = field(default_factory=list)
    cached_requests: list[CachedRequestData] = field(default_factory=list)
    num_scheduled_tokens: dict[str, int] = field(default_factory=dict)
    total_num_scheduled_tokens: int = 0
    num_draft_tokens: dict[str, int] = field(default_factory=dict)
    finished_request_ids: list[str] = field(default_factory=list)
    adapter_slots: dict[int, AdapterKey] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ModelRunnerOutput:
    """What the forward pass sampled.

    Attributes:
        sampled_token_ids: request id -> new tokens; only requests that sampled. There is one, one more for each leading
            draft that is what was sampled in its place, and those that a grammar forced. A negative id, always alone,
            says that the request's logits were unusable and it cannot go on.
        logprobs: request id -> one entry per new token, for requests that asked.
        sampler_states: request id -> what the sampler has learnt with the last new token (Mirostat).
        complete_ids: requests whose output is whole: their grammar lets nothing follow. They may have no new token.
        errors: request id -> why it cannot go on, if its logits are not to blame.
        prompt_logprobs: request id -> log probabilities of the next prompt tokens, for requests that asked.
        num_draft_tokens: request id -> draft tokens that were computed, for requests that had any.
        num_accepted_tokens: request id -> leading new tokens that are drafts, computed already; for the same requests.
        is_catching_up: whether a draft model read so much text first that the step took longer than its drafts explain.
    """

    sampled_token_ids: dict[str, list[int]]
    logprobs: dict[str, list[TokenLogprobs]] = field(default_factory=dict)
    sampler_states: dict[str, float] = field(default_factory=dict)
    complete_ids: list[str] = field(default_factory=list)
    errors: dict[str, str] = field(default_factory=dict)
    prompt_logprobs: dict[str, list[TokenLogprobs]] = field(default_factory=dict)
    num_draft_tokens: dict[str, int] = field(default_factory=dict)
    num_accepted_tokens: dict[str, int] = field(default_factory=dict)
    is_catching_up: bool = False
