"""When a request stops: the decision after each token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vllm_mxext.constraint_params import RepetitionDetectionParams
from vllm_mxext.native.protocol import FinishReason
from vllm_mxext.sampling_params import SamplingParams


@dataclass(frozen=True, slots=True)
class Stop:
    """Why a request ends.

    Attributes:
        finish_reason: `STOP`, `LENGTH` or `REPETITION`.
        stop_reason: the id of `SamplingParams.stop_token_ids` that ended it; None for end-of-text and length.
    """

    finish_reason: FinishReason
    stop_reason: int | None = None


def find_stop(
    token_ids: Sequence[int],
    *,
    params: SamplingParams,
    eos_token_ids: Sequence[int],
    num_output_tokens: int,
    num_remaining_tokens: int,
) -> Stop | None:
    """Decides whether a request ends with its newest token.

    Args:
        token_ids: prompt and output, of which at least one token.
        params: sampling parameters of the request.
        eos_token_ids: the model's end-of-text tokens.
        num_output_tokens: output tokens, the newest included.
        num_remaining_tokens: further tokens that `max_tokens` and the model's context allow.
    """
    if num_output_tokens >= params.min_tokens:
        token_id = token_ids[-1]
        if token_id in eos_token_ids and not params.ignore_eos:
            return Stop(FinishReason.STOP)
        if token_id in params.stop_token_ids:
            return Stop(FinishReason.STOP, token_id)
        detection = params.repetition_detection
        if detection is not None and ends_in_repetition(token_ids, num_output_tokens, detection):
            return Stop(FinishReason.REPETITION)
    return None if num_remaining_tokens > 0 else Stop(FinishReason.LENGTH)


def ends_in_repetition(token_ids: Sequence[int], num_output_tokens: int, rule: RepetitionDetectionParams) -> bool:
    """Whether the output ends in a pattern that stands there `min_count` times in a row.

    Costs one look at each of the last `max_pattern_size` tokens, and more only where one equals the newest.
    """
    end, count = len(token_ids), rule.min_count
    longest = min(rule.max_pattern_size, num_output_tokens // count)
    newest = token_ids[-1]
    earlier = token_ids[end - 1 - longest : end - 1]
    for size in range(rule.min_pattern_size, longest + 1):
        if earlier[-size] != newest:
            continue
        first = end - size * count
        if token_ids[first : end - size] == token_ids[first + size : end]:
            return True
    return False
