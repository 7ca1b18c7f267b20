"""Feeding a parser with a text cut in every way."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vllm_mxext.parsing.chain import ParsedMessage, join
from vllm_mxext.parsing.events import Event, ParserContext
from vllm_mxext.parsing.registry import ParserRegistry

WEATHER = {
    "name": "get_weather",
    "parameters": {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer"},
            "metric": {"type": "boolean"},
            "limits": {"type": "object"},
            "hours": {"type": "array"},
            "share": {"type": "number"},
            "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
            "nothing": {"type": "null"},
        },
    },
}
TIME = {"name": "get_time", "parameters": {"type": "object", "properties": {}}}
TOOLS: Mapping[str, Mapping[str, Any]] = {"get_weather": WEATHER, "get_time": TIME}

REGISTRY = ParserRegistry()


def parsed(
    pieces: Sequence[str], tool: str | None, reasoning: str | None = None, context: ParserContext | None = None
) -> ParsedMessage:
    """Returns the message that a text in pieces makes."""
    return join(events(pieces, tool, reasoning, context))


def events(
    pieces: Sequence[str], tool: str | None, reasoning: str | None = None, context: ParserContext | None = None
) -> list[Event]:
    """Returns the events that a text in pieces makes."""
    parser = REGISTRY.output_parser(tool, reasoning, context or ParserContext(TOOLS))
    found = [event for piece in pieces for event in parser.feed(piece)]
    return [*found, *parser.finish()]


def every_cut(text: str) -> Iterator[list[str]]:
    """Yields a text cut in two at each position, and in single characters."""
    for position in range(1, len(text)):
        yield [text[:position], text[position:]]
    yield list(text)


def calls(message: ParsedMessage) -> list[tuple[str, Any]]:
    """Returns names and arguments of a message's calls, the arguments as values."""
    return [(call.name, json.loads(call.arguments)) for call in message.calls]
