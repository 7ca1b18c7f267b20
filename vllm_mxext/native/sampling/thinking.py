"""`ThinkingBudget`: forces the tokens that close the reasoning of a request that has spent its budget."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy.typing as npt

from vllm_mxext.native.protocol import ThinkingRule

_OTHER = b"\xff"
"""Stands for a token that is part of no marker; no UTF-8 text has this byte."""

_SPACE = b" \t\r\n"


class _Phase(Enum):
    BEFORE = 0
    INSIDE = 1
    OVER = 2


@dataclass(slots=True)
class _Place:
    """How far an output has come.

    Attributes:
        num_tokens: output tokens read.
        phase: where they end.
        num_thought: how many of them are reasoning.
        tail: the text that may be the beginning of a marker.
        closing: tokens that would end the reasoning.
        num_closed: how many of these were the last tokens, since the budget is spent.
    """

    closing: list[int]
    num_tokens: int = 0
    phase: _Phase = _Phase.BEFORE
    num_thought: int = 0
    tail: bytes = b""
    num_closed: int = 0


class ThinkingBudget:
    """Says which token must come next in one request's output; a function of the tokens before it.

    Reasoning is what the reasoning parsers take for it: it begins with the output, and ends once. Markers do not count.

    Args:
        limit: tokens of reasoning.
        rule: how it is marked.
    """

    def __init__(self, limit: int, rule: ThinkingRule) -> None:
        self._limit = limit
        self._rule = rule
        self._num_kept = max(1, max(map(len, rule.ends)) - 1)
        self._settled = _Place(rule.closings[0])

    def forced(self, output: npt.NDArray[Any], num_settled: int) -> int | None:
        """Returns the token that must come behind these, or None if any may.

        Args:
            output: `[n]` output tokens.
            num_settled: how many of them, from the first on, never change again; the others are drafts.
        """
        place = self._settled
        if place.phase is _Phase.OVER:
            return None
        self._read(place, output[place.num_tokens : num_settled].tolist())
        if len(output) > num_settled:
            place = copy.copy(place)
            self._read(place, output[num_settled:].tolist())
        is_thinking = place.phase is _Phase.INSIDE or (place.phase is _Phase.BEFORE and self._rule.is_open)
        return place.closing[place.num_closed] if is_thinking and place.num_thought >= self._limit else None

    def _read(self, place: _Place, token_ids: list[int]) -> None:
        for token_id in token_ids:
            if place.phase is _Phase.OVER:
                return
            if place.num_thought >= self._limit:
                fits = token_id == place.closing[place.num_closed]
                place.num_closed = place.num_closed + 1 if fits else int(token_id == place.closing[0])
            place.num_tokens += 1
            place.tail += self._rule.pieces.get(token_id, _OTHER)
            if place.phase is _Phase.INSIDE or self._rule.is_open:
                place.num_thought += 1
            if place.phase is _Phase.BEFORE:
                self._look_for_start(place)
            if place.phase is _Phase.INSIDE:
                is_over = any(end in place.tail for end in self._rule.ends)
                place.phase = _Phase.OVER if is_over else _Phase.INSIDE
                place.tail = place.tail[-self._num_kept :]

    def _look_for_start(self, place: _Place) -> None:
        text = place.tail.lstrip(_SPACE)
        if any(len(start) > len(text) and start.startswith(text) for start in self._rule.starts):
            return
        pairs = zip(self._rule.starts, self._rule.closings, strict=True)
        start, closing = max((pair for pair in pairs if text.startswith(pair[0])), default=(b"", place.closing))
        if start:
            place.phase, place.num_thought, place.num_closed = _Phase.INSIDE, 0, 0
            place.tail, place.closing = text[len(start) :], closing
        else:
            place.phase = _Phase.INSIDE if self._rule.is_open else _Phase.OVER
