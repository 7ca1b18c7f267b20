"""What an engine gives back: `RequestOutput` and its parts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from vllm_mxext.requests import LoRARequest

FinishReasonName = Literal["stop", "length", "abort", "error", "repetition"]


@dataclass(frozen=True, slots=True)
class Logprob:
    """Log probability of one candidate token.

    Attributes:
        logprob: natural logarithm of the probability before temperature and filters.
        rank: 1 for the most likely token.
        decoded_token: its text, or None without detokenization.
    """

    logprob: float
    rank: int
    decoded_token: str | None = None


PositionLogprobs = dict[int, Logprob]
"""Token id -> log probability at one position; the chosen token comes first."""


@dataclass(slots=True)
class CompletionOutput:
    """One sample of a request.

    Attributes:
        index: which of the `n` samples.
        text: the text so far, or since the last output with `OutputKind.DELTA`.
        token_ids: the tokens that belong to `text`.
        cumulative_logprob: sum over all chosen tokens; None when logprobs were not asked for.
        logprobs: one entry per token of `token_ids`, or None.
        finish_reason: None while running.
        stop_reason: the stop string or stop token id that ended it; None for end-of-text and for `length`, but
            `timeout` if it was the request's time that had a limit.
        lora_request: the adapter, for requests that named one by a `LoRARequest`.
    """

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None = None
    logprobs: list[PositionLogprobs] | None = None
    finish_reason: FinishReasonName | None = None
    stop_reason: int | str | None = None
    lora_request: LoRARequest | None = None

    @property
    def is_finished(self) -> bool:
        """Whether this sample has ended."""
        return self.finish_reason is not None


@dataclass(slots=True)
class BeamSearchSequence:
    """One hypothesis of an offline beam search, in the shape vLLM gives it.

    Attributes:
        tokens: prompt and output.
        cum_logprob: sum over the output tokens.
        text: prompt and output without special tokens.
        logprobs: one entry per output token, or None when they were not asked for.
        finish_reason: `stop` at an end-of-text token, `length` at `max_tokens`.
        stop_reason: None, as for an output that ended at end-of-text or at its limit.
        lora_request: the adapter, or None.
    """

    tokens: list[int]
    cum_logprob: float
    text: str
    logprobs: list[PositionLogprobs] | None = None
    finish_reason: FinishReasonName | None = None
    stop_reason: int | str | None = None
    lora_request: LoRARequest | None = None


@dataclass(slots=True)
class BeamSearchOutput:
    """What an offline beam search found for one prompt.

    Attributes:
        sequences: the hypotheses, best first.
    """

    sequences: list[BeamSearchSequence]


@dataclass(slots=True)
class RequestMetrics:
    """Times of one request in seconds on the front process's monotonic clock; None = has not happened.

    Attributes:
        arrival_s: when the engine client took the request.
        first_scheduled_s: when its first token was scheduled.
        first_token_s: when its first output token reached the front process.
        finished_s: when it ended.
        num_preemptions: how often it was preempted.
        num_restarts: how often it was resubmitted after the engine process died.
        drafts: (draft tokens of a step, how many of them were accepted) -> in how many steps that was so.
    """

    arrival_s: float
    first_scheduled_s: float | None = None
    first_token_s: float | None = None
    finished_s: float | None = None
    num_preemptions: int = 0
    num_restarts: int = 0
    drafts: dict[tuple[int, int], int] = field(default_factory=dict)


@dataclass(slots=True)
class RequestOutput:
    """The state of a request, or what is new of it.

    Attributes:
        request_id: the caller's id.
        prompt: the prompt text, or None if only ids are known.
        prompt_token_ids: the prompt as the model saw it.
        outputs: its samples, ordered by index; with `OutputKind.DELTA` only those with something new.
        finished: whether every sample has ended.
        metrics: its times.
        num_cached_tokens: prompt tokens found in the prefix cache (of the first sample).
        prompt_logprobs: one entry per prompt token, None for the first; None if not asked for or not complete.
        lora_request: the adapter, for requests that named one by a `LoRARequest`.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput] = field(default_factory=list)
    finished: bool = False
    metrics: RequestMetrics | None = None
    num_cached_tokens: int | None = None
    prompt_logprobs: list[PositionLogprobs | None] | None = None
    lora_request: LoRARequest | None = None
