"""Changes to the logits of rows before sampling: `min_tokens` suppression and penalties, as vLLM defines them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from vllm_mxext.native.sampling.metadata import RowTokens, SamplingMetadata


def changed_rows(metadata: SamplingMetadata) -> set[int]:
    """Rows whose logits `apply` changes."""
    return metadata.tokens.keys() | metadata.suppressed.keys()


def apply(logits: npt.NDArray[np.float32], metadata: SamplingMetadata) -> None:
    """Suppresses stop ids of rows below `min_tokens` and applies penalties, in place (`logits: [n, vocab_size]`)."""
    for row, ids in metadata.suppressed.items():
        logits[row, ids[(ids >= 0) & (ids < logits.shape[1])]] = -np.inf
    for row, tokens in metadata.tokens.items():
        penalize(
            logits[row],
            tokens,
            repetition=metadata.repetition_penalty[row],
            frequency=metadata.frequency_penalty[row],
            presence=metadata.presence_penalty[row],
        )


def penalize(
    row: npt.NDArray[np.float32],
    tokens: RowTokens,
    *,
    repetition: np.float32,
    frequency: np.float32,
    presence: np.float32,
) -> None:
    """Applies penalties in place on one row of logits (`[vocab_size]`).

    The repetition penalty (Keskar et al., "CTRL", 2019) sees prompt and output, the others only the output.
    """
    if repetition != 1:
        seen = tokens.token_ids
        values = row[seen]
        row[seen] = np.where(values > 0, values / repetition, values * repetition)
    output: npt.NDArray[Any] = tokens.token_ids[tokens.num_prompt_tokens :]
    if len(output) and (frequency != 0 or presence != 0):
        ids, counts = np.unique(output, return_counts=True)
        row[ids] -= frequency * counts.astype(np.float32) + presence
