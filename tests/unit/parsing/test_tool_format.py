"""A format that calls are forced into is read by the parser of its name."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.unit.parsing.cuts import calls, parsed
from vllm_mxext.parsing.registry import TOOL_PARSERS
from vllm_mxext.parsing.tool_format import ToolFormat

CALLS: list[tuple[str, Any]] = [("get_weather", {"city": 'a "b"', "days": 2}), ("get_time", {})]
_ENTRIES = [pytest.param(entry, id=entry.name) for entry in TOOL_PARSERS if entry.format is not None]


def written(form: ToolFormat, wanted: list[tuple[str, Any]]) -> str:
    texts = [
        form.begin(name)
        + (f"{number}" if form.has_number else "")
        + form.before_arguments
        + json.dumps(value)
        + form.end
        for number, (name, value) in enumerate(wanted)
    ]
    return form.opening + form.separator.join(texts) + form.closing


@pytest.mark.parametrize("entry", _ENTRIES)
@pytest.mark.parametrize("number", [1, 2])
def test_calls_written_by_the_format_are_read_back(entry: Any, number: int) -> None:
    text = written(entry.format, CALLS[:number])
    assert text.startswith(entry.format.trigger)
    message = parsed([text], entry.name)
    assert calls(message) == CALLS[:number]
    assert message.content == ""
