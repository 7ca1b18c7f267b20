"""Structural tags of both forms, as xgrammar defines them."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.native.structured.conftest import Fits
from vllm_mxext.constraint_params import StructuredOutputsParams
from vllm_mxext.errors import InvalidRequestError
from vllm_mxext.native.structured.grammar import grammar_text

pytestmark = pytest.mark.promise("STRUCT-1")

INTEGER = {"type": "json_schema", "json_schema": {"type": "integer"}}
BOOLEAN = {"type": "json_schema", "json_schema": {"type": "boolean"}}
TAGS = [
    {"begin": "<f=a>", "content": INTEGER, "end": "</f>"},
    {"begin": "<f=b>", "content": BOOLEAN, "end": "</f>"},
]


def text(value: str) -> dict[str, Any]:
    return {"type": "const_string", "value": value}


def triggered(**values: Any) -> dict[str, Any]:
    return {"type": "triggered_tags", "triggers": ["<f="], "tags": TAGS, **values}


def separated(**values: Any) -> dict[str, Any]:
    return {"type": "tags_with_separator", "separator": ", ", "tags": TAGS, **values}


THOUGHT = {"type": "tag", "begin": "", "content": {"type": "any_text"}, "end": "</think>"}


@pytest.mark.parametrize(
    ("form", "accepted", "rejected"),
    [
        (triggered(), ["", "hi", "hi <f=a>1</f> and <f=b>true</f>."], ["<f=", "<f=c>", "<f=a>true</f>"]),
        (triggered(at_least_one=True), ["hi <f=a>1</f> yes"], ["", "hi"]),
        (triggered(stop_after_first=True), ["hi", "hi <f=a>1</f>"], ["hi <f=a>1</f> yes"]),
        (triggered(at_least_one=True, stop_after_first=True), ["<f=a>1</f>"], ["hi", "<f=a>1</f>."]),
        (separated(), ["", "<f=a>1</f>", "<f=a>1</f>, <f=b>true</f>"], ["x", "<f=a>1</f>, "]),
        (separated(at_least_one=True, stop_after_first=True), ["<f=b>true</f>"], ["", "<f=a>1</f>, <f=a>1</f>"]),
        (
            {"type": "sequence", "elements": [THOUGHT, {"type": "regex", "pattern": "[ \\n]*"}, separated()]},
            ["hm</think>", "h<m</think> \n<f=a>1</f>"],
            ["hm", "hm</think>x"],
        ),
        ({"type": "or", "elements": [text("a/b"), INTEGER]}, ["a/b", "12"], ["a", "a/b12"]),
        ({"type": "sequence", "elements": [text("a"), {"type": "any_text"}]}, ["a", "abc"], ["b"]),
        ({"type": "any_text", "excludes": ["<b>", "/"]}, ["", "<b", "b>"], ["a<b>", "/"]),
        ({"type": "any_text", "excluded_beginnings": ["["]}, ["", "a["], ["[", " \n[a"]),
        ({"type": "tag", "begin": "<a>", "content": {"type": "any_text", "excludes": ["b"]}, "end": "</a>"},
            ["<a>c</a>"], ["<a>b</a>"]),
        (triggered(excludes=["<g="]), ["hi", "<g<f=a>1</f>"], ["<g=", "<g=<f=a>1</f>", "<f=a>1</f><g="]),
        (triggered(triggers=["<|user|>"], tags=[{"begin": "<|user|>x", "content": INTEGER, "end": "!"}]),
            ["hi <|user|>x1!", "a<|system|>b<|user|>x1!"], ["<|user|>1"]),
    ],
    ids=lambda value: str(value)[:60],
)  # fmt: skip
def test_a_format_lets_what_it_describes_through(
    fits: Fits, form: dict[str, Any], accepted: list[str], rejected: list[str]
) -> None:
    tag = {"type": "structural_tag", "format": form}
    assert [one for one in accepted if not fits(one, structural_tag=tag)] == []
    assert [one for one in rejected if fits(one, structural_tag=tag)] == []


def test_the_old_form_is_the_new_one_with_triggers(fits: Fits) -> None:
    old = {
        "triggers": ["<f="],
        "structures": [{"begin": "<f=a>", "schema": {"type": "integer"}, "end": "</f>"}],
    }
    assert fits("so <f=a> 1</f>", structural_tag=old) is False
    assert fits("so <f=a>1</f>", structural_tag=old)


@pytest.mark.parametrize(
    ("tag", "reason"),
    [
        ({}, "must have `format`"),
        ({"format": {"type": "poem"}}, "'poem'"),
        ({"format": triggered(triggers=["<g="])}, "begins with none of its triggers"),
        ({"format": {"type": "any_text", "excludes": [""]}}, "excludes to be a list of texts"),
        ({"format": {"type": "any_text", "max_length": 3}}, "max_length, which is not supported"),
        ({"format": {"type": "json_schema", "json_schema": {}, "style": ["x"]}}, "the style ['x']"),
        ({"format": triggered(at_least_one="yes")}, "at_least_one to be true or false"),
        ({"format": {"type": "sequence", "elements": [{"type": "any_text"}, text("a")]}}, "before something else"),
        ({"format": {"type": "sequence", "elements": []}}, "elements"),
        ({"format": {"type": "json_schema", "json_schema": {"not": {}}}}, "'not'"),
        ({"triggers": ["a"], "structures": [{"begin": "a", "end": "b"}]}, "without schema"),
        ("[1]", "must be a JSON object"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_a_malformed_tag_is_refused_with_the_reason(tag: Any, reason: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        grammar_text(StructuredOutputsParams(structural_tag=tag), {})
    assert reason in str(caught.value)
