"""DRY: a penalty that grows with the length of the repetition a token would prolong, as in llama.cpp."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vllm_mxext.native.protocol import TokenRules
from vllm_mxext.sampling_params import SamplingParams

MAX_COUNTED_LENGTH = 512
"""Longer repetitions weigh as much as one of so many tokens more than are allowed; bounds the work per token."""

_LOG_LARGEST_FLOAT = 88.7228391
"""ln of the largest float32; penalties beyond it would be infinite."""

_Ids = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Dry:
    """Parameters of one row.

    Attributes:
        multiplier: penalty of the shortest repetition that counts.
        base: by how much each further token multiplies it.
        allowed_length: longest repetition without penalty, less one (as llama.cpp counts).
        last_n: tokens looked back at; -1 is all.
        breakers: first token of a sequence that ends repetitions -> what may follow it; () if the token does alone.
    """

    multiplier: float
    base: float
    allowed_length: int
    last_n: int
    breakers: dict[int, list[tuple[int, ...]]]

    def penalize(self, row: npt.NDArray[np.float32], token_ids: npt.NDArray[Any]) -> None:
        """Lowers the logits of tokens that would prolong a repetition, in place.

        Args:
            row: `[vocab_size]` logits.
            token_ids: prompt and output so far.
        """
        tokens = token_ids[-self.last_n :] if self.last_n >= 0 else token_ids
        limit = self._repetition_limit(tokens) if len(tokens) > self.allowed_length else -1
        if limit < self.allowed_length:
            return
        ids, lengths = self._continuations(tokens, limit)
        is_free = np.fromiter((() in self.breakers.get(token, ()) for token in ids.tolist()), bool, len(ids))
        ids, lengths = ids[~is_free], lengths[~is_free]
        exponents = np.minimum(lengths - self.allowed_length, self._max_exponent)
        with np.errstate(over="ignore"):
            row[ids] -= (self.multiplier * np.power(float(self.base), exponents)).astype(np.float32)

    @property
    def _max_exponent(self) -> float:
        return int(_LOG_LARGEST_FLOAT / math.log(self.base)) if self.base > 1.000001 else math.inf

    def _repetition_limit(self, tokens: npt.NDArray[Any]) -> int:
        """Tokens at the end that belong to no breaker and come after the last one."""
        end = len(tokens)
        if not self.breakers:
            return end
        for distance, token in enumerate(reversed(tokens.tolist())):
            tails = self.breakers.get(token)
            if tails is None:
                continue
            after = tokens[end - distance :]
            matched = [len(tail) for tail in tails if after[: len(tail)].tolist() == list(tail)]
            if matched:
                return distance - max(matched)
        return end

    def _continuations(self, tokens: npt.NDArray[Any], limit: int) -> tuple[_Ids, _Ids]:
        """Tokens that have followed the end of the text before, and the length of the longest such repetition."""
        last = len(tokens) - 1
        ends = np.flatnonzero(tokens[:last] == tokens[last])
        longest = min(limit, self.allowed_length + MAX_COUNTED_LENGTH)
        found: dict[int, int] = {}
        for length in range(1, longest + 1):
            if not len(ends):
                break
            if length >= self.allowed_length:
                found.update(dict.fromkeys(tokens[ends + 1].tolist(), length))
            ends = ends[ends >= length]
            ends = ends[tokens[ends - length] == tokens[last - length]]
        ids = np.fromiter(found, dtype=np.int64, count=len(found))
        return ids, np.fromiter(found.values(), dtype=np.int64, count=len(found))


def dry(params: SamplingParams, rules: TokenRules | None) -> Dry | None:
    """Returns the parameters of a request that uses DRY; None for others."""
    if not params.dry_multiplier or not params.dry_penalty_last_n:
        return None
    breakers: dict[int, list[tuple[int, ...]]] = {}
    for head, *tail in _breakers(rules):
        breakers.setdefault(head, []).append(tuple(tail))
    return Dry(
        multiplier=params.dry_multiplier,
        base=params.dry_base,
        allowed_length=params.dry_allowed_length,
        last_n=params.dry_penalty_last_n,
        breakers=breakers,
    )


def _breakers(rules: TokenRules | None) -> Sequence[Sequence[int]]:
    return rules.dry_breakers if rules else ()
