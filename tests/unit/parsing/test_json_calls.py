"""Calls that are JSON come out whole, whatever the cuts."""

from __future__ import annotations

from tests.unit.parsing.cuts import calls, every_cut, parsed

TWO_CALLS = (
    "<think>\nBoth.\n</think>\n\nOne moment.\n"
    '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Köln \\"Süd\\"", "limits": {"a": [1, null]}}}\n'
    '</tool_call>\n<tool_call>\n{"name": "get_time", "arguments": {}}\n</tool_call>'
)


def test_reasoning_content_and_calls_come_out_alike_whatever_the_cuts() -> None:
    for pieces in every_cut(TWO_CALLS):
        message = parsed(pieces, "hermes", "qwen3")
        assert message.reasoning == "Both."
        assert message.content == "One moment."
        assert calls(message) == [
            ("get_weather", {"city": 'Köln "Süd"', "limits": {"a": [1, None]}}),
            ("get_time", {}),
        ]
