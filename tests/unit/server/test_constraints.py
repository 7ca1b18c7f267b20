"""Every spelling of a constraint in a request body."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from vllm_mxext.constraint_params import GuidedDecodingParams, StructuredOutputsParams
from vllm_mxext.errors import InvalidRequestError
from vllm_mxext.sampling_params import SamplingParams
from vllm_mxext.server.openai.constraints import read_constraint, refuse_unknown_constraints
from vllm_mxext.server.openai.protocol import CompletionRequest

pytestmark = pytest.mark.promise("STRUCT-5")

SCHEMA = {"type": "object"}
NAMED = {"type": "json_schema", "json_schema": {"name": "a-b_1", "schema": SCHEMA, "strict": True}}
TAG = {"structures": [], "triggers": []}


def read(**body: Any) -> StructuredOutputsParams | None:
    refuse_unknown_constraints(body)
    return read_constraint(CompletionRequest.model_validate({"prompt": "x", **body}))


@pytest.mark.promise("PAIN-22")
@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"response_format": {"type": "json_object"}}, {"json_object": True}),
        ({"response_format": NAMED}, {"json": SCHEMA}),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}}, {"json": SCHEMA}),
        ({"response_format": {"type": "json_object", "schema": {}}}, {"json": {}}),
        ({"response_format": {"type": "structural_tag", **TAG}}, {"structural_tag": TAG}),
        ({"structured_outputs": {"choice": ["a"], "regex": None}}, {"choice": ("a",)}),
        ({"structured_outputs": {"json": {}, "disable_any_whitespace": True}},
            {"json": {}, "disable_any_whitespace": True}),
        ({"guided_json": {}}, {"json": {}}),
        ({"guided_json": "{}", "guided_whitespace_pattern": " ?"}, {"json": "{}", "whitespace_pattern": " ?"}),
        ({"guided_regex": "a+", "guided_decoding_backend": "auto"}, {"regex": "a+"}),
        ({"guided_choice": ["a", "b"]}, {"choice": ("a", "b")}),
        ({"guided_grammar": 'root ::= "a"'}, {"grammar": 'root ::= "a"'}),
        ({"guided_json_object": True, "response_format": {"type": "text"}}, {"json_object": True}),
        ({"grammar": 'root ::= "a"'}, {"grammar": 'root ::= "a"'}),
        ({"json_schema": SCHEMA}, {"json": SCHEMA}),
    ],
    ids=lambda value: str(value)[:50],
)  # fmt: skip
def test_pain_22_every_spelling_is_honoured(body: dict[str, Any], expected: dict[str, Any]) -> None:
    assert read(**body) == StructuredOutputsParams(**expected)


@pytest.mark.parametrize(
    "body",
    [
        {}, {"response_format": {"type": "text"}}, {"structured_outputs": {"json": None}}, {"structured_outputs": {}},
        {"guided_json_object": False}, {"grammar": ""}, {"guided_json": None}, {"guided_decoding_backend": "guidance"},
    ],
    ids=str,
)  # fmt: skip
def test_what_asks_for_nothing_is_no_constraint(body: dict[str, Any]) -> None:
    assert read(**body) is None


@pytest.mark.promise("PAIN-22")
@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"guided_yaml": "a"}, "guided_yaml"),
        ({"structured_output": {"json": {}}}, "structured_output"),
        ({"response_format_schema": {}}, "response_format_schema"),
        ({"grammar_lazy": True}, "grammar_lazy"),
        ({"response_format": "json"}, "response_format"),
        ({"response_format": {}}, "response_format.type"),
        ({"response_format": {"type": "yaml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format.json_schema.name"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "a b"}}},
            "response_format.json_schema.name"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "a", "strict": 1}}},
            "response_format.json_schema.strict"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "a", "strict": True}}},
            "response_format.json_schema.schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": []}}},
            "response_format.json_schema.schema"),
        ({"structured_outputs": []}, "structured_outputs"),
        ({"structured_outputs": {"yaml": 1}}, "structured_outputs"),
        ({"structured_outputs": {"json": {}, "regex": "a"}}, "structured_outputs"),
        ({"guided_choice": []}, "guided_choice"),
        ({"guided_decoding_backend": "outlines", "guided_regex": "a"}, "guided_decoding_backend"),
        ({"guided_whitespace_pattern": " "}, "guided_whitespace_pattern"),
        ({"guided_regex": "a", "response_format": {"type": "json_object"}}, "guided_regex"),
    ],
    ids=lambda value: str(value)[:60],
)  # fmt: skip
def test_pain_22_what_cannot_be_meant_is_refused_by_name(body: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        read(**body)
    assert caught.value.param == param


def test_guided_decoding_is_structured_outputs() -> None:
    params = SamplingParams(guided_decoding=GuidedDecodingParams(choice=("a", "b"), backend="guidance"))
    assert params.structured_outputs == StructuredOutputsParams(choice=("a", "b"))
    assert params.clone(n=2).structured_outputs == params.structured_outputs
    with pytest.raises(InvalidRequestError, match="backend"):
        GuidedDecodingParams(json={}, backend="outlines")


@pytest.mark.parametrize("constraint", [{"json": {"a": [1, None]}}, {"choice": ("a", "b")}, {"structural_tag": "{}"}])
def test_constraints_survive_a_message(constraint: dict[str, Any]) -> None:
    params = SamplingParams(structured_outputs=StructuredOutputsParams(**constraint))
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(params), type=SamplingParams) == params
