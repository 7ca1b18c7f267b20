"""Parsers come from a file, and a broken file is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from vllm_mxext.errors import ConfigError
from vllm_mxext.parsing.chain import parse
from vllm_mxext.parsing.events import ParserContext
from vllm_mxext.parsing.plugins import load_plugin

pytestmark = pytest.mark.promise("PARSE-4")

PLUGIN = """
from vllm_mxext.parsing.json_calls import JsonCallFormat, JsonCallParser
from vllm_mxext.parsing.registry import ToolParserEntry


class MyParser(JsonCallParser):
    format = JsonCallFormat(("<call>",), ("</call>",))


TOOL_PARSERS = [ToolParserEntry("mine", MyParser, aliases=("ours",))]
"""


def test_a_file_adds_parsers_to_those_that_ship(tmp_path: Path) -> None:
    file = tmp_path / "plugin.py"
    file.write_text(PLUGIN, encoding="utf-8")
    registry = load_plugin(file)
    assert registry.tool_parser("hermes").name == "hermes"
    parser = registry.output_parser("ours", None, ParserContext())
    message = parse(parser, '<call>{"name": "f", "arguments": {}}</call>')
    assert [(call.name, call.arguments) for call in message.calls] == [("f", "{}")]


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("1 / 0", "fails with ZeroDivisionError: division by zero"),
        ("def", "fails with SyntaxError"),
        ("x = 1", "adds no parser"),
        ("TOOL_PARSERS = [int]", "TOOL_PARSERS in .* must be a list of ToolParserEntry"),
        ("REASONING_PARSERS = 5", "REASONING_PARSERS in .* must be a list of ReasoningParserEntry"),
    ],
)
def test_a_broken_file_is_refused_with_the_reason(source: str, sentence: str, tmp_path: Path) -> None:
    file = tmp_path / "plugin.py"
    file.write_text(source, encoding="utf-8")
    with pytest.raises(ConfigError, match=sentence):
        load_plugin(file)


def test_without_a_file_there_are_the_parsers_that_ship() -> None:
    assert load_plugin(None).tool_parser("qwen").name == "hermes"
