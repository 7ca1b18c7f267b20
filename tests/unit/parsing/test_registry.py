"""Parsers are found by name, and unknown names are refused."""

from __future__ import annotations

import pytest

from vllm_mxext.errors import ConfigError
from vllm_mxext.parsing.registry import ParserRegistry, reasoning_parser_names, tool_parser_names


def test_every_name_in_the_help_is_a_parser() -> None:
    registry = ParserRegistry()
    assert [registry.tool_parser(name).name for name in tool_parser_names()] == list(tool_parser_names())
    names = reasoning_parser_names()
    assert [registry.reasoning_parser(name).name for name in names] == list(names)


@pytest.mark.parametrize(("alias", "name"), [("qwen", "hermes"), ("qwen25", "hermes"), ("generic", "json")])
def test_an_alias_names_the_same_parser(alias: str, name: str) -> None:
    assert ParserRegistry().tool_parser(alias).name == name


def test_an_unknown_name_is_refused_with_the_likely_one() -> None:
    with pytest.raises(ConfigError, match="no tool parser 'hermse' for --tool-call-parser; did you mean hermes"):
        ParserRegistry().tool_parser("hermse")
    with pytest.raises(ConfigError, match=r"there are .*deepseek_r1"):
        ParserRegistry().reasoning_parser("?")
