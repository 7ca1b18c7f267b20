"""Tools and reasoning in chat completions, through the official `openai` package with strict validation."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import openai
import pytest
from pydantic import BaseModel

from tests.api.refusals import CHAT, refused
from tests.template_conformance import source_of
from vllm_mxext.config.server import ParserConfig, ServerConfig
from vllm_mxext.engine.backends.fake import FakeEngineClient
from vllm_mxext.engine.backends.fake_tokenizer import FakeTokenizer
from vllm_mxext.server.parsers import choose_parsers

pytestmark = pytest.mark.promise("TOOL-1", "PAIN-21")

HELLO: list[Any] = [{"role": "user", "content": "hello"}]
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER: dict[str, Any] = {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}
CLOCK: dict[str, Any] = {"type": "function", "function": {"name": "clock", "description": "tells the time"}}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Zürich"}}\n</tool_call>'
TWO_CALLS = f'Let me see.\n{CALL}\n<tool_call>\n{{"name": "clock", "arguments": {{}}}}\n</tool_call>'
PARSERS = ParserConfig(may_choose_tools=True, tool_parser="hermes", reasoning_parser="qwen3")


def saying(text: str) -> Callable[..., Sequence[int]]:
    return lambda *_: [*text.encode(), FakeTokenizer.EOS]


@pytest.fixture
def talk(serve):
    """`await talk(text, parsers)`: a server whose model says `text`."""

    async def start(text: str, parsers: ParserConfig = PARSERS, **config: Any) -> Any:
        engine = FakeEngineClient(saying(text), max_model_len=8192)
        return await serve(engine, ServerConfig(parsers=parsers, **config))

    return start


async def joined(stream: Any) -> dict[str, Any]:
    """What a stream's deltas make together."""
    made: dict[str, Any] = {"content": "", "reasoning": "", "calls": {}, "finish": None, "chunks": 0}
    async for chunk in stream:
        made["chunks"] += 1
        for choice in chunk.choices:
            delta = choice.delta
            made["content"] += delta.content or ""
            extra = delta.model_extra or {}
            assert extra.get("reasoning") == extra.get("reasoning_content")
            made["reasoning"] += extra.get("reasoning") or ""
            for call in delta.tool_calls or ():
                if call.id is not None:
                    assert call.index not in made["calls"]
                    assert call.type == "function"
                    made["calls"][call.index] = [call.id, call.function.name, call.function.arguments]
                else:
                    assert call.function.name is None
                    made["calls"][call.index][2] += call.function.arguments
            made["finish"] = choice.finish_reason or made["finish"]
    return made


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


async def test_with_tool_choice_none_the_text_is_left_alone_and_tools_are_shown(talk):
    server = await talk(CALL)

    answer = await server.openai().chat.completions.create(
        model="fake-model", messages=HELLO, tools=[WEATHER], tool_choice="none"
    )

    assert answer.choices[0].message.content == CALL
    assert answer.choices[0].message.tool_calls is None
    assert "weather" in shown_tools(server)


def shown_tools(server: Any) -> str:
    """What the template wrote of the tools in the last prompt."""
    return server.engine.requests[-1].prompt.text.partition("<|user|>")[0]


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
    assert constraint["elements"][0]["tags"][0]["content"]["json_schema"] == SCHEMA
    assert constraint["elements"][0]["stop_after_first"] is True


def constraint_of(server: Any) -> dict[str, Any]:
    """The form that the last request's output must have."""
    params = server.engine.requests[-1].params.structured_outputs
    return json.loads(params.structural_tag)["format"]


NO_REASONING = ParserConfig(may_choose_tools=True, tool_parser="hermes")


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
    strict = {"type": "function", "function": {**WEATHER["function"], "strict": True}}

    await server.openai().chat.completions.create(model="fake-model", messages=HELLO, tools=[CLOCK, strict])
    constraint = constraint_of(server)
    await server.openai().chat.completions.create(model="fake-model", messages=HELLO, tools=[CLOCK, WEATHER])

    assert (constraint["type"], constraint["triggers"]) == ("triggered_tags", ["<tool_call>"])
    assert [tag["content"]["json_schema"] for tag in constraint["tags"]] == [{"type": "object"}, SCHEMA]
    assert server.engine.requests[-1].params.structured_outputs is None


@pytest.mark.promise("TOOL-3", "PAIN-5")
@pytest.mark.parametrize("is_streamed", [False, True])
async def test_pain_5_reasoning_comes_under_both_names_and_is_counted(talk, is_streamed):
    server = await talk(f"<think>\nWell: {CALL}?\n</think>\n\nYes.")
    client = server.openai()
    request: Any = {"model": "fake-model", "messages": HELLO, "tools": [WEATHER]}
    if is_streamed:
        stream = await client.chat.completions.create(**request, stream=True, stream_options={"include_usage": True})
        chunks = [chunk async for chunk in stream]
        usage = chunks[-1].usage

        async def again() -> Any:
            for chunk in chunks:
                yield chunk

        made = await joined(again())
        content, reasoning, finish = made["content"], made["reasoning"], made["finish"]
    else:
        answer = await client.chat.completions.create(**request)
        usage, message = answer.usage, answer.choices[0].message
        assert message.reasoning == message.reasoning_content
        content, reasoning, finish = message.content, message.reasoning, answer.choices[0].finish_reason

    assert (content, reasoning, finish) == ("Yes.", f"Well: {CALL}?", "stop")
    assert usage.completion_tokens_details.reasoning_tokens == len(reasoning.encode())


@pytest.mark.promise("TOOL-3")
async def test_reasoning_can_be_left_out(talk):
    server = await talk("<think>secret</think>Yes.")
    request: Any = {"model": "fake-model", "messages": HELLO, "extra_body": {"include_reasoning": False}}

    answer = await server.openai().chat.completions.create(**request)
    made = await joined(await server.openai().chat.completions.create(**request, stream=True))

    assert "secret" not in answer.model_dump_json()
    assert answer.usage.completion_tokens_details.reasoning_tokens == len("secret")
    assert (made["content"], made["reasoning"]) == ("Yes.", "")


@pytest.mark.promise("TOOL-3")
@pytest.mark.parametrize("field", ["reasoning", "reasoning_content"])
async def test_reasoning_of_the_past_is_given_to_the_template_under_every_name(serve, field):
    server = await serve(config=ServerConfig(trust_request_chat_template=True))
    template = "{% for m in messages %}{{ m.reasoning_content }}|{{ m.thinking }}{% endfor %}"
    past = {"role": "assistant", "content": "x", field: "hm"}

    await server.http.post("/v1/chat/completions", json={"messages": [past], "chat_template": template})

    assert server.engine.requests[0].prompt.text == "hm|hm"


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


async def test_special_tokens_stay_in_the_text_that_a_parser_reads(talk):
    server = await talk("x")
    for tools in (None, [WEATHER]):
        await server.http.post("/v1/chat/completions", json=CHAT | {"tools": tools})
    plain = await talk("x", ParserConfig())
    await plain.http.post("/v1/chat/completions", json=CHAT)

    assert [request.params.skip_special_tokens for request in server.engine.requests] == [False, False]
    assert plain.engine.requests[0].params.skip_special_tokens is True


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


async def test_choices_that_ask_for_nothing_need_no_tools(server):
    for fields in ({"tool_choice": "none"}, {"tool_choice": "auto"}, {"parallel_tool_calls": True}, {"tools": None}):
        response = await server.http.post("/v1/chat/completions", json=CHAT | fields)
        assert response.status_code == 200, response.text


async def test_a_server_without_the_parser_it_names_does_not_start():
    from vllm_mxext.errors import ConfigError
    from vllm_mxext.server.app import create_app

    with pytest.raises(ConfigError, match=r"hermes"):
        create_app(FakeEngineClient(), ServerConfig(parsers=ParserConfig(tool_parser="hermess")))
    for parsers in (ParserConfig(may_choose_tools=True), ParserConfig(tool_parser="auto")):
        with pytest.raises(ConfigError, match="--tool-call-parser"):
            create_app(FakeEngineClient(), ServerConfig(parsers=parsers))


@pytest.mark.parametrize(
    ("template", "tool_parser", "reasoning_parser"),
    [
        ("qwen2_5", "hermes", None),
        ("qwen3", "hermes", "qwen3"),
        ("qwen3_coder", "qwen3_coder", None),
        ("llama3_1", "llama3_json", None),
        ("mistral_v3", "mistral", None),
        ("mistral_tekken", "mistral", None),
        ("deepseek_v3", "deepseek_v3", None),
        ("deepseek_r1", None, "deepseek_r1"),
        ("glm4_5", "glm45", "glm45"),
        ("kimi_k2", "kimi_k2", None),
        ("granite", "granite", None),
        ("jamba", "jamba", None),
        ("minimax", "minimax_m2", "minimax_m2"),
        ("gpt_oss", "openai", "openai_gptoss"),
    ],
)
def test_parsers_are_suggested_by_the_chat_template(template, tool_parser, reasoning_parser):
    config = ParserConfig(
        may_choose_tools=tool_parser is not None,
        tool_parser="auto" if tool_parser else None,
        reasoning_parser="auto",
    )

    setup = choose_parsers(config, source_of(template))

    assert (setup.tool_parser, setup.reasoning_parser) == (tool_parser, reasoning_parser)


async def test_parsers_come_from_a_plug_in_too(talk, tmp_path):
    plugin = tmp_path / "shouting.py"
    plugin.write_text(PLUGIN)
    server = await talk("CALL clock", ParserConfig(may_choose_tools=True, tool_parser="shouting", plugin=plugin))

    answer = await server.openai().chat.completions.create(model="fake-model", messages=HELLO, tools=[CLOCK])

    [call] = answer.choices[0].message.tool_calls
    assert (call.function.name, call.function.arguments, call.id) == ("clock", "{}", "x1")


PLUGIN = """
from vllm_mxext.parsing.events import ToolArgumentsDelta, ToolCallStart
from vllm_mxext.parsing.registry import ToolParserEntry

class Shouting:
    def __init__(self, context):
        self.text = ""
    def feed(self, text):
        self.text += text
        return []
    def finish(self):
        return [ToolCallStart(0, self.text.removeprefix("CALL "), "x1"), ToolArgumentsDelta(0, "{}")]

TOOL_PARSERS = [ToolParserEntry("shouting", Shouting)]
"""


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


async def test_a_server_can_always_report_usage_and_name_tokens_by_id(serve):
    server = await serve(config=ServerConfig(always_includes_usage=True, returns_tokens_as_ids=True))
    request: Any = {"model": "fake-model", "messages": HELLO, "logprobs": True}
    chunks = [chunk async for chunk in await server.openai().chat.completions.create(**request, stream=True)]
    asked = await server.openai().chat.completions.create(**request, extra_body={"return_tokens_as_token_ids": False})
    text = await server.openai().completions.create(model="fake-model", prompt="h", logprobs=1)

    assert chunks[-1].usage.completion_tokens == 6
    assert chunks[1].choices[0].logprobs.content[0].token == f"token_id:{ord('h')}"
    assert asked.choices[0].logprobs.content[0].token == "h"
    assert text.choices[0].logprobs.tokens[0] == f"token_id:{ord('h')}"


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_outputs_are_logged_when_asked_for_and_no_longer_than_allowed(serve, caplog, is_streamed):
    server = await serve(config=ServerConfig(log_outputs=True, max_log_len=3))
    with caplog.at_level("INFO"):
        await server.http.post("/v1/chat/completions", json=CHAT | {"stream": is_streamed})

    [line] = [record.getMessage() for record in caplog.records if "Output 0" in record.getMessage()]
    assert "(stop): 'hel'" in line
