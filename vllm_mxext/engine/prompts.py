"""Prompts as callers of the Python API write them: texts, token ids, dictionaries, singly or in lists."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from vllm_mxext.errors import InvalidRequestError, UnsupportedFeatureError
from vllm_mxext.requests import Prompt, TextPrompt, TokensPrompt


class TextPromptDict(TypedDict):
    """A prompt as text."""

    prompt: str


class TokensPromptDict(TypedDict):
    """A prompt as token ids."""

    prompt_token_ids: Sequence[int]


PromptLike = str | Sequence[int] | TextPromptDict | TokensPromptDict | Prompt


def parse_prompt(given: PromptLike) -> Prompt:
    """Reads one prompt.

    Raises:
        InvalidRequestError: it is none of the known forms.
        UnsupportedFeatureError: it has parts that this version does not serve.
    """
    value: Any = given
    if isinstance(value, (TextPrompt, TokensPrompt)):
        return value
    if isinstance(value, str):
        return TextPrompt(value)
    if isinstance(value, Mapping):
        return _parse_mapping(value)
    if _is_token_ids(value):
        return TokensPrompt(tuple(value))
    raise InvalidRequestError(
        f"A prompt must be text, a list of token ids or a dictionary, got {type(given).__name__}.", param="prompt"
    )


def parse_prompts(given: PromptLike | Sequence[PromptLike]) -> list[Prompt]:
    """Reads one prompt or a list of prompts; a list of integers is one prompt of token ids.

    Raises:
        InvalidRequestError: a prompt is none of the known forms.
        UnsupportedFeatureError: a prompt has parts that this version does not serve.
    """
    values: Any = given
    if isinstance(values, Sequence) and not isinstance(values, str) and not (values and _is_token_ids(values)):
        return [parse_prompt(value) for value in values]
    return [parse_prompt(values)]


def _is_token_ids(value: Any) -> bool:
    is_list = isinstance(value, Sequence) and not isinstance(value, (str, bytes))
    return is_list and all(isinstance(item, int) for item in value)


def _parse_mapping(given: Mapping[str, object]) -> Prompt:
    unknown = set(given) - {"prompt", "prompt_token_ids"}
    if unknown:
        raise UnsupportedFeatureError(
            f"A prompt dictionary may have 'prompt' or 'prompt_token_ids'; {sorted(unknown)} cannot be served.",
            param="prompt",
        )
    text, token_ids = given.get("prompt"), given.get("prompt_token_ids")
    if text is not None and not isinstance(text, str):
        raise InvalidRequestError(f"'prompt' must be text, got {type(text).__name__}.", param="prompt")
    if token_ids is not None:
        if not isinstance(token_ids, Sequence) or isinstance(token_ids, str):
            raise InvalidRequestError("'prompt_token_ids' must be a list of token ids.", param="prompt")
        return TokensPrompt(tuple(token_ids), text)
    if text is None:
        raise InvalidRequestError("A prompt dictionary needs 'prompt' or 'prompt_token_ids'.", param="prompt")
    return TextPrompt(text)
