"""Prompt lookup against a plain search."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_mxext.native.speculation.ngram import look_up

pytestmark = pytest.mark.promise("SPEC-4")


def plain_look_up(token_ids: list[int], min_length: int, max_length: int, num_tokens: int) -> list[int]:
    for length in range(max_length, min_length - 1, -1):
        for start in range(len(token_ids) - length - 1, -1, -1):
            if 0 < length < len(token_ids) and token_ids[start : start + length] == token_ids[-length:]:
                text = list(token_ids)
                for position in range(num_tokens):
                    text.append(text[start + length + position])
                return text[len(token_ids) :]
    return []


@settings(max_examples=400, deadline=None)
@given(
    token_ids=st.lists(st.integers(0, 3), min_size=1, max_size=30),
    lengths=st.tuples(st.integers(1, 5), st.integers(1, 5)).map(sorted),
    num_tokens=st.integers(1, 6),
)
def test_the_longest_and_then_the_latest_occurrence_is_continued(
    token_ids: list[int], lengths: list[int], num_tokens: int
) -> None:
    found = look_up(np.array(token_ids, dtype=np.int32), lengths[0], lengths[1], num_tokens)
    assert found == plain_look_up(token_ids, lengths[0], lengths[1], num_tokens)


def test_a_loop_is_drafted_as_a_loop() -> None:
    assert look_up(np.array([9, 1, 2, 3, 1, 2, 3]), 2, 4, 7) == [1, 2, 3, 1, 2, 3, 1]


def test_new_tokens_have_no_continuation() -> None:
    assert look_up(np.array([1, 2, 3, 4]), 1, 4, 3) == []
    assert look_up(np.array([5, 1, 2, 6, 2]), 2, 4, 3) == []
