"""What the events of a streamed answer say: whether a token is in them, their text, whether the answer is whole."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TOKEN_FIELDS = ("content", "reasoning_content", "reasoning", "tool_calls", "function_call", "refusal", "audio")
"""Fields of a delta or message that hold what the model has written, of any kind."""


def has_token(document: Mapping[str, Any]) -> bool:
    """Tells whether an event brings a part of the answer, not role or usage only; an unknown shape counts as one."""
    choices = document.get("choices")
    if not isinstance(choices, list):
        return True
    return any(_choice_has_token(choice) for choice in choices if isinstance(choice, Mapping))


def text_of(document: Mapping[str, Any]) -> str:
    """Returns the text that an event adds to the first choice."""
    for choice in _choices(document):
        if choice.get("index", 0) == 0:
            delta = choice.get("delta")
            text = delta.get("content") if isinstance(delta, Mapping) else choice.get("text")
            return text if isinstance(text, str) else ""
    delta = document.get("delta")  # of /v1/responses
    return delta if isinstance(delta, str) and document.get("type") == "response.output_text.delta" else ""


class Completeness:
    """Whether a stream that ended without `[DONE]` was whole: every choice that began has a reason to have ended."""

    def __init__(self) -> None:
        self._begun: set[int] = set()
        self._ended: set[int] = set()

    def note(self, document: Mapping[str, Any]) -> None:
        """Takes one event into account."""
        for choice in _choices(document):
            index = choice.get("index")
            index = index if isinstance(index, int) else 0
            self._begun.add(index)
            if choice.get("finish_reason") is not None:
                self._ended.add(index)
        if document.get("type") in ("response.completed", "response.incomplete"):
            self._begun.add(0)
            self._ended.add(0)

    @property
    def is_whole(self) -> bool:
        """Whether nothing is missing."""
        return bool(self._begun) and self._begun == self._ended


def _choices(document: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    choices = document.get("choices")
    return [choice for choice in choices if isinstance(choice, Mapping)] if isinstance(choices, list) else []


def _choice_has_token(choice: Mapping[str, Any]) -> bool:
    if choice.get("finish_reason") is not None or choice.get("text"):
        return True
    delta = choice.get("delta")
    return isinstance(delta, Mapping) and any(delta.get(name) for name in TOKEN_FIELDS)
