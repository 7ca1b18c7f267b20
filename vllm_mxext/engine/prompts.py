"""Prompts as callers of the Python API write them: texts, token ids, dictionaries, singly or in lists."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar

from vllm_mxext.errors import InvalidRequestError, UnsupportedFeatureError
from vllm_mxext.requests import Prompt, TextPrompt, TokensPrompt

if TYPE_CHECKING:
    from typing_extensions import NotRequired  # in typing since Python 3.11

T = TypeVar("T")

_NO_IMAGES = "this version reads text only; leave it out"
_REFUSED = {
    "prompt_embeds": "the engine reads token ids, not embeddings; give 'prompt' or 'prompt_token_ids'",
    "multi_modal_data": _NO_IMAGES,
    "multi_modal_uuids": _NO_IMAGES,
    "mm_processor_kwargs": _NO_IMAGES,
}
"""Parts of a prompt that vLLM has, and why they are not served."""


class TextPromptDict(TypedDict):
    """A prompt as text."""

    prompt: str
    cache_salt: NotRequired[str]


class TokensPromptDict(TypedDict):
    """A prompt as token ids."""

    prompt_token_ids: Sequence[int]
    cache_salt: NotRequired[str]


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


def per_prompt(name: str, given: T | Sequence[T], num_prompts: int) -> list[T]:
    """Returns what an argument says of each prompt: the same of all, or the entries of a list.

    Raises:
        InvalidRequestError: the list has another length.
    """
    if isinstance(given, str) or not isinstance(given, Sequence):
        same: Any = given
        return [same] * num_prompts
    values: Sequence[Any] = given
    if len(values) != num_prompts:
        raise InvalidRequestError(
            f"{name} must have one entry per prompt: {len(values)} for {num_prompts} prompts.", param=name
        )
    return list(values)


def with_tokenization(prompts: Sequence[Prompt], tokenization_kwargs: Mapping[str, Any] | None) -> list[Prompt]:
    """Returns the prompts with `add_special_tokens` applied to those that are texts.

    Raises:
        UnsupportedFeatureError: there are other arguments.
    """
    given = dict(tokenization_kwargs or {})
    adds_special_tokens = given.pop("add_special_tokens", None)
    if given:
        raise UnsupportedFeatureError(
            f"tokenization_kwargs may have add_special_tokens; {sorted(given)} cannot be served, and the fields "
            "truncate_prompt_tokens and truncation_side of SamplingParams cut prompts.",
            param="tokenization_kwargs",
        )
    if adds_special_tokens is None:
        return list(prompts)
    return [
        replace(prompt, add_special_tokens=bool(adds_special_tokens)) if isinstance(prompt, TextPrompt) else prompt
        for prompt in prompts
    ]


def _is_token_ids(value: Any) -> bool:
    is_list = isinstance(value, Sequence) and not isinstance(value, (str, bytes))
    return is_list and all(isinstance(item, int) for item in value)


def _parse_mapping(given: Mapping[str, object]) -> Prompt:
    for name, reason in _REFUSED.items():
        if given.get(name) is not None:
            raise UnsupportedFeatureError(f"A prompt with '{name}' cannot be served: {reason}.", param=name)
    unknown = set(given) - {"prompt", "prompt_token_ids", "cache_salt", *_REFUSED}
    if unknown:
        raise UnsupportedFeatureError(
            "A prompt dictionary may have 'prompt' or 'prompt_token_ids', and 'cache_salt'; "
            f"{sorted(unknown)} cannot be served.",
            param="prompt",
        )
    cache_salt: Any = given.get("cache_salt")
    text, token_ids = given.get("prompt"), given.get("prompt_token_ids")
    if text is not None and not isinstance(text, str):
        raise InvalidRequestError(f"'prompt' must be text, got {type(text).__name__}.", param="prompt")
    if token_ids is not None:
        if not isinstance(token_ids, Sequence) or isinstance(token_ids, str):
            raise InvalidRequestError("'prompt_token_ids' must be a list of token ids.", param="prompt")
        return TokensPrompt(tuple(token_ids), text, cache_salt)
    if text is None:
        raise InvalidRequestError("A prompt dictionary needs 'prompt' or 'prompt_token_ids'.", param="prompt")
    return TextPrompt(text, cache_salt=cache_salt)
