"""Which token sequences end a repetition for DRY, against the definition."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_mxext.engine.backends.fake_tokenizer import FakeTokenizer
from vllm_mxext.engine.frontend.dry_breakers import DryBreakers
from vllm_mxext.errors import InvalidRequestError
from vllm_mxext.sampling_params import SamplingParams


class Words(FakeTokenizer):
    """Its first tokens are some words; texts are tokenized as by its base."""

    def __init__(self, words: list[str]) -> None:
        super().__init__()
        self.words = [word.encode() for word in words]
        self.num_reads = 0

    def token_bytes(self, token_id: int) -> bytes:
        self.num_reads += 1
        return self.words[token_id]


def sequences(tokenizer: Words, *breakers: str, **values: Any) -> list[list[int]]:
    params = SamplingParams(**{"dry_multiplier": 1.0, "dry_sequence_breakers": breakers, **values})
    return DryBreakers(tokenizer, len(tokenizer.words)).sequences(params)


@given(
    words=st.lists(st.text("ab好", max_size=4), min_size=1, max_size=12),
    breaker=st.text("ab好", min_size=1, max_size=4),
)
def test_tokens_that_hold_a_breaker_and_those_that_begin_it_are_found(words: list[str], breaker: str) -> None:
    tokenizer = Words(words)
    expected = [(token_id,) for token_id, word in enumerate(words) if breaker in word]
    for split in range(1, len(breaker)):
        tail = tokenizer.encode(breaker[split:], add_special_tokens=False)
        begun = [i for i, word in enumerate(words) if word.endswith(breaker[:split]) and breaker not in word]
        expected += [(token_id, *tail) for token_id in begun]
    assert sequences(tokenizer, breaker) == [list(sequence) for sequence in dict.fromkeys(expected)]


def test_the_vocabulary_is_read_once_for_all_breakers() -> None:
    tokenizer = Words(["a", "b", "ab"])
    assert sequences(tokenizer, "ab", "ba", "aab") != []
    assert tokenizer.num_reads == 3


def test_nothing_is_looked_for_where_dry_is_off() -> None:
    tokenizer = Words(["a"])
    assert sequences(tokenizer, "a", dry_multiplier=0.0) == sequences(tokenizer, "a", dry_penalty_last_n=0) == []
    assert tokenizer.num_reads == 0


@pytest.mark.parametrize("breakers", [("",), ("x" * 41,), tuple(map(str, range(65)))])
def test_breakers_that_are_empty_too_long_or_too_many_are_refused(breakers: tuple[str, ...]) -> None:
    with pytest.raises(InvalidRequestError, match="at most 64 texts of 1 to 40 bytes"):
        sequences(Words(["a"]), *breakers)
