"""What grammars add to a step's sampling: masks before, and afterwards tokens taken, forced ones, ends, failures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from vllm_mxext.native.protocol import ModelRunnerOutput
from vllm_mxext.native.sampling.metadata import FAILED_TOKEN_ID, SamplingMetadata
from vllm_mxext.native.structured.rows import GrammarRows
from vllm_mxext.native.worker.input_batch import InputBatch

_NOTHING_LEFT = "The other parameters leave no token that the structured output allows here."


def with_masks(grammars: GrammarRows, names: Sequence[str], metadata: SamplingMetadata) -> SamplingMetadata:
    """Adds the masks begun for these rows, waiting until they are filled."""
    masks = grammars.take_masks()
    if not masks:
        return metadata
    return replace(metadata, allowed_bitmask={i: masks[name] for i, name in enumerate(names) if name in masks})


def advance(grammars: GrammarRows, batch: InputBatch, metadata: SamplingMetadata, result: ModelRunnerOutput) -> None:
    """Takes the sampled tokens of requests with a grammar, and adds to the result what follows from them."""
    for row, name in enumerate(result.sampled_token_ids):
        if name not in grammars:
            continue
        tokens = result.sampled_token_ids[name]
        if row in metadata.allowed_bitmask and _is_whole(metadata, row):
            tokens.clear()
            result.logprobs.pop(name, None)
            result.complete_ids.append(name)
            continue
        if grammars.failure(name) is None and tokens[0] != FAILED_TOKEN_ID:
            step = grammars.advance(name, tokens[0], batch.room(name), batch.num_output_tokens(name))
            tokens += step.forced
            batch.append_forced(name, step.forced)
            if step.is_complete:
                result.complete_ids.append(name)
        error = grammars.failure(name)
        if error is not None or tokens[0] == FAILED_TOKEN_ID:
            result.sampled_token_ids[name] = [FAILED_TOKEN_ID]
            result.errors.setdefault(name, error or _NOTHING_LEFT)


def _is_whole(metadata: SamplingMetadata, row: int) -> bool:
    """Whether nothing but an end may follow, and that end is not to be sampled (`min_tokens`, or there is none)."""
    words, suppressed = metadata.allowed_bitmask[row], metadata.suppressed.get(row)
    if suppressed is None:
        return not words.any()
    allowed = np.flatnonzero(np.unpackbits(words.view(np.uint8), bitorder="little"))
    return bool(np.isin(allowed, suppressed).all())
