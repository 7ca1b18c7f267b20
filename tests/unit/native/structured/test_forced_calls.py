"""Constraints on tool calls, in every format: what they let through is what the format's parser reads."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from tests.unit.native.structured.conftest import Fits
from tests.unit.parsing.written_calls import written
from vllm_mxext.constraint_params import StructuredOutputsParams
from vllm_mxext.engine.backends.fake_tokenizer import FakeTokenizer
from vllm_mxext.errors import InvalidRequestError
from vllm_mxext.native.structured.compilation import compile_grammar
from vllm_mxext.native.structured.grammar import grammar_text
from vllm_mxext.native.structured.vocabulary import make_vocabulary
from vllm_mxext.parsing.chain import parse
from vllm_mxext.parsing.events import ParserContext
from vllm_mxext.parsing.harmony import HarmonyParser
from vllm_mxext.parsing.reasoning import DEEPSEEK_R1, THINK
from vllm_mxext.parsing.registry import TOOL_PARSERS, ToolParserEntry
from vllm_mxext.parsing.tool_format import HARMONY, PYTHONIC, ToolFormat
from vllm_mxext.server.openai.forced_calls import forced_calls, strict_calls
from vllm_mxext.server.openai.reasoned_output import after_reasoning
from vllm_mxext.server.openai.tool_protocol import Tool

pytestmark = pytest.mark.promise("TOOL-4")

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
STRICT = Tool.model_validate({"function": {"name": "weather", "parameters": SCHEMA, "strict": True}})
LOOSE = Tool.model_validate({"function": {"name": "clock", "parameters": SCHEMA}})
TOOLS = [STRICT, LOOSE]
CONTEXT = ParserContext({tool.function.name: {"name": tool.function.name, "parameters": SCHEMA} for tool in TOOLS})
FORCIBLE = [entry for entry in TOOL_PARSERS if entry.format is not None]
TRIGGERED = [entry for entry in FORCIBLE if entry.format and entry.format.trigger and not entry.format.answer]
BARE = [entry for entry in FORCIBLE if entry.format and entry.format.bare]


def form_of(entry: ToolParserEntry) -> ToolFormat:
    assert entry.format is not None
    return entry.format


def tag(params: StructuredOutputsParams | None) -> Any:
    assert params is not None
    return params.structural_tag


WEATHER, CLOCK = ("weather", {"city": "Bern"}), ("clock", {"city": "Genf"})


@pytest.mark.parametrize("entry", FORCIBLE, ids=lambda entry: entry.name)
def test_forced_calls_fit_their_schemas_and_are_read_back(fits: Fits, entry: ToolParserEntry) -> None:
    form = form_of(entry)
    both = written(form, [WEATHER, CLOCK])
    constraint = tag(forced_calls(TOOLS, form, None))

    assert fits(both, structural_tag=constraint)
    unfit = [("nothing", {}), ("weather", {"town": "Bern"}), ("weather", {"city": "Bern", "town": "Bern"})]
    for wrong in ("", "hello", *(written(form, [call]) for call in unfit)):
        assert not fits(wrong, structural_tag=constraint), wrong
    read = parse(entry.create(CONTEXT), both)
    assert [(call.name, json.loads(call.arguments)) for call in read.calls] == [WEATHER, CLOCK]


def test_an_argument_that_is_required_but_not_described_can_be_written(fits: Fits) -> None:
    schema = SCHEMA | {"required": ["city", "day"]}
    tool = Tool.model_validate({"function": {"name": "weather", "parameters": schema}})
    form = form_of(next(entry for entry in FORCIBLE if entry.name == "hermes"))
    constraint = tag(forced_calls([tool], form, None))

    assert fits(written(form, [("weather", {"city": "Bern", "day": 3})]), structural_tag=constraint)
    assert not fits(written(form, [WEATHER]), structural_tag=constraint)


@pytest.mark.parametrize("broken", [{"required": [{}]}, {"required": 3}, {"properties": []}])
def test_a_malformed_schema_is_passed_on_to_the_check_of_schemas(broken: dict[str, Any]) -> None:
    tool = Tool.model_validate({"function": {"name": "weather", "parameters": SCHEMA | broken}})
    constraint = tag(forced_calls([tool], form_of(FORCIBLE[0]), None))

    (call,) = json.loads(constraint)["format"]["elements"][0]["tags"]
    assert call["content"]["json_schema"] == SCHEMA | broken


@pytest.mark.parametrize("entry", FORCIBLE, ids=lambda entry: entry.name)
def test_one_forced_call_is_one(fits: Fits, entry: ToolParserEntry) -> None:
    form = form_of(entry)
    constraint = tag(forced_calls([STRICT], form, 1))

    assert fits(written(form, [WEATHER]), structural_tag=constraint)
    assert not fits(written(form, [WEATHER, WEATHER]), structural_tag=constraint)
    assert not fits(written(form, [CLOCK]), structural_tag=constraint)


@pytest.mark.parametrize("entry", TRIGGERED, ids=lambda entry: entry.name)
def test_calls_by_choice_fit_the_schemas_of_strict_tools(fits: Fits, entry: ToolParserEntry) -> None:
    form = form_of(entry)
    constraint = tag(strict_calls(TOOLS, form))

    for text in ("hello", f"So: {written(form, [WEATHER])}", written(form, [("clock", {"anything": 1})])):
        assert fits(text, structural_tag=constraint), text
    for wrong in (written(form, [("weather", {"town": "Bern"})]), written(form, [("nothing", {})])):
        assert not fits(wrong, structural_tag=constraint), wrong


@pytest.mark.parametrize("entry", BARE, ids=lambda entry: entry.name)
def test_an_answer_does_not_begin_like_a_call_where_calls_have_no_marker(fits: Fits, entry: ToolParserEntry) -> None:
    form = form_of(entry)
    constraint = tag(strict_calls(TOOLS, form))

    for text in ("", "hello [{", written(form, [WEATHER]), written(form, [("clock", {"anything": 1})])):
        assert fits(text, structural_tag=constraint), text
    begins = [f"so {begin}" for begin in form.other_begins]
    for wrong in (*form.bare, f" \n{form.bare[0]}", *begins, written(form, [("weather", {"town": "Bern"})])):
        assert not fits(wrong, structural_tag=constraint), wrong


def test_an_answer_without_reasoning_does_not_begin_like_some_where_calls_have_no_marker(fits: Fits) -> None:
    form = form_of(next(entry for entry in BARE if entry.name == "json"))
    constraint = after_reasoning(strict_calls(TOOLS, form, THINK), THINK, "").structural_tag
    call, wrong = written(form, [WEATHER]), written(form, [("weather", {"town": "Bern"})])

    assert [
        text for text in ("hi", call, f"<think>hm</think>{call}") if not fits(text, structural_tag=constraint)
    ] == []
    assert not fits(f"<think>hm</think>{wrong}", structural_tag=constraint)


def test_a_name_that_python_does_not_know_cannot_be_called_in_python() -> None:
    tool = Tool.model_validate({"function": {"name": "get-time"}})
    with pytest.raises(InvalidRequestError, match="get-time"):
        forced_calls([tool], PYTHONIC, None)


THOUGHTS = (
    "<|channel|>analysis<|message|>Which city? 1 < 2.<|end|><|start|>assistant"
    "<|channel|>commentary<|message|>I look.<|end|><|start|>assistant"
)
HELLO = "<|channel|>final<|message|>Hello {you}!"


class HarmonyTokenizer(FakeTokenizer):
    """Bytes and the marks of gpt-oss, of which two end outputs."""

    SPECIALS = (
        "<s>", "</s>", "<|channel|>", "<|message|>", "<|start|>", "<|end|>", "<|constrain|>", "<|call|>", "<|return|>"
    )  # fmt: skip
    SIZE = FakeTokenizer.FIRST_SPECIAL + len(SPECIALS)
    ENDS = (FakeTokenizer.EOS, 256 + SPECIALS.index("<|call|>"), 256 + SPECIALS.index("<|return|>"))


def whole_in_harmony(text: str, constraint: Any) -> bool:
    """Whether the tokens of gpt-oss let a text through and may end behind it, and each of them when it came."""
    tokenizer = HarmonyTokenizer()
    vocabulary = make_vocabulary(tokenizer, tokenizer.SIZE, tokenizer.ENDS)
    params = StructuredOutputsParams(structural_tag=constraint)
    matcher = compile_grammar(grammar_text(params, vocabulary.special_tokens, tokenizer.ENDS), vocabulary)
    for token_id in tokenizer.encode(text, add_special_tokens=False):
        allowed = np.unpackbits(matcher.mask().view(np.uint8), bitorder="little")
        if not allowed[token_id]:
            return False
        if token_id in tokenizer.ENDS:
            return True
        matcher.accept([token_id])
    return False


def test_gpt_oss_may_think_then_answer_or_call_and_its_calls_fit_their_schemas(fits: Fits) -> None:
    constraint = tag(strict_calls(TOOLS, HARMONY))
    call = written(HARMONY, [WEATHER])
    for text in (HELLO, call, THOUGHTS + HELLO, THOUGHTS + call, THOUGHTS + written(HARMONY, [("clock", {"any": 1})])):
        assert fits(text, structural_tag=constraint), text
        end = "" if text.endswith("<|call|>") else "<|return|>"
        assert whole_in_harmony(text + end, constraint), text
        read = parse(HarmonyParser(CONTEXT), text)
        assert bool(read.calls) == text.endswith("<|call|>")
        assert bool(read.reasoning) == text.startswith(THOUGHTS)
    for wrong in (
        THOUGHTS,
        "hello",
        written(HARMONY, [("nothing", {})]),
        written(HARMONY, [("weather", {"city": 1})]),
        THOUGHTS + written(HARMONY, [("weather", {})]),
        call.replace("commentary", "analysis").replace('"Bern"', "1"),
        ' to=functions.weather<|channel|>commentary json<|message|>{"city": 1}<|call|>',
    ):
        assert not fits(wrong, structural_tag=constraint), wrong
        assert not whole_in_harmony(f"{wrong}<|return|>", constraint), wrong


def test_gpt_oss_may_think_before_a_call_that_it_must_make(fits: Fits) -> None:
    constraint = tag(forced_calls(TOOLS, HARMONY, 1))
    assert whole_in_harmony(THOUGHTS + written(HARMONY, [WEATHER]), constraint)
    assert not fits(THOUGHTS + HELLO, structural_tag=constraint)
    assert not whole_in_harmony(f"{THOUGHTS + HELLO}<|return|>", constraint)


INTEGER = StructuredOutputsParams(json={"type": "integer"})


@pytest.mark.parametrize(
    ("reasoning", "prompt", "accepted", "rejected"),
    [
        (THINK, "", ["<think>h\nm</think>\n\n12", "12"], ["<think>hm</think>", "hm</think>12", "hm"]),
        (THINK, "<think>\n", ["hm</think>12"], ["12", "hm"]),
        (THINK, "<think></think>", ["12"], ["hm</think>12"]),
        (DEEPSEEK_R1, "", ["hm</think>12", "<think>hm</think>12"], ["12"]),
    ],
    ids=["may think", "thinks already", "has thought", "always thinks"],
)
def test_an_answer_has_its_form_and_the_reasoning_before_it_is_free(
    fits: Fits, reasoning: Any, prompt: str, accepted: list[str], rejected: list[str]
) -> None:
    changed = after_reasoning(INTEGER, reasoning, prompt)
    asked = {changed.constraint: getattr(changed, changed.constraint)}

    assert [text for text in accepted if not fits(text, **asked)] == []
    assert [text for text in rejected if fits(text, **asked)] == []


@pytest.mark.parametrize(
    ("constraint", "answer"),
    [
        ({"json": '{"type": "integer"}'}, "12"),
        ({"json_object": True}, "{}"),
        ({"regex": "a+/b"}, "aa/b"),
        ({"choice": ("yes", "no")}, "no"),
        ({"structural_tag": {"format": {"type": "const_string", "value": "x"}}}, "x"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_every_constraint_but_a_grammar_holds_behind_reasoning(
    fits: Fits, constraint: dict[str, Any], answer: str
) -> None:
    changed = after_reasoning(StructuredOutputsParams(**constraint), THINK, "<think>")

    assert fits(f"hm</think>\n{answer}", structural_tag=changed.structural_tag)
    assert not fits(f"hm</think>{answer}!", structural_tag=changed.structural_tag)


@pytest.mark.parametrize("depth", [100, 900, 100_000])
def test_json_that_is_too_deep_is_left_to_the_check_that_refuses_it(depth: int) -> None:
    text = "[" * depth + "]" * depth
    for constraint in (StructuredOutputsParams(json=text), StructuredOutputsParams(structural_tag=text)):
        with pytest.raises(InvalidRequestError, match="nested more than 64 levels"):
            grammar_text(after_reasoning(constraint, THINK, "<think>"), {})


def test_a_grammar_stays_as_it_is() -> None:
    grammar = StructuredOutputsParams(grammar='start: "x"')
    assert after_reasoning(grammar, THINK, "<think>") is grammar
