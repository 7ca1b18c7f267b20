"""Every kind of constraint becomes a grammar that says the same, or is refused with the reason."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.native.structured.conftest import Fits
from vllm_mxext.constraint_params import MAX_CONSTRAINT_CHARS, StructuredOutputsParams
from vllm_mxext.errors import GenerationError, InvalidRequestError
from vllm_mxext.native.structured.grammar import grammar_text

pytestmark = pytest.mark.promise("STRUCT-1")

CAT = {"type": "object", "properties": {"kind": {"const": "cat"}, "n": {"type": "integer"}}, "required": ["kind", "n"]}
DOG = {"type": "object", "properties": {"kind": {"const": "dog"}}, "required": ["kind"]}


@pytest.mark.parametrize(
    ("constraint", "fitting", "other"),
    [
        ({"json": {"type": "object", "required": ["a"]}}, '{"a": 1}', '{"b": 1}'),
        ({"json": '{"type": "integer"}'}, "12", '"12"'),
        ({"json": {}}, "[null]", "[null"),
        ({"json_object": True}, '{ "a":\n[1] }', "[1]"),
        ({"regex": r"[a-c]{2}/\d+"}, "ab/12", "ab/"),
        ({"choice": ["yes", "yes, please", 'é"\n\x7f']}, 'é"\n\x7f', "yes,"),
        ({"grammar": 'start: "a" NUMBER\nNUMBER: /[0-9]+/'}, "a12", "a"),
        ({"grammar": 'root ::= "a" [0-9]+ x-y\nx-y ::= "\\u0041" | "\\u00e9"'}, "a12é", "a12"),
        ({"grammar": 'start: "<" %json {"type": "integer"} ">"'}, "<12>", "<x>"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_constraint_lets_what_fits_through_and_nothing_else(
    fits: Fits, constraint: dict[str, Any], fitting: str, other: str
) -> None:
    assert fits(fitting, **constraint)
    assert not fits(other, **constraint)


@pytest.mark.parametrize(
    ("options", "accepted", "rejected"),
    [
        ({}, '{"a" : 1}', '{"a":' + " " * 65 + "1}"),
        ({"disable_any_whitespace": True}, '{"a":1}', '{"a": 1}'),
        ({"whitespace_pattern": "[ ]?"}, '{"a": 1}', '{"a":  1}'),
        ({"disable_additional_properties": True}, '{"a":1}', '{"a":1,"b":2}'),
    ],
    ids=lambda value: str(value)[:40],
)
def test_options_of_json(fits: Fits, options: dict[str, Any], accepted: str, rejected: str) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    assert fits(accepted, json=schema, **options)
    assert not fits(rejected, json=schema, **options)


def test_one_of_over_references_is_understood(fits: Fits) -> None:
    schema = {"$defs": {"c": CAT, "d": DOG}, "oneOf": [{"$ref": "#/$defs/c"}, {"$ref": "#/$defs/d"}]}
    assert fits('{"kind":"cat","n":1}', json=schema)
    assert fits('{"kind":"dog"}', json=schema)
    assert not fits('{"kind":"cow"}', json=schema)


def test_one_of_that_contains_itself_ends(fits: Fits) -> None:
    tree = {"type": "object", "properties": {"left": {"oneOf": [{"$ref": "#/$defs/t"}, {"type": "null"}]}}}
    assert fits('{"left":{"left":null}}', json={"$defs": {"t": tree}, "$ref": "#/$defs/t"})


@pytest.mark.parametrize(
    ("constraint", "reason"),
    [
        ({"json": {"not": {}}}, "'not' at # is not supported"),
        ({"json": {"properties": {"a": {"uniqueItems": True}}}}, "'uniqueItems' at #/properties/a"),
        ({"json": {"minLenght": 1}}, "'minLenght' at # is unknown"),
        ({"json": {"exclusiveMinimum": True}}, "'exclusiveMinimum' at # must be a number"),
        ({"json": {"prefixItems": [{}], "additionalItems": False}}, "'additionalItems'"),
        ({"json": {"x-guidance": {"lenient": True}}}, "x-guidance"),
        ({"json": '{"a'}, "not valid JSON"),
        ({"json": "[" * 100 + "]" * 100}, "nested more than 64"),
        ({"json": "3"}, "must be an object"),
        ({"grammar": 'start: %json {"x-guidance": {"lenient": true}, "not": {}}'}, "x-guidance"),
        ({"grammar": "root ::= a"}, "GBNF: Rule 'a' not found"),
        ({"grammar": 'start: a\na[max_tokens=3]: "x"'}, "'max_tokens'"),
        ({"grammar": "start: " + "(" * 300 + '"a"' + ")" * 300}, "nested more than 200"),
        ({"grammar": "\n".join(f'r{i}: "a"' for i in range(2_001))}, "more than 2000 rules"),
        ({"regex": "a\ud800"}, "surrogate"),
        ({"choice": ["a\0"]}, "NUL"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_cannot_be_enforced_is_refused_with_the_reason(constraint: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        grammar_text(StructuredOutputsParams(**constraint), {})
    assert reason in str(caught.value)


def test_an_object_may_have_a_thousand_optional_properties(fits: Fits) -> None:
    properties = {f"p{i}": {"type": "string", "pattern": "^a*$"} for i in range(1_000)}
    assert fits('{"p3":"aa","p999":""}', json={"type": "object", "properties": properties})


@pytest.mark.timeout(60)  # an expression that backtracked took minutes, and the event loop waited
def test_one_endless_word_for_a_grammar_takes_no_time() -> None:
    assert "a" * 1000 in grammar_text(StructuredOutputsParams(grammar="a" * MAX_CONSTRAINT_CHARS), {})


@pytest.mark.parametrize(
    ("constraint", "reason"),
    [
        ({"regex": "(ab"}, "unclosed group"),
        ({"regex": "(?=a)a"}, "look-around"),
        ({"json": {"type": "text"}}, "Invalid type: text"),
        ({"json": {"format": "iri"}}, "Unknown format: iri"),
        ({"json": {"$ref": "https://a.b/c"}}, "not present in a registry"),
        ({"grammar": "start: foo"}, 'unknown name: "foo"'),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_does_not_compile_says_why_on_one_line(matcher: Any, constraint: dict[str, Any], reason: str) -> None:
    with pytest.raises(GenerationError) as caught:
        matcher(**constraint)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "fields",
    [
        {}, {"json": {}, "regex": "a"}, {"json_object": False}, {"regex": ""}, {"regex": 3}, {"choice": []},
        {"choice": [1]}, {"json": 3}, {"json_object": 1}, {"regex": "a", "whitespace_pattern": " "},
        {"json": {}, "disable_any_whitespace": True, "whitespace_pattern": " "}, {"json": {"a": {1, 2}}},
        {"json": {}, "disable_any_whitespace": 1}, {"regex": "a" * (MAX_CONSTRAINT_CHARS + 1)},
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_parameters_that_make_no_sense_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError, match="structured_outputs"):
        StructuredOutputsParams(**fields)
