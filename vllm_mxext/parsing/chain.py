"""A reasoning parser and a tool parser as stages of one parser, and the message that events make."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from vllm_mxext.parsing.events import ContentDelta, Event, OutputParser, ReasoningDelta, ToolCallStart


class PlainParser:
    """Takes all text for content."""

    def feed(self, text: str) -> Sequence[Event]:
        """Returns the text."""
        return [ContentDelta(text)] if text else []

    def finish(self) -> Sequence[Event]:
        """Returns nothing: nothing is held back."""
        return []


class ParserChain:
    """Feeds what one parser takes for content to the next.

    So a tool call inside the reasoning is reasoning, whatever the cuts.

    Args:
        first: reads the text.
        second: reads the content.
    """

    def __init__(self, first: OutputParser, second: OutputParser) -> None:
        self._first = first
        self._second = second

    def feed(self, text: str) -> Sequence[Event]:
        """Takes more text and returns what is now certain."""
        return self._pass_on(self._first.feed(text))

    def finish(self) -> Sequence[Event]:
        """Returns what is left when the text has ended; call once."""
        return [*self._pass_on(self._first.finish()), *self._second.finish()]

    def _pass_on(self, events: Iterable[Event]) -> list[Event]:
        passed: list[Event] = []
        for event in events:
            if isinstance(event, ContentDelta):
                passed += self._second.feed(event.text)
            else:
                passed.append(event)
        return passed


@dataclass(slots=True)
class ParsedCall:
    """One tool call of a message.

    Attributes:
        name: function name.
        arguments: JSON text.
        id: in the model's own form, or None.
    """

    name: str
    arguments: str = ""
    id: str | None = None


@dataclass(slots=True)
class ParsedMessage:
    """What events join to.

    Attributes:
        content: the answer.
        reasoning: what came before it.
        calls: tool calls, in order.
    """

    content: str = ""
    reasoning: str = ""
    calls: list[ParsedCall] = field(default_factory=list)


def join(events: Iterable[Event]) -> ParsedMessage:
    """Returns the message that events make together."""
    content, reasoning = list[str](), list[str]()
    starts: list[ToolCallStart] = []
    arguments: list[list[str]] = []
    for event in events:
        if isinstance(event, ContentDelta):
            content.append(event.text)
        elif isinstance(event, ReasoningDelta):
            reasoning.append(event.text)
        elif isinstance(event, ToolCallStart):
            starts.append(event)
            arguments.append([])
        else:
            arguments[event.index].append(event.text)
    calls = [ParsedCall(start.name, "".join(pieces), start.id) for start, pieces in zip(starts, arguments, strict=True)]
    return ParsedMessage("".join(content), "".join(reasoning), calls)


def parse(parser: OutputParser, text: str) -> ParsedMessage:
    """Returns the message that a whole text makes: a stream with one piece."""
    return join([*parser.feed(text), *parser.finish()])
