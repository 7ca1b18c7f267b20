"""What a parser finds in generated text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class ContentDelta:
    """More of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    """More of the reasoning before the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCallStart:
    """A tool call begins; comes once per call, when its name is certain.

    Attributes:
        index: 0, 1, 2, ... in the order of the calls.
        name: function name.
        id: in the model's own form, or None if the caller is to make one.
    """

    index: int
    name: str
    id: str | None = None


@dataclass(frozen=True, slots=True)
class ToolArgumentsDelta:
    """More of a call's arguments; together they are one JSON object."""

    index: int
    text: str


Event = ContentDelta | ReasoningDelta | ToolCallStart | ToolArgumentsDelta


@dataclass(frozen=True, slots=True)
class ParserContext:
    """What a parser may know of its request.

    Attributes:
        tools: the request's function descriptions (`{"name": ..., "parameters": schema}`), by name; some formats need
            them to tell numbers from text.
        prompt_end: the last characters of the prompt: a template may have opened the reasoning already.
    """

    tools: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    prompt_end: str = ""


class OutputParser(Protocol):
    """Reads one sample's text in pieces of any size; however the text is cut, the joined events are the same."""

    def feed(self, text: str) -> Sequence[Event]:
        """Takes more text and returns what is now certain."""
        ...

    def finish(self) -> Sequence[Event]:
        """Returns what is left when the text has ended; call once."""
        ...
