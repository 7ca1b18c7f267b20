"""The forms in which prompts may be given."""

from __future__ import annotations

from typing import Any

import pytest

from vllm_mxext.engine.prompts import parse_prompt, parse_prompts
from vllm_mxext.errors import InvalidRequestError, UnsupportedFeatureError
from vllm_mxext.requests import TextPrompt, TokensPrompt


@pytest.mark.promise("ENG-1")
@pytest.mark.parametrize(
    ("given", "prompt"),
    [
        ("hi", TextPrompt("hi")),
        ({"prompt": "hi"}, TextPrompt("hi")),
        ([1, 2], TokensPrompt((1, 2))),
        ({"prompt_token_ids": [1, 2]}, TokensPrompt((1, 2))),
        ({"prompt_token_ids": [1], "prompt": "a"}, TokensPrompt((1,), "a")),
        (TextPrompt("hi", False), TextPrompt("hi", False)),
        (TokensPrompt((3,)), TokensPrompt((3,))),
    ],
)
def test_a_prompt_is_understood_alone_and_in_a_list(given: Any, prompt: object) -> None:
    assert parse_prompt(given) == prompt
    assert parse_prompts(given) == [prompt]
    assert parse_prompts([given, "x"]) == [prompt, TextPrompt("x")]


def test_an_empty_list_has_no_prompts() -> None:
    assert parse_prompts([]) == []


@pytest.mark.parametrize(
    "given", [5, None, {"text": "a", "prompt": "b"}, {}, {"prompt": 3}, {"prompt_token_ids": "ab"}, [1.5]]
)
def test_anything_else_is_refused(given: Any) -> None:
    with pytest.raises(InvalidRequestError):
        parse_prompt(given)


def test_parts_that_are_not_served_are_named() -> None:
    with pytest.raises(UnsupportedFeatureError, match="multi_modal_data"):
        parse_prompt({"prompt": "a", "multi_modal_data": {}})  # type: ignore[typeddict-unknown-key]


def test_bytes_are_no_token_ids() -> None:
    with pytest.raises(InvalidRequestError, match="bytes"):
        parse_prompt(b"abc")
