"""Reasoning is told from the answer, whatever the cuts and whatever the template has written."""

# ruff: noqa: E501 - one example a line

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.parsing.cuts import TOOLS, calls, every_cut, parsed
from vllm_mxext.parsing.events import ParserContext
from vllm_mxext.parsing.registry import reasoning_parser_names


@dataclass(frozen=True)
class Example:
    """A text, the end of its prompt, and the message that it stands for."""

    parser: str
    text: str
    content: str = ""
    reasoning: str = ""
    prompt_end: str = "<|im_start|>assistant\n"


EXAMPLES = (
    Example("qwen3", "<think>\nHm, 1 < 2.\n</think>\n\nYes.\n", "Yes.\n", "Hm, 1 < 2."),
    Example("qwen3", "Just the answer.", "Just the answer."),
    Example("qwen3", " \n<thinking> is a word", " \n<thinking> is a word"),
    Example("qwen3", "It says <think>no</think>.", "It says <think>no</think>."),
    Example("qwen3", "<think>cut off </thi", "", "cut off </thi"),
    Example("qwen3", "Hm.\n</think>\n\nYes.", "Yes.", "Hm.", "<|im_start|>assistant\n<think>\n"),
    Example("qwen3", "<think> \n", "<think> \n", "", "<|im_start|>assistant\n<think>\n\n</think>\n\n"),
    Example("qwen3", "Yes.", "Yes.", "", "<|im_start|>user\nWhat is <think>?<|im_end|>\n<|im_start|>assistant\n"),
    Example("generic", "more.</think>Yes.", "Yes.", "more.", "<|im_start|>assistant\n<think>\nSo far, "),
    Example("generic", "<think></think>", "", ""),
    Example("deepseek_r1", "Hm.\n</think>\nYes.", "Yes.", "Hm."),
    Example("deepseek_r1", "<think>Hm.</think>Yes.", "Yes.", "Hm."),
    Example("deepseek_r1", "all of it", "", "all of it"),
    Example("deepseek_r1", "Yes.", "Yes.", "", "<｜Assistant｜></think>"),
    Example("glm45", "\n<think>Hm.</think>\nYes.", "Yes.", "Hm.", "<|assistant|>"),
    Example("granite", "Here's my thought process: Hm. Here is my response: Yes.", "Yes.", "Hm."),
    Example("granite", "Here is my thought process: Here is my thought.", "", "Here is my thought."),
    Example("granite", "<think>Hm.</think><response>Yes.</response>", "Yes.", "Hm."),
    Example("granite", "Here is my answer: 4", "Here is my answer: 4"),
    Example("mistral", "[THINK]Hm.[/THINK]Yes.", "Yes.", "Hm."),
    Example("mistral", "[THIN", "[THIN"),
    Example("gemma4", "<|channel>thought\nHm.\n<channel|>Yes.", "Yes.", "Hm."),
    Example("gemma4", "<|channel>Hm.<channel|>\nYes.", "Yes.", "Hm."),
    Example("gemma4", "Yes.", "Yes.", "", "<|turn>model\n<|channel>thought\n<channel|>"),
    Example("kimi_k2", "Hm.</think>Yes.", "Yes.", "Hm."),
    Example("kimi_k2", "Hm.<|tool_calls_section_begin|>x", "<|tool_calls_section_begin|>x", "Hm."),
    Example("hunyuan", "<think>\nHm.\n</think>\n<answer>\nYes.\n</answer>", "Yes.", "Hm."),
    Example("hunyuan", "<think>\n\n</think>\n<answer>\nYes. </answ", "Yes. </answ", ""),
    Example("minimax_m2", "Hm.\n</think>\n\nYes.", "Yes.", "Hm.", "]~b]ai\n<think>\n"),
    Example("openai_gptoss", "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Yes.", "Yes.", "Hm."),
    Example("openai_gptoss", "m.<|end|><|start|>assistant<|channel|>final<|message|>Yes.", "Yes.", "m.", "<|start|>assistant<|channel|>analysis<|message|>H"),
    Example("openai_gptoss", "Yes.", "Yes."),
)  # fmt: skip
_NAMED = [pytest.param(example, id=f"{example.parser}-{index}") for index, example in enumerate(EXAMPLES)]


@pytest.mark.parametrize("example", _NAMED)
@pytest.mark.promise("PARSE-1", "PARSE-2", "PAIN-5")
def test_pain_5_reasoning_never_leaks_into_the_answer_wherever_the_text_is_cut(example: Example) -> None:
    context = ParserContext(TOOLS, example.prompt_end)
    for pieces in ([example.text], *every_cut(example.text)):
        message = parsed(pieces, None, example.parser, context)
        assert (message.reasoning, message.content) == (example.reasoning, example.content), pieces


def test_every_reasoning_parser_has_an_example() -> None:
    assert {example.parser for example in EXAMPLES} == set(reasoning_parser_names())


@pytest.mark.parametrize("parser", reasoning_parser_names())
@pytest.mark.promise("PARSE-2", "PARSE-3")
def test_markers_in_any_order_do_no_harm(parser: str) -> None:
    markers = st.sampled_from([
        "<think>", "</think>", "[THINK]", "[/THINK]", "Here is my thought process:", "Here's my response:", "<answer>",
        "</answer>", "<response>", "</response>", "<|tool_calls_section_begin|>", "<|channel|>", "<|message|>", "Here",
        "analysis", "<|end|>",
    ])  # fmt: skip

    @settings(max_examples=100, deadline=None)
    @given(
        st.lists(markers | st.text(" \n<>/[]ab", max_size=4), max_size=12), st.sampled_from(["", "<think>", "</think>"])
    )
    def check(parts: list[str], prompt_end: str) -> None:
        context = ParserContext(TOOLS, prompt_end)
        text = "".join(parts)
        whole = parsed([text], None, parser, context)
        assert parsed(list(text), None, parser, context) == whole
        assert parsed(parts, None, parser, context) == whole

    check()


CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "x"}}\n</tool_call>'


@pytest.mark.promise("PARSE-1", "PARSE-2")
def test_a_tool_call_inside_the_reasoning_is_reasoning_and_one_behind_it_is_a_call() -> None:
    text = f"<think>\nI could write {CALL}.\n</think>\n\nI look.\n{CALL}"
    for pieces in ([text], *every_cut(text)):
        message = parsed(pieces, "hermes", "qwen3")
        assert message.reasoning == f"I could write {CALL}."
        assert message.content == "I look."
        assert calls(message) == [("get_weather", {"city": "x"})]


def test_reasoning_straight_before_a_call_leaves_no_content() -> None:
    message = parsed([f"<think>\nHm.\n</think>\n\n{CALL}\n"], "hermes", "qwen3")
    assert (message.reasoning, message.content, len(message.calls)) == ("Hm.", "", 1)


def test_kimi_goes_over_to_calls_without_closing_its_reasoning() -> None:
    text = (
        "Hm.<|tool_calls_section_begin|><|tool_call_begin|>functions.get_time:0<|tool_call_argument_begin|>{}"
        "<|tool_call_end|><|tool_calls_section_end|>"
    )
    message = parsed([text], "kimi_k2", "kimi_k2")
    assert (message.reasoning, message.content, calls(message)) == ("Hm.", "", [("get_time", {})])


def test_harmony_needs_no_reasoning_parser_and_bears_one() -> None:
    text = (
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary to=functions.get_time "
        "<|constrain|>json<|message|>{}<|call|>"
    )
    for reasoning in (None, "openai_gptoss"):
        message = parsed([text], "openai", reasoning)
        assert (message.reasoning, message.content, calls(message)) == ("Hm.", "", [("get_time", {})])
