"""Which tools are called: where the model chooses, must, or is told which; what that asks of the output."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.api.refusals import CHAT, refused
from tests.api.talking import (
    CALL,
    CLOCK,
    HELLO,
    NO_REASONING,
    SCHEMA,
    WEATHER,
    constraint_of,
    joined,
    shown_tools,
)
from vllm_mxext.config.server import ParserConfig

pytestmark = pytest.mark.promise("TOOL-1", "PAIN-21")

STRICT = {"type": "function", "function": {**WEATHER["function"], "strict": True}}
CLOSED = SCHEMA | {"additionalProperties": False}
"""Arguments that the schema does not name are ruled out."""


async def test_with_tool_choice_none_the_text_is_left_alone_and_tools_are_shown(talk):
    server = await talk(CALL)

    answer = await server.openai().chat.completions.create(
        model="fake-model", messages=HELLO, tools=[WEATHER], tool_choice="none"
    )

    assert answer.choices[0].message.content == CALL
    assert answer.choices[0].message.tool_calls is None
    assert "weather" in shown_tools(server)


async def test_tools_that_must_not_be_called_can_be_kept_from_the_model(talk):
    server = await talk("x", ParserConfig(hides_unused_tools=True))

    await server.openai().chat.completions.create(
        model="fake-model", messages=HELLO, tools=[WEATHER], tool_choice="none"
    )

    assert shown_tools(server) == ""


async def test_choosing_tools_needs_the_flag(talk):
    server = await talk("x", ParserConfig(tool_parser="hermes"))

    error = await refused(server, "/v1/chat/completions", CHAT | {"tools": [WEATHER]})

    assert error["param"] == "tool_choice"
    assert "--enable-auto-tool-choice" in error["message"]


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_a_named_function_is_called_and_ends_with_stop(talk, is_streamed):
    server = await talk(CALL, NO_REASONING)
    client = server.openai()
    request: Any = {
        "model": "fake-model",
        "messages": HELLO,
        "tools": [CLOCK, WEATHER],
        "tool_choice": {"type": "function", "function": {"name": "weather"}},
    }
    if is_streamed:
        made = await joined(await client.chat.completions.create(**request, stream=True))
        name, arguments, finish = *made["calls"][0][1:], made["finish"]
    else:
        choice = (await client.chat.completions.create(**request)).choices[0]
        [call] = choice.message.tool_calls
        name, arguments, finish = call.function.name, call.function.arguments, choice.finish_reason

    assert (name, json.loads(arguments), finish) == ("weather", {"city": "Zürich"}, "stop")
    constraint = constraint_of(server)
    assert [tag["begin"] for tag in constraint["elements"][0]["tags"]] == [
        '<tool_call>\n{"name": "weather", "arguments": '
    ]
    assert constraint["elements"][0]["tags"][0]["content"]["json_schema"] == CLOSED
    assert constraint["elements"][0]["stop_after_first"] is True


async def test_a_required_call_is_one_of_the_tools(talk):
    server = await talk(CALL, NO_REASONING)

    answer = await server.openai().chat.completions.create(
        model="fake-model", messages=HELLO, tools=[CLOCK, WEATHER], tool_choice="required"
    )

    assert answer.choices[0].finish_reason == "tool_calls"
    calls = constraint_of(server)["elements"][0]
    assert [json.loads(tag["begin"].partition("\n")[2] + "{}}")["name"] for tag in calls["tags"]] == [
        "clock",
        "weather",
    ]
    assert (calls["at_least_one"], calls["stop_after_first"]) == (True, False)


@pytest.mark.promise("TOOL-3")
@pytest.mark.parametrize(
    ("opening", "begins"),
    [("", ["<think>"]), ("<think>\n", [""]), ("<think></think>", None)],
    ids=["none", "open", "closed"],
)
async def test_a_forced_call_leaves_the_reasoning_before_it_free(talk, opening, begins):
    server = await talk(f"<think>hm</think>{CALL}", trust_request_chat_template=True)
    template = "{{ messages[0].content }}" + opening

    body = CHAT | {"tools": [WEATHER], "tool_choice": "required", "chat_template": template}
    response = await server.http.post("/v1/chat/completions", json=body)

    assert response.status_code == 200, response.text
    constraint = constraint_of(server)
    if begins is None:
        assert constraint["type"] == "sequence"
        assert constraint["elements"][0]["type"] == "tags_with_separator"
        return
    reasoned = constraint["elements"][0] if constraint["type"] == "or" else constraint
    assert [reasoned["elements"][0]["begin"]] == begins
    assert reasoned["elements"][0]["end"] == "</think>"
    assert reasoned["elements"][-1]["elements"][0]["type"] == "tags_with_separator"


async def test_a_call_can_be_required_without_any_parser(talk):
    server = await talk('[{"name": "weather", "arguments": {"city": "Bern"}}]', ParserConfig())

    answer = await server.openai().chat.completions.create(
        model="fake-model", messages=HELLO, tools=[WEATHER], tool_choice="required"
    )

    [call] = answer.choices[0].message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {"city": "Bern"})
    elements = constraint_of(server)["elements"]
    assert (elements[0]["value"], elements[2]["value"]) == ("[", "]")


async def test_a_choice_can_be_limited_to_some_tools(talk):
    server = await talk(CALL, NO_REASONING)
    allowed = {"mode": "required", "tools": [{"type": "function", "function": {"name": "weather"}}]}

    await server.openai().chat.completions.create(
        model="fake-model",
        messages=HELLO,
        tools=[CLOCK, WEATHER],
        tool_choice={"type": "allowed_tools", "allowed_tools": allowed},
    )

    assert len(constraint_of(server)["elements"][0]["tags"]) == 1
    assert "clock" not in shown_tools(server)


async def test_only_strict_tools_are_held_to_their_schema_where_the_model_chooses(talk):
    server = await talk(CALL, NO_REASONING)

    await server.openai().chat.completions.create(model="fake-model", messages=HELLO, tools=[CLOCK, STRICT])
    constraint = constraint_of(server)
    await server.openai().chat.completions.create(model="fake-model", messages=HELLO, tools=[CLOCK, WEATHER])

    assert (constraint["type"], constraint["triggers"]) == ("triggered_tags", ["<tool_call>"])
    assert [tag["content"]["json_schema"] for tag in constraint["tags"]] == [{"type": "object"}, CLOSED]
    assert server.engine.requests[-1].params.structured_outputs is None


QWEN3_CODER = ParserConfig(may_choose_tools=True, tool_parser="qwen3_coder")
TAGGED_CALL = "<tool_call>\n<function=weather>\n<parameter=city>\nBern\n</parameter>\n</function>\n</tool_call>"


@pytest.mark.promise("TOOL-4")
@pytest.mark.parametrize("choice", ["auto", "required"])
async def test_a_format_of_tags_is_constrained_in_its_own_form(talk, choice):
    server = await talk(TAGGED_CALL, QWEN3_CODER)

    answer = await server.openai().chat.completions.create(
        model="fake-model", messages=HELLO, tools=[STRICT], tool_choice=choice
    )

    [call] = answer.choices[0].message.tool_calls
    assert json.loads(call.function.arguments) == {"city": "Bern"}
    constraint = constraint_of(server)
    tags = constraint["tags"] if choice == "auto" else constraint["elements"][0]["tags"]
    assert tags[0]["content"]["style"] == "qwen_xml"


@pytest.mark.promise("TOOL-4")
async def test_a_plug_in_that_does_not_say_how_calls_are_written_cannot_hold_them_to_schemas(talk, tmp_path):
    plugin = tmp_path / "mine.py"
    plugin.write_text(
        "from vllm_mxext.parsing.json_calls import HermesParser\n"
        "from vllm_mxext.parsing.registry import ToolParserEntry\n"
        "TOOL_PARSERS = [ToolParserEntry('mine', HermesParser)]\n"
    )
    config = ParserConfig(may_choose_tools=True, tool_parser="mine", plugin=plugin)
    server = await talk(CALL, config)

    error = await refused(server, "/v1/chat/completions", CHAT | {"tools": [STRICT]})

    assert error["param"] == "tools"
    assert "mine" in error["message"]


HARMONY = ParserConfig(may_choose_tools=True, tool_parser="openai", reasoning_parser="openai_gptoss")
OPEN_MESSAGE = {
    "chat_template": "<|start|>assistant<|channel|>final<|message|>{{ messages[-1].content }}",
    "messages": [*HELLO, {"role": "assistant", "content": "It is"}],
    "continue_final_message": True,
    "add_generation_prompt": False,
}


@pytest.mark.promise("TOOL-4")
@pytest.mark.parametrize(
    "fields", [{"tools": [STRICT]}, {"tools": [WEATHER], "tool_choice": "required"}], ids=["strict", "required"]
)
async def test_an_open_message_of_gpt_oss_is_not_continued_beside_constrained_tools(talk, fields):
    server = await talk(" warm.", HARMONY, trust_request_chat_template=True)

    error = await refused(server, "/v1/chat/completions", CHAT | OPEN_MESSAGE | fields)
    loose = await server.http.post("/v1/chat/completions", json=CHAT | OPEN_MESSAGE | {"tools": [WEATHER]})

    assert error["param"] == "continue_final_message"
    assert loose.json()["choices"][0]["message"]["content"] == " warm."


async def test_choices_that_ask_for_nothing_need_no_tools(server):
    for fields in ({"tool_choice": "none"}, {"tool_choice": "auto"}, {"parallel_tool_calls": True}, {"tools": None}):
        response = await server.http.post("/v1/chat/completions", json=CHAT | fields)
        assert response.status_code == 200, response.text
