"""`Document`: an answer's JSON as a dictionary whose fields are attributes too: `answer.choices[0].message.content`.

As in the `openai` package, known fields that a server has left out are None.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from vllm_mxext.client.call import Answer

_KNOWN = {
    name: tuple(fields.split())
    for name, fields in {
        "chat.completion": "choices created id metadata model moderation object service_tier system_fingerprint usage",
        "chat.completion.chunk": "choices created id model moderation obfuscation object service_tier "
        "system_fingerprint usage",
        "text_completion": "choices created id model object system_fingerprint usage",
        "list": "data model object usage",
        "data": "embedding index object",
        "model": "created id object owned_by shutdown_date",
        "choices": "finish_reason index logprobs",
        "message": "annotations audio content function_call refusal role tool_calls",
        "delta": "audio content function_call refusal role tool_calls",
        "tool_calls": "custom function id index type",
        "function_call": "arguments name",
        "function": "arguments name",
        "custom": "input name",
        "audio": "data expires_at id transcript",
        "annotations": "type url_citation",
        "url_citation": "end_index start_index title url",
        "logprobs": "content refusal text_offset token_logprobs tokens top_logprobs",
        "content": "bytes logprob token top_logprobs",
        "refusal": "bytes logprob token top_logprobs",
        "top_logprobs": "bytes logprob token",
        "usage": "completion_tokens completion_tokens_details prompt_tokens prompt_tokens_details total_tokens",
        "completion_tokens_details": "accepted_prediction_tokens audio_tokens reasoning_tokens "
        "rejected_prediction_tokens text_tokens",
        "prompt_tokens_details": "audio_tokens cache_write_tokens cached_tokens image_tokens text_tokens",
    }.items()
}
"""Fields of the `openai` package's types, by the value of `object`, or by the field that an object stands in."""


class Document(dict[str, Any]):
    """A JSON object. Fields that a dictionary has methods for (`items`, `get`, …) are reached with brackets only.

    As an attribute, a field that OpenAI's API knows is None where the server has left it out; with brackets, and for
    all other fields, that is an error.

    Args:
        fields: of the object; those within become documents too.
        answer: how it came: request id, endpoint, attempts, times; None for events and for what lies within.
        place: the field that the object stands in; empty for a whole answer.

    Attributes:
        answer: the same.
    """

    __slots__ = ("_place", "answer")

    def __init__(self, fields: Mapping[str, Any], answer: Answer | None = None, place: str = "") -> None:
        super().__init__({name: _wrapped(value, name) for name, value in fields.items()})
        object.__setattr__(self, "answer", answer)
        object.__setattr__(self, "_place", place)

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        if name in self._known:
            return None
        raise AttributeError(f"The answer has no field '{name}'; it has {', '.join(self.keys()) or 'none'}.")

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def __reduce__(self) -> tuple[type[Document], tuple[dict[str, Any], Answer | None, str]]:
        return type(self), (dict(self), self.answer, self._place)

    @property
    def model_extra(self) -> dict[str, Any]:
        """The fields that OpenAI's API does not know."""
        return {name: value for name, value in self.items() if name not in self._known}

    def model_dump(self, *, exclude_unset: bool = False, exclude_none: bool = False, **_: Any) -> dict[str, Any]:
        """Returns plain dictionaries and lists, as the `openai` package's answers do.

        Args:
            exclude_unset: leave out what the server has left out.
            exclude_none: leave out what is None.
        """
        missing = () if exclude_unset or exclude_none else [name for name in self._known if name not in self]
        fields = {name: _plain(value, exclude_unset, exclude_none) for name, value in self.items()}
        return {
            **{name: value for name, value in fields.items() if value is not None or not exclude_none},
            **dict.fromkeys(missing),
        }

    def model_dump_json(self, *, indent: int | None = None, **options: Any) -> str:
        """Returns `model_dump()` as JSON."""
        separators = (",", ":") if indent is None else None
        return json.dumps(self.model_dump(**options), indent=indent, separators=separators, ensure_ascii=False)

    def to_dict(self, *, exclude_unset: bool = True, **options: Any) -> dict[str, Any]:
        """Returns what the server has sent, as plain dictionaries and lists."""
        return self.model_dump(exclude_unset=exclude_unset, **options)

    def to_json(self, *, indent: int | None = 2, exclude_unset: bool = True, **options: Any) -> str:
        """Returns what the server has sent, as JSON."""
        return self.model_dump_json(indent=indent, exclude_unset=exclude_unset, **options)

    @property
    def _known(self) -> tuple[str, ...]:
        kind = self.get("object")
        return _KNOWN.get(kind if isinstance(kind, str) and kind in _KNOWN else self._place, ())


def _wrapped(value: Any, place: str) -> Any:
    if isinstance(value, dict):
        return value if isinstance(value, Document) else Document(value, place=place)
    if isinstance(value, list) and value and isinstance(value[0], (dict, list)):  # embeddings are long, and flat
        return [_wrapped(item, place) for item in value]
    return value


def _plain(value: Any, exclude_unset: bool, exclude_none: bool) -> Any:
    if isinstance(value, Document):
        return value.model_dump(exclude_unset=exclude_unset, exclude_none=exclude_none)
    if isinstance(value, list) and value and isinstance(value[0], (dict, list)):
        return [_plain(item, exclude_unset, exclude_none) for item in value]
    return value
