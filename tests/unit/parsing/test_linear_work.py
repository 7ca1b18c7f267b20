"""The work of a parser grows linearly, whatever it is given."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from tests.unit.parsing.cuts import REGISTRY, TOOLS
from tests.unit.parsing.examples import FRAGMENTS
from vllm_mxext.parsing.events import ParserContext
from vllm_mxext.parsing.registry import tool_parser_names

_CALL = '{"name": "get_weather", "arguments": {"a": '


def work(parser_name: str, text: str, piece: int) -> tuple[int, int]:
    """Returns the number of calls of functions, and of characters that were copied from one buffer to the next."""
    parser = REGISTRY.output_parser(parser_name, None, ParserContext(TOOLS))
    num_calls = num_unread = 0

    def count(frame: Any, event: str, argument: Any) -> None:
        nonlocal num_calls
        num_calls += event in {"call", "c_call"}

    sys.setprofile(count)
    try:
        for start in range(0, len(text), piece):
            parser.feed(text[start : start + piece])
            num_unread += len(parser.scanner._text) - parser.scanner._position
        parser.finish()
    finally:
        sys.setprofile(None)
    return num_calls, num_unread


@pytest.mark.parametrize("parser_name", tool_parser_names())
@pytest.mark.promise("PARSE-3")
def test_twice_the_text_is_at_most_twice_the_work(parser_name: str) -> None:
    marker = FRAGMENTS[parser_name][0]
    part = marker[:-1] or marker
    units = [
        (marker, marker),
        (part, part),
        (marker + _CALL, "["),
        (marker + '{"x": "', "a"),
        ("", " \n"),
    ]
    for beginning, unit in units:
        for piece in (1, 10**9):
            calls, unread = work(parser_name, beginning + unit * (1500 // len(unit)), piece)
            more_calls, more_unread = work(parser_name, beginning + unit * (3000 // len(unit)), piece)
            assert more_calls <= 2.1 * calls + 50, (beginning, unit, piece)
            assert more_unread <= 2.1 * unread + 50, (beginning, unit, piece)
