"""When a request stops: the decision after each token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vllm_mxext.native.protocol import FinishReason
from vllm_mxext.sampling_params import SamplingParams


@dataclass(frozen=True, slots=True)
class Stop:
    """Why a request ends.

    Attributes:
        finish_reason: `STOP` or `LENGTH`.
        stop_reason: the id of `SamplingParams.stop_token_ids` that ended it; None for end-of-text and length.
    """

    finish_reason: FinishReason
    stop_reason: int | None = None


def find_stop(
    token_id: int,
    *,
    params: SamplingParams,
    eos_token_ids: Sequence[int],
    num_output_tokens: int,
    num_remaining_tokens: int,
) -> Stop | None:
    """Decides whether a request ends with its newest token.

    Args:
        token_id: the newest token.
        params: sampling parameters of the request.
        eos_token_ids: the model's end-of-text tokens.
        num_output_tokens: output tokens, the newest included.
        num_remaining_tokens: further tokens that `max_tokens` and the model's context allow.
    """
    if num_output_tokens >= params.min_tokens:
        if token_id in eos_token_ids and not params.ignore_eos:
            return Stop(FinishReason.STOP)
        if token_id in params.stop_token_ids:
            return Stop(FinishReason.STOP, token_id)
    return None if num_remaining_tokens > 0 else Stop(FinishReason.LENGTH)
