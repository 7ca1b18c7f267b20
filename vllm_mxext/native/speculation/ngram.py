"""Prompt lookup: what followed the last time the request's latest tokens came up."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def look_up(token_ids: npt.NDArray[np.integer[Any]], min_length: int, max_length: int, num_tokens: int) -> list[int]:
    """Returns the tokens that followed an earlier occurrence of the latest ones; empty if they are new.

    The occurrence is the one that agrees over most tokens, up to `max_length`, and of these the latest. Where it is so
    near that what followed it runs into the end, it goes on from its own beginning: a loop is drafted as a loop.

    Args:
        token_ids: `[n]` prompt and output so far.
        min_length: tokens that must agree.
        max_length: tokens that are compared at most.
        num_tokens: tokens to return, at least 1.
    """
    size = len(token_ids)
    if size <= min_length:
        return []
    # Ends of occurrences, then those that agree in one more token before them, and so on.
    ends = np.flatnonzero(token_ids[:-1] == token_ids[-1])
    length = 1
    while len(ends) and length < max_length:
        longer = ends[ends >= length]
        longer = longer[token_ids[longer - length] == token_ids[size - 1 - length]]
        if not len(longer):
            break
        ends, length = longer, length + 1
    if not len(ends) or length < min_length:
        return []
    start = int(ends[-1]) + 1
    found: list[int] = token_ids[start : start + num_tokens].tolist()
    while len(found) < num_tokens:
        found += found[: num_tokens - len(found)]
    return found
