"""Changes to the logits of rows before sampling: controls, `min_tokens` suppression, penalties, as vLLM has them."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from vllm_mxext.native.sampling.controls import LogitsProcessorError
from vllm_mxext.native.sampling.metadata import RowTokens, SamplingMetadata

_NO_TOKENS = RowTokens(np.empty(0, dtype=np.int32), 0)


def changed_rows(metadata: SamplingMetadata) -> set[int]:
    """Rows whose logits `apply` changes."""
    controlled = {row for row, controls in metadata.controls.items() if controls.changes_logits}
    masked = metadata.suppressed.keys() | metadata.allowed_bitmask.keys() | metadata.forced.keys()
    return controlled | metadata.tokens.keys() | masked


def apply(logits: npt.NDArray[np.float32], metadata: SamplingMetadata) -> dict[int, str]:
    """Applies controls and masks, suppresses stop ids below `min_tokens`, runs plug-ins and penalises, in place.

    A forced token is then left as the only one, whatever these say of it, unless a mask forbids it.

    Args:
        logits: `[n, vocab_size]`; rows on which a plug-in failed become NaN.
        metadata: one entry per row.

    Returns:
        Row -> how a plug-in failed.
    """
    for row, controls in metadata.controls.items():
        tokens = metadata.tokens.get(row, _NO_TOKENS)
        controls.apply(logits[row], tokens.token_ids[tokens.num_prompt_tokens :])
    for row, words in metadata.allowed_bitmask.items():
        apply_bitmask(logits[row], words)
    for row, ids in metadata.suppressed.items():
        logits[row, ids[(ids >= 0) & (ids < logits.shape[1])]] = -np.inf
    errors = _process(logits, metadata)
    for row, tokens in metadata.tokens.items():
        penalize(
            logits[row],
            tokens,
            repetition=metadata.repetition_penalty[row],
            frequency=metadata.frequency_penalty[row],
            presence=metadata.presence_penalty[row],
        )
        dry = metadata.controls[row].dry if row in metadata.controls else None
        if dry is not None:
            dry.penalize(logits[row], tokens.token_ids)
    for row, token_id in metadata.forced.items():
        _force(logits[row], token_id, metadata.allowed_bitmask.get(row))
    return errors


def _force(row: npt.NDArray[np.float32], token_id: int, words: npt.NDArray[np.int32] | None) -> None:
    if words is not None and not (int(words[token_id >> 5]) >> (token_id & 31)) & 1:
        return
    if not np.isnan(row).any() and row.max() < np.inf:  # unusable logits must not be hidden
        row.fill(-np.inf)
        row[token_id] = 0


def _process(logits: npt.NDArray[np.float32], metadata: SamplingMetadata) -> dict[int, str]:
    """Runs the plug-ins of rows with usable logits."""
    errors: dict[int, str] = {}
    for row, controls in metadata.controls.items():
        if controls.processors is None or not np.isfinite(logits[row].max()):
            continue
        tokens = metadata.tokens[row]
        try:
            controls.processors.apply(logits[row], tokens.token_ids[tokens.num_prompt_tokens :])
        except LogitsProcessorError as error:
            errors[row] = str(error)
            logits[row] = np.nan
    return errors


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


def apply_bitmask(row: npt.NDArray[np.float32], words: npt.NDArray[np.int32]) -> None:
    """Sets the logits to -inf whose bit in `words` is 0 (`row: [vocab_size]`, `words: [ceil(vocab_size / 32)]`)."""
    limits = _limits_of_bytes().take(words.view(np.uint8), axis=0).reshape(-1)[: len(row)]
    np.minimum(row, limits, out=row)


@cache
def _limits_of_bytes() -> npt.NDArray[np.float32]:
    """Upper limits of the eight logits of each byte of a mask; four times as fast as spreading the bits."""
    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
    return np.where(bits == 1, np.float32(np.inf), np.float32(-np.inf))
