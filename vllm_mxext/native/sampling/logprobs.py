"""Log probabilities of raw logits, before temperature, penalties and filters."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from vllm_mxext.native.protocol import TokenLogprobs
from vllm_mxext.native.sampling.filters import top_k_ids

_BLOCK = 16_384
"""Logits per pass: the system maps memory anew for every array as large as a row, which costs more than the rest."""


def token_logprobs(
    row: npt.NDArray[np.float32], token_id: int, num_logprobs: int, other_ids: Sequence[int] = ()
) -> TokenLogprobs:
    """Reports the chosen token and the `num_logprobs` most likely ones (-1: the whole vocabulary).

    Equally likely tokens are ranked by id, lowest first.

    Args:
        row: `[vocab_size]` raw logits without NaN and +inf.
        token_id: the chosen token.
        num_logprobs: at least -1.
        other_ids: further ids to report.
    """
    maximum = row.max()
    blocks = (row[first : first + _BLOCK] for first in range(0, len(row), _BLOCK))
    total = sum(float(np.exp(block - maximum).sum(dtype=np.float64)) for block in blocks)
    log_sum = float(maximum) + math.log(total)
    count = len(row) if num_logprobs < 0 else min(num_logprobs, len(row))
    top = np.empty(0, dtype=np.int64)
    if count:
        top = top_k_ids(row, count)
        top = top[np.argsort(-row[top], kind="stable")]
    token_ids = [token_id, *top.tolist(), *other_ids]
    logprobs = (row[token_ids].astype(np.float64) - log_sum).tolist()
    return TokenLogprobs(token_ids, logprobs, _rank(row, token_id), [_rank(row, other_id) for other_id in other_ids])


def _rank(row: npt.NDArray[np.float32], token_id: int) -> int:
    value = row[token_id]
    return 1 + int(np.count_nonzero(row > value)) + int(np.count_nonzero(row[:token_id] == value))
