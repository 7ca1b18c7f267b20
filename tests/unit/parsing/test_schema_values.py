"""Bare text becomes JSON of the type that the function's schema asks for."""

from __future__ import annotations

import json
from typing import Any

import pytest

from vllm_mxext.parsing.events import ParserContext
from vllm_mxext.parsing.schema_values import parameter_types, to_json

PROPERTIES: dict[str, Any] = {
    "text": {"type": "string"},
    "whole": {"type": "integer"},
    "real": {"type": "number"},
    "flag": {"type": "boolean"},
    "map": {"type": "object"},
    "list": {"type": "array"},
    "nothing": {"type": "null"},
    "maybe": {"type": ["string", "null"]},
    "either": {"anyOf": [{"type": "integer"}, {"type": "string"}]},
    "chosen": {"enum": [1, 2]},
    "named": {"$ref": "#/$defs/Size"},
    "endless": {"$ref": "#/$defs/Loop"},
    "broken": 7,
}
SCHEMA = {
    "type": "object",
    "properties": PROPERTIES,
    "$defs": {"Size": {"type": "integer"}, "Loop": {"$ref": "#/$defs/Loop"}},
}
CONTEXT = ParserContext({"f": {"name": "f", "parameters": SCHEMA}})


@pytest.mark.parametrize(
    ("parameter", "text", "value"),
    [
        ("text", "7", "7"),
        ("text", "null", "null"),
        ("text", ' "x" \\ \n é', ' "x" \\ \n é'),
        ("whole", " -007 ", -7),
        ("whole", "5.0", 5),
        ("whole", "5.5", "5.5"),
        ("whole", "none", None),
        ("real", "1e3", 1000.0),
        ("real", ".5", 0.5),
        ("real", "nan", "nan"),
        ("flag", "TRUE", True),
        ("flag", "yes", "yes"),
        ("map", '{"a": [1, {}]}', {"a": [1, {}]}),
        ("map", "{'a': True, 1: None}", {"a": True, "1": None}),
        ("map", "{broken", "{broken"),
        ("list", "[1, 'x',]", [1, "x"]),
        ("nothing", "None", None),
        ("maybe", "null", None),
        ("maybe", "x", "x"),
        ("either", "12", 12),
        ("either", "x", "x"),
        ("chosen", "2", 2),
        ("named", "3", 3),
        ("endless", "3", "3"),
        ("broken", "3", "3"),
        ("unknown", "3", "3"),
    ],
)
@pytest.mark.promise("PARSE-1")
def test_a_value_is_of_its_parameter_s_type(parameter: str, text: str, value: Any) -> None:
    assert json.loads(to_json(text, parameter_types(CONTEXT, "f", parameter))) == value


@pytest.mark.parametrize(
    ("text", "value"), [("3", 3), ("[1, 'a']", [1, "a"]), ("True", True), ("two words", "two words")]
)
def test_a_value_of_unknown_type_is_guessed_where_the_format_says_so(text: str, value: Any) -> None:
    assert json.loads(to_json(text, frozenset(), guesses=True)) == value


@pytest.mark.parametrize(
    "tools", [{}, {"f": {}}, {"f": {"parameters": None}}, {"f": {"parameters": {"properties": 1}}}]
)
@pytest.mark.promise("PARSE-3")
def test_functions_without_a_schema_do_no_harm(tools: dict[str, Any]) -> None:
    assert parameter_types(ParserContext(tools), "f", "x") == frozenset()


@pytest.mark.promise("PARSE-3")
def test_values_that_nest_without_end_stay_text() -> None:
    text = "[" * 100_000
    assert json.loads(to_json(text, frozenset({"array"}))) == text
