"""`Run`: what was sampled for one request in one step, beside its drafts; how much of it is kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vllm_mxext.native.sampling.metadata import FAILED_TOKEN_ID
from vllm_mxext.native.worker.input_batch import StepInputs


@dataclass(frozen=True, slots=True)
class Run:
    """Consecutive positions of one request.

    Attributes:
        request_id: whose.
        first_row: row of the logits of the first position.
        sampled: tokens sampled at these positions, each as if the drafts before it were right.
        drafts: tokens drafted for all of them but the last.
    """

    request_id: str
    first_row: int
    sampled: Sequence[int]
    drafts: Sequence[int]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What is kept of a run.

    Attributes:
        token_ids: new tokens of the request.
        num_accepted: how many of them, from the first on, are drafts, so that their keys and values are computed.
        last_row: row of the logits that the last sampled one of them came from.
    """

    token_ids: list[int]
    num_accepted: int
    last_row: int


def split_runs(inputs: StepInputs, sampled: Sequence[int], drafts: Sequence[int]) -> Iterator[Run]:
    """Yields the run of each request that samples.

    Args:
        inputs: the step.
        sampled: `[num_samples]` tokens.
        drafts: `[num_samples]` what was drafted for these positions; anything for the last one of each request.
    """
    first = 0
    for request_id, num_positions in zip(inputs.sampled_request_ids, inputs.num_positions.tolist(), strict=True):
        end = first + num_positions
        yield Run(request_id, first, sampled[first:end], drafts[first : end - 1])
        first = end


def agreeing(run: Run) -> Outcome:
    """Keeps the tokens up to the first one that is not its draft."""
    num_accepted = 0
    while num_accepted < len(run.drafts) and run.sampled[num_accepted] == run.drafts[num_accepted]:
        num_accepted += 1
    last = num_accepted
    if num_accepted and run.sampled[last] == FAILED_TOKEN_ID:
        last -= 1  # it fails as the only one of the next step
    return Outcome(list(run.sampled[: last + 1]), num_accepted, run.first_row + last)
