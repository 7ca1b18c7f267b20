"""What grammars add to a step's sampling: masks before, and afterwards tokens taken, forced ones, ends, failures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from vllm_mxext.native.protocol import ModelRunnerOutput
from vllm_mxext.native.sampling.metadata import FAILED_TOKEN_ID, SamplingMetadata
from vllm_mxext.native.structured.rows import GrammarRows
from vllm_mxext.native.worker.input_batch import InputBatch, StepInputs
from vllm_mxext.native.worker.runs import Outcome, Run

_NOTHING_LEFT = "The other parameters leave no token that the structured output allows here."


def with_masks(grammars: GrammarRows, inputs: StepInputs, metadata: SamplingMetadata) -> SamplingMetadata:
    """Adds the masks begun for this step, waiting until they are filled.

    Positions behind a draft that does not fit have none; nothing that is sampled there is kept.
    """
    masks = grammars.take_masks()
    if not masks:
        return metadata
    firsts = np.cumsum(inputs.num_positions) - inputs.num_positions
    by_row = {
        first + index: words
        for name, first in zip(inputs.sampled_request_ids, firsts.tolist(), strict=True)
        for index, words in enumerate(masks.get(name, ()))
    }
    return replace(metadata, allowed_bitmask=by_row)


def follow(
    grammars: GrammarRows, batch: InputBatch, metadata: SamplingMetadata, run: Run, result: ModelRunnerOutput
) -> Outcome:
    """Takes the tokens sampled for a request with a grammar, as if each had been the only one of a step.

    After each, the tokens that the grammar forces come first. Where drafts are what came, the position behind them has
    been sampled too; where they are not, the rest is left to the next step. So is a failure, if anything is kept.
    """
    name, tokens, place, num_accepted = run.request_id, list[int](), 0, 0
    room, num_output_tokens = batch.room(name), batch.num_output_tokens(name)
    last_row = run.first_row
    while True:
        row, token_id = run.first_row + place, run.sampled[place]
        if row in metadata.allowed_bitmask and _is_whole(metadata, row):
            result.complete_ids.append(name)
            break
        if grammars.failure(name) is None and token_id != FAILED_TOKEN_ID:
            count = len(tokens) + 1
            step = grammars.advance(name, token_id, room - count, num_output_tokens + count)
        error = grammars.failure(name)
        if error is not None or token_id == FAILED_TOKEN_ID:
            if not tokens:
                result.errors.setdefault(name, error or _NOTHING_LEFT)
                return Outcome([FAILED_TOKEN_ID], 0, row)
            break
        last_row, came = row, [token_id, *step.forced]
        tokens += came
        if step.is_complete:
            result.complete_ids.append(name)
            break
        num_agreeing = _num_agreeing(came, run.drafts[place:])
        num_accepted += num_agreeing
        place += num_agreeing
        if num_agreeing < len(came) or grammars.may_end(name, token_id):
            break
    return Outcome(tokens, num_accepted, last_row)


def _num_agreeing(token_ids: Sequence[int], drafts: Sequence[int]) -> int:
    count = 0
    while count < min(len(token_ids), len(drafts)) and token_ids[count] == drafts[count]:
        count += 1
    return count


def _is_whole(metadata: SamplingMetadata, row: int) -> bool:
    """Whether nothing but an end may follow, and that end is not to be sampled (`min_tokens`, or there is none)."""
    words, suppressed = metadata.allowed_bitmask[row], metadata.suppressed.get(row)
    if suppressed is None:
        return not words.any()
    allowed = np.flatnonzero(np.unpackbits(words.view(np.uint8), bitorder="little"))
    return bool(np.isin(allowed, suppressed).all())
