"""Arguments that are no JSON object: what each style lets through, and which schemas it refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.unit.native.structured.conftest import Fits
from vllm_mxext.errors import InvalidRequestError
from vllm_mxext.native.structured.call_arguments import STYLES
from vllm_mxext.native.structured.matcher import GrammarMatcher

pytestmark = pytest.mark.promise("TOOL-4")

STRING, NUMBER, NULL = {"type": "string"}, {"type": "number"}, {"type": "null"}


def form(style: str, schema: Any) -> dict[str, Any]:
    return {"format": {"type": "json_schema", "json_schema": schema, "style": style}}


def with_x(schema: Any, **more: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {"x": schema}, "required": ["x"], **more}


def qwen(*pairs: tuple[str, str]) -> str:
    return "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in pairs)


@pytest.mark.parametrize(
    ("schema", "accepted", "rejected"),
    [
        (STRING, ["", "a\n\nb", "1", '"', "\n"], ["</parameter>", "a <parameter=y> b"]),
        ({"type": "string", "minLength": 2, "maxLength": 3}, ["ab", "äöü"], ["a", "abcd"]),
        ({"type": "string", "pattern": "^a/\\d$"}, ["a/1"], ["a/", "xa/1", "a/1x"]),
        ({"type": "string", "pattern": "b|\\$"}, ["abc", "$"], ["x"]),
        ({"type": "string", "pattern": "b[^\\d|]|c"}, ["abx", "c"], ["b1", "b|"]),
        ({"type": "string", "pattern": "^(a|b)\\$"}, ["b$c"], ["c$"]),
        ({"type": "string", "format": "date"}, ["2024-12-31"], ["2024-02-30", "today"]),
        ({"type": "string", "format": "date-time"}, ["2024-12-31T23:59:59Z"], ["2024-12-31"]),
        ({"type": "string", "format": "email"}, ["a.b+c@d-e.org"], ["a@", "@b.org"]),
        ({"enum": ["a", "</parameter>", "b"]}, ["a", "b"], ["</parameter>", "c"]),
        ({"type": ["string", "null"], "enum": ["null", "x", None]}, ["null", "x"], ["None", "y"]),
        ({"anyOf": [{"type": "string", "maxLength": 3}, NUMBER]}, ["abc", "12.5e3"], ["abcd"]),
        ({"anyOf": [STRING, {"type": "integer", "minimum": 3}]}, ["abc", "3"], ["2"]),
        ({"anyOf": [{"type": "string", "pattern": "^a"}, {"type": "object"}]}, ["a{", '{"b": 1}'], ["{b", "b"]),
        ({"allOf": [{"$ref": "#/$defs/y"}], "default": "a"}, ["a"], ["c"]),
        ({"anyOf": [{"const": "a"}, {"const": 1}], "x-order": 2}, ["a", "1"], ["b"]),
        ({"const": 12}, ["12"], ["13"]),
        ({"type": "boolean"}, ["true"], ["True"]),
        ({"oneOf": [STRING, NULL]}, ["abc", "null"], []),
        ({}, ["anything", "12"], ["</parameter>"]),
        (True, ["anything"], []),
        ({"type": "array", "prefixItems": [NUMBER], "items": False}, ["[1]", "[ 1 ]"], ["[1, 2]", "1"]),
    ],
    ids=lambda value: str(value)[:60],
)  # fmt: skip
def test_bare_values_fit_their_schema(fits: Fits, schema: Any, accepted: list[str], rejected: list[str]) -> None:
    constraint = form("qwen_xml", with_x(schema, **{"$defs": {"y": {"enum": ["a", "b"]}}}))

    assert [one for one in accepted if not fits(qwen(("x", one)), structural_tag=constraint)] == []
    assert [one for one in rejected if fits(qwen(("x", one)), structural_tag=constraint)] == []


@pytest.mark.parametrize(
    ("style", "accepted", "rejected"),
    [
        ("qwen_xml", [qwen(("b", "1")), qwen(("a", "x"), ("b", "1"))], ["", qwen(("b", "1"), ("d", "1"))]),
        ("python", ["b=1", 'a="x", b=1, c=None', "b=1, c=True"], ["", "c=True", "b=1,", 'a="x"', "b=1, d=1"]),
        ("gemma", ["{b:1}", "{a:<escape>x<escape>,b:1,c:null}"], ["{}", "{b:1,}", "{c:true}", "{a:x,b:1}"]),
        ("gemma4", ['{a:<|"|>x<|"|>,b:1}'], ["{}", '{a:"x",b:1}']),
        ("glm_xml", ["<arg_key>b</arg_key>\n<arg_value>1</arg_value>\n"], [""]),
        ("minimax_xml", ['<parameter name="b">1</parameter>\n'], [""]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_what_is_required_is_there_and_nothing_unknown_is(
    fits: Fits, style: str, accepted: list[str], rejected: list[str]
) -> None:
    properties = {"a": STRING, "b": {"type": "integer"}, "c": {"type": ["boolean", "null"]}}
    constraint = form(style, {"type": "object", "properties": properties, "required": ["b"]})

    assert [text for text in accepted if not fits(text, structural_tag=constraint)] == []
    assert [text for text in rejected if fits(text, structural_tag=constraint)] == []


def test_gemma_writes_objects_and_arrays_in_its_own_notation(fits: Fits) -> None:
    items = {"type": "array", "items": with_x({"type": "array", "items": STRING, "minItems": 1}), "maxItems": 2}
    constraint = form(
        "gemma", {"type": "object", "properties": {"list": items, "any": {}, "no": {"maxItems": 0, "type": "array"}}}
    )
    one = "{x:[<escape>a,b<escape>]}"

    for text in ("{}", "{list:[]}", f"{{list:[{one},{one}],no:[]}}", "{any:{a:[1,{b:<escape>c<escape>}]}}"):
        assert fits(text, structural_tag=constraint), text
    for wrong in ("{list:[{x:[]}]}", f"{{list:[{one},{one},{one}]}}", '{list:[{"x":["a"]}]}', "{no:[1]}"):
        assert not fits(wrong, structural_tag=constraint), wrong


@pytest.mark.parametrize("style", STYLES)
def test_a_schema_that_names_nothing_takes_any_arguments(fits: Fits, style: str) -> None:
    anything, nothing = form(style, {"type": "object"}), form(style, {"type": "object", "additionalProperties": False})
    samples = {
        "qwen_xml": qwen(("any", "x")),
        "minimax_xml": '<parameter name="any">x</parameter>\n',
        "glm_xml": "<arg_key>any</arg_key>\n<arg_value>x</arg_value>\n",
        "python": 'any=[1, "x"], more=2',
        "gemma": "{any:[1,<escape>x<escape>],more:2}",
        "gemma4": '{any:[1,<|"|>x<|"|>],more:2}',
    }
    empty = "{}" if style.startswith("gemma") else ""

    assert fits(samples[style], structural_tag=anything)
    assert fits(empty, structural_tag=anything)
    assert fits(empty, structural_tag=nothing)
    assert not fits(samples[style], structural_tag=nothing)


RECURSIVE = {
    "type": "object",
    "properties": {"x": {"$ref": "#/$defs/y"}},
    "$defs": {"y": with_x({"$ref": "#/$defs/y"})},
}


@pytest.mark.parametrize(
    ("style", "schema", "reason"),
    [
        ("qwen_xml", with_x(STRING, minProperties=2), "'minProperties'"),
        ("qwen_xml", {"type": "object", "additionalProperties": STRING}, "'additionalProperties'"),
        ("qwen_xml", {"type": "object", "properties": {"a<b": STRING}}, "the parameter name 'a<b'"),
        ("python", {"type": "object", "properties": {"a-b": STRING}}, "the parameter name 'a-b'"),
        ("qwen_xml", with_x({"oneOf": [STRING, {"type": "string", "maxLength": 2}]}), "the schema of 'x'"),
        ("qwen_xml", with_x({"$ref": "#"}), "the schema of 'x'"),
        ("qwen_xml", with_x({"minimum": 2}), "the schema of 'x'"),
        ("qwen_xml", with_x({"enum": ["</parameter>"]}), "no value can be written"),
        ("gemma", with_x({"enum": ["<escape>"]}), "no value can be written"),
        ("gemma", with_x({"enum": [[1], [2]]}), "lists objects or arrays"),
        ("gemma", with_x({"type": "array", "prefixItems": [NUMBER]}), "'prefixItems'"),
        ("gemma", RECURSIVE, "the schema of 'x'"),
        ("qwen_xml", with_x({"type": "string", "format": "regex"}), "the format 'regex'; use pattern"),
        ("qwen_xml", with_x({"type": "string", "pattern": "^a|b$"}), "put brackets around"),
        ("qwen_xml", with_x({"type": "string", "not": {"const": "a"}}), "'not'"),
        ("qwen_xml", with_x({"type": "string", "pattern": "a(?=b)"}), "look-around"),
        ("toml", with_x(STRING), "the style 'toml'"),
    ],
    ids=lambda value: str(value)[:50],
)  # fmt: skip
def test_what_a_style_cannot_enforce_is_refused_with_the_reason(
    matcher: Callable[..., GrammarMatcher], style: str, schema: Any, reason: str
) -> None:
    with pytest.raises(Exception, match="(?s)" + reason.replace("(", "\\(")) as caught:
        matcher(structural_tag=form(style, schema))
    assert isinstance(caught.value, InvalidRequestError) or "look-around" in reason
