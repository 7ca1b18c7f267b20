"""A format that calls are forced into is read by the parser of its name."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.parsing.cuts import calls, parsed
from tests.unit.parsing.written_calls import written
from vllm_mxext.parsing.registry import TOOL_PARSERS

CALLS: list[tuple[str, Any]] = [("get_weather", {"city": 'a "b"', "days": 2}), ("get_time", {})]
_ENTRIES = [pytest.param(entry, id=entry.name) for entry in TOOL_PARSERS if entry.format is not None]


@pytest.mark.parametrize("entry", _ENTRIES)
@pytest.mark.parametrize("number", [1, 2])
def test_calls_written_by_the_format_are_read_back(entry: Any, number: int) -> None:
    text = written(entry.format, CALLS[:number])
    assert text.startswith(entry.format.trigger)
    message = parsed([text], entry.name)
    assert calls(message) == CALLS[:number]
    assert message.content == ""
