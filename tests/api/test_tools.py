"""Tools in chat completions, through the official `openai` package with strict validation."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from pydantic import BaseModel

from tests.api.refusals import CHAT, refused
from tests.api.talking import (
    CALL,
    CLOCK,
    HELLO,
    NO_REASONING,
    TWO_CALLS,
    WEATHER,
    joined,
)
from vllm_mxext.config.server import ServerConfig
from vllm_mxext.engine.backends.fake_tokenizer import FakeTokenizer

pytestmark = pytest.mark.promise("TOOL-1", "PAIN-21")


async def test_the_model_may_call_several_tools(talk):
    server = await talk(TWO_CALLS)

    answer = await server.openai().chat.completions.create(model="fake-model", messages=HELLO, tools=[WEATHER, CLOCK])

    [choice] = answer.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content.strip() == "Let me see."
    calls = choice.message.tool_calls
    assert [(call.type, call.function.name) for call in calls] == [("function", "weather"), ("function", "clock")]
    assert [json.loads(call.function.arguments) for call in calls] == [{"city": "Zürich"}, {}]
    assert all(call.id.startswith("chatcmpl-tool-") for call in calls)
    assert calls[0].id != calls[1].id


@pytest.mark.promise("TOOL-2", "PAIN-4")
async def test_pain_4_a_stream_of_calls_joins_to_the_whole_answer(talk):
    server = await talk(TWO_CALLS)
    client = server.openai()
    request: Any = {"model": "fake-model", "messages": HELLO, "tools": [WEATHER, CLOCK]}

    whole = (await client.chat.completions.create(**request)).choices[0]
    made = await joined(await client.chat.completions.create(**request, stream=True))

    assert made["content"] == whole.message.content
    assert [tuple(call[1:]) for call in made["calls"].values()] == [
        (call.function.name, call.function.arguments) for call in whole.message.tool_calls
    ]
    assert list(made["calls"]) == [0, 1]
    assert made["finish"] == "tool_calls"


async def test_without_parallel_calls_only_the_first_is_passed_on(talk):
    server = await talk(TWO_CALLS)
    request: Any = {"model": "fake-model", "messages": HELLO, "tools": [WEATHER, CLOCK], "parallel_tool_calls": False}

    answer = await server.openai().chat.completions.create(**request)
    made = await joined(await server.openai().chat.completions.create(**request, stream=True))

    assert [call.function.name for call in answer.choices[0].message.tool_calls] == ["weather"]
    assert [call[1] for call in made["calls"].values()] == ["weather"]


async def test_an_answer_without_a_call_is_plain_text(talk):
    server = await talk("It is 5 < 6.")

    answer = await server.openai().chat.completions.create(model="fake-model", messages=HELLO, tools=[WEATHER])

    [choice] = answer.choices
    assert (choice.finish_reason, choice.message.content, choice.message.tool_calls) == ("stop", "It is 5 < 6.", None)


async def test_a_call_that_is_cut_off_ends_with_length(talk):
    server = await talk(CALL)

    answer = await server.openai().chat.completions.create(
        model="fake-model", messages=HELLO, tools=[WEATHER], max_tokens=50
    )

    assert answer.choices[0].finish_reason == "length"


async def test_log_probabilities_and_token_ids_stay_whole_while_text_is_held_back(talk):
    server = await talk(CALL)
    request: Any = {"model": "fake-model", "messages": HELLO, "tools": [WEATHER], "logprobs": True}
    stream = await server.openai().chat.completions.create(
        **request, stream=True, extra_body={"return_token_ids": True}
    )

    ids, num_logprobs = [], 0
    async for chunk in stream:
        extra = chunk.choices[0].model_extra or {}
        ids += extra.get("token_ids") or []
        num_logprobs += len(chunk.choices[0].logprobs.content) if chunk.choices[0].logprobs else 0

    assert ids == [*CALL.encode(), FakeTokenizer.EOS]
    assert num_logprobs == len(ids)


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_functions_of_old_are_answered_in_their_own_form(talk, is_streamed):
    server = await talk(TWO_CALLS, NO_REASONING)
    client = server.openai()
    request: Any = {
        "model": "fake-model",
        "messages": HELLO,
        "functions": [WEATHER["function"]],
        "function_call": "auto",
    }
    if is_streamed:
        name, arguments, finish = "", "", None
        async for chunk in await client.chat.completions.create(**request, stream=True):
            [choice] = chunk.choices
            assert choice.delta.tool_calls is None
            if choice.delta.function_call:
                name += choice.delta.function_call.name or ""
                arguments += choice.delta.function_call.arguments or ""
            finish = choice.finish_reason or finish
    else:
        choice = (await client.chat.completions.create(**request)).choices[0]
        call, finish = choice.message.function_call, choice.finish_reason
        assert choice.message.tool_calls is None
        name, arguments = call.name, call.arguments

    assert (name, json.loads(arguments), finish) == ("weather", {"city": "Zürich"}, "function_call")


async def test_calls_and_results_of_old_become_those_of_today(serve):
    server = await serve(config=ServerConfig(trust_request_chat_template=True))
    messages = [
        {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": '{"a": 1}'}},
        {"role": "function", "name": "f", "content": "2"},
    ]
    template = "{{ messages[0].tool_calls[0].function.arguments.a }}{{ messages[1].role }}{{ messages[1].name }}"

    await server.http.post("/v1/chat/completions", json={"messages": messages, "chat_template": template})

    assert server.engine.requests[0].prompt.text == "1toolf"


def function(**fields: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", **fields}}


@pytest.mark.parametrize(
    ("fields", "param", "text"),
    [
        ({"tools": []}, "tools", "at least 1"),
        ({"tools": [function(name="a b")]}, "tools[0].function.name", "pattern"),
        ({"tools": [function(name="")]}, "tools[0].function.name", "pattern"),
        ({"tools": [function(name="x" * 129)]}, "tools[0].function.name", "pattern"),
        ({"tools": [function(), function()]}, None, "several functions called f"),
        ({"tools": [function(parameters={"type": "array"})]}, None, "object"),
        ({"tools": [function(parameters="{}")]}, "tools[0].function.parameters", "dictionary"),
        ({"tools": [{"type": "retrieval"}]}, "tools[0].type", "function"),
        ({"tools": [{"type": "function"}]}, "tools[0].function", "required"),
        ({"tools": [function()], "tool_choice": "any"}, "tool_choice", "required"),
        (
            {"tools": [function()], "tool_choice": {"type": "function", "function": {"name": "g"}}},
            None,
            "g is not among",
        ),
        ({"tool_choice": "required"}, None, "needs tools"),
        ({"function_call": {"name": "f"}}, None, "needs functions"),
        ({"functions": [{"name": "f"}], "tools": [function()]}, None, "one of them"),
        ({"functions": []}, "functions", "at least 1"),
        ({"reasoning_effort": "enormous"}, "reasoning_effort", "high"),
    ],
)
@pytest.mark.asyncio(loop_scope="module")
async def test_malformed_tools_are_refused(shared_server, fields, param, text):
    error = await refused(shared_server, "/v1/chat/completions", CHAT | fields)

    assert text in error["message"]
    assert error["param"] == param


async def test_the_package_parses_calls_into_arguments(talk):
    server = await talk(CALL, NO_REASONING)
    tool = openai.pydantic_function_tool(_Weather, name="weather")

    answer = await server.openai().chat.completions.parse(model="fake-model", messages=HELLO, tools=[tool])
    async with server.openai().chat.completions.stream(model="fake-model", messages=HELLO, tools=[tool]) as stream:
        events = [event async for event in stream]
        final = await stream.get_final_completion()

    for completion in (answer, final):
        [call] = completion.choices[0].message.tool_calls
        assert call.function.parsed_arguments == _Weather(city="Zürich")
    assert "tool_calls.function.arguments.done" in {event.type for event in events}


class _Weather(BaseModel):
    city: str
