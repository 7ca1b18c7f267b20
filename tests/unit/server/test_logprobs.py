"""Log probabilities in the API's two shapes, at their edges."""

from __future__ import annotations

import math

import pytest

from vllm_mxext.engine.backends.fake_tokenizer import FakeTokenizer
from vllm_mxext.outputs import Logprob
from vllm_mxext.server.openai.logprobs import LogprobsFormatter

A, B, C = (ord(letter) for letter in "abc")


def formatter(num_top: int, *, is_token_ids: bool = False) -> LogprobsFormatter:
    return LogprobsFormatter(FakeTokenizer(), num_top, is_token_ids=is_token_ids)


def test_an_unlikely_chosen_token_is_not_among_the_top_ones_of_a_chat():
    position = {C: Logprob(-9.0, 50), A: Logprob(-0.1, 1), B: Logprob(-2.0, 2)}

    [entry] = formatter(2).chat([C], [position])["content"]

    assert (entry["token"], entry["logprob"], entry["bytes"]) == ("c", -9.0, [C])
    assert [top["token"] for top in entry["top_logprobs"]] == ["a", "b"]


def test_a_completion_lists_the_chosen_token_besides_the_top_ones():
    position = {C: Logprob(-9.0, 50), A: Logprob(-0.1, 1), B: Logprob(-2.0, 2)}

    logprobs = formatter(2).completion([C], [position], offset=3)

    assert logprobs["top_logprobs"] == [{"c": -9.0, "a": -0.1, "b": -2.0}]
    assert logprobs["text_offset"] == [3]


def test_minus_one_lists_every_candidate():
    position = {A: Logprob(-0.1, 1), B: Logprob(-2.0, 2), C: Logprob(-3.0, 3)}

    assert len(formatter(-1).chat([A], [position])["content"][0]["top_logprobs"]) == 3


def test_completions_without_candidates_list_none():
    assert formatter(0).completion([A], [{A: Logprob(-0.1, 1)}], 0)["top_logprobs"] is None


def test_minus_infinity_becomes_a_number_that_json_has():
    [entry] = formatter(0).chat([A], [{A: Logprob(-math.inf, 7)}])["content"]

    assert entry["logprob"] == -9999.0


def test_tokens_as_ids_do_not_change_offsets():
    positions = [{A: Logprob(-0.1, 1)}, {B: Logprob(-0.1, 1)}]

    logprobs = formatter(1, is_token_ids=True).completion([A, B], positions, 0)

    assert logprobs["tokens"] == [f"token_id:{A}", f"token_id:{B}"]
    assert logprobs["text_offset"] == [0, 1]


def test_the_engine_s_own_text_of_a_token_wins():
    [entry] = formatter(0).chat([A], [{A: Logprob(-0.1, 1, " a")}])["content"]

    assert entry["token"] == " a"


def test_tokens_and_positions_must_match():
    with pytest.raises(ValueError, match="zip"):
        formatter(0).chat([A, B], [{A: Logprob(-0.1, 1)}])
