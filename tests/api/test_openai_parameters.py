"""Every parameter of the official package's chat and completions, sync, async and streamed, strictly validated."""

from __future__ import annotations

import asyncio
from typing import Any

import openai
import pytest
import pytest_asyncio
from openai.types import completion_create_params as completion_params
from openai.types.chat import completion_create_params as chat_params
from pydantic import BaseModel

from tests.api.conftest import RunningServer, running_server
from vllm_mxext.config.server import ParserConfig, ServerConfig
from vllm_mxext.engine.backends.fake import FakeEngineClient
from vllm_mxext.engine.backends.fake_tokenizer import FakeTokenizer

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.promise("API-1")]

TEXT = '<think>hm</think>{"a": 1}'
HELLO: list[Any] = [{"role": "user", "content": "hello"}]
TOOL: dict[str, Any] = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}, "strict": True}}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
NAMED: dict[str, Any] = {"type": "function", "function": {"name": "f"}}
ALLOWED = {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [NAMED]}}
PAST_CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
CONVERSATION: list[Any] = [
    {"role": "developer", "content": "x"},
    {"role": "system", "content": [{"type": "text", "text": "x"}], "name": "n"},
    {"role": "user", "content": "x", "name": "n"},
    {"role": "assistant", "content": None, "tool_calls": [PAST_CALL]},
    {"role": "tool", "tool_call_id": "1", "content": [{"type": "text", "text": "x"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "x"}, {"type": "refusal", "refusal": "no"}]},
    {"role": "assistant", "refusal": "no", "content": "x", "function_call": {"name": "f", "arguments": "{}"}},
    {"role": "function", "name": "f", "content": "x"},
]

SHARED: dict[str, list[Any]] = {
    "model": ["org/fake-model"],
    "frequency_penalty": [0.5],
    "presence_penalty": [-0.5],
    "logit_bias": [{"97": 5}],
    "max_tokens": [3],
    "n": [2],
    "seed": [7],
    "stop": ["l", ["l", "zz"], None],
    "temperature": [0.0, 1.5],
    "top_p": [0.5],
    "user": ["u"],
}
CHAT = SHARED | {
    "messages": [CONVERSATION],
    "function_call": ["none", "auto"],
    "functions": [[TOOL["function"]]],
    "logprobs": [True, False],
    "max_completion_tokens": [3],
    "metadata": [{"k": "v"}],
    "modalities": [["text"]],
    "moderation": [{"model": "m"}],
    "parallel_tool_calls": [True, False],
    "prediction": [{"type": "content", "content": "x"}],
    "prompt_cache_key": ["k"],
    "prompt_cache_options": [{"mode": "implicit"}],
    "prompt_cache_retention": ["24h"],
    "reasoning_effort": ["none", "minimal", "low", "medium", "high", "xhigh", None],
    "response_format": [
        {"type": "text"},
        {"type": "json_object"},
        {"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA, "strict": True}},
    ],
    "safety_identifier": ["s"],
    "service_tier": ["auto", "default", "flex", "priority"],
    "store": [False, True],
    "tool_choice": ["none", "auto"],
    "tools": [[TOOL]],
    "top_logprobs": [2],
    "verbosity": ["low"],
}
COMPLETION = SHARED | {
    "prompt": ["ab", ["a", "b"], [97], [[97], [98]]],
    "best_of": [1],
    "echo": [True],
    "logprobs": [2],
}
REFUSED_CHAT: dict[str, Any] = {
    "audio": {"voice": "alloy", "format": "wav"},
    "modalities": ["audio"],
    "web_search_options": {"search_context_size": "low"},
    "tools": [{"type": "custom", "custom": {"name": "c"}}],
    "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}],
}
REFUSED_COMPLETION: dict[str, Any] = {"suffix": "x"}
NEEDED: dict[str, dict[str, Any]] = {
    "top_logprobs": {"logprobs": True},
    "tool_choice": {"tools": [TOOL]},
    "parallel_tool_calls": {"tools": [TOOL]},
    "function_call": {"functions": [TOOL["function"]]},
    "n": {"temperature": 1.0},
}
"""Fields without which a parameter means nothing."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server() -> Any:
    parsers = ParserConfig(may_choose_tools=True, tool_parser="hermes", reasoning_parser="qwen3")
    engine = FakeEngineClient(lambda *_: [*TEXT.encode(), FakeTokenizer.EOS])
    async with running_server(engine, ServerConfig(parsers=parsers)) as running:
        yield running


def cases(table: dict[str, list[Any]]) -> list[Any]:
    return [pytest.param(name, value, id=f"{name}-{i}") for name in table for i, value in enumerate(table[name])]


async def test_the_tables_name_every_parameter_of_the_package() -> None:
    chat = set(chat_params.CompletionCreateParamsBase.__annotations__) - {"stream_options"}
    completion = set(completion_params.CompletionCreateParamsBase.__annotations__) - {"stream_options"}

    assert chat - CHAT.keys() - REFUSED_CHAT.keys() == set()
    assert completion - COMPLETION.keys() - REFUSED_COMPLETION.keys() == set()


@pytest.mark.promise("PAIN-21")
@pytest.mark.parametrize(("name", "value"), cases(CHAT))
async def test_pain_21_a_chat_parameter_is_taken_by_every_client(server: RunningServer, name: str, value: Any) -> None:
    request: Any = {"model": "fake-model", "messages": HELLO, **NEEDED.get(name, {}), name: value}

    answer = await server.openai().chat.completions.create(**request)
    stream = await server.openai().chat.completions.create(
        **request, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]

    assert chunks[-1].usage == answer.usage
    for choice in answer.choices:
        deltas = [one for chunk in chunks for one in chunk.choices if one.index == choice.index]
        assert "".join(one.delta.content or "" for one in deltas) == (choice.message.content or "")
        assert [one.finish_reason for one in deltas if one.finish_reason] == [choice.finish_reason]
    assert await asyncio.to_thread(_ask, server, "chat", request) == len(answer.choices)


@pytest.mark.promise("PAIN-21")
@pytest.mark.parametrize(("name", "value"), cases(COMPLETION))
async def test_pain_21_a_completion_parameter_is_taken_by_every_client(
    server: RunningServer, name: str, value: Any
) -> None:
    request: Any = {"model": "fake-model", "prompt": "ab", **NEEDED.get(name, {}), name: value}

    answer = await server.openai().completions.create(**request)
    stream = await server.openai(is_strict=False).completions.create(**request, stream=True)
    texts = dict.fromkeys(range(len(answer.choices)), "")
    async for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] += choice.text

    assert list(texts.values()) == [choice.text for choice in answer.choices]
    assert await asyncio.to_thread(_ask, server, "text", request) == len(answer.choices)


def _ask(server: RunningServer, kind: str, request: dict[str, Any]) -> int:
    with server.openai_sync() as client:
        endpoint: Any = client.chat.completions if kind == "chat" else client.completions
        return len(endpoint.create(**request).choices)


@pytest.mark.parametrize("name", REFUSED_CHAT)
async def test_a_chat_parameter_that_cannot_be_honoured_is_refused(server: RunningServer, name: str) -> None:
    request: Any = {"model": "fake-model", "messages": HELLO, name: REFUSED_CHAT[name]}
    with pytest.raises(openai.BadRequestError) as caught:
        await server.openai().chat.completions.create(**request)
    assert str(caught.value.param).startswith(name)


async def test_a_completion_parameter_that_cannot_be_honoured_is_refused(server: RunningServer) -> None:
    with pytest.raises(openai.BadRequestError, match="suffix"):
        await server.openai().completions.create(model="fake-model", prompt="a", suffix="x")


@pytest.mark.parametrize("choice", ["required", NAMED, ALLOWED])
async def test_every_form_of_tool_choice_is_taken(server: RunningServer, choice: Any) -> None:
    answer = await server.openai().chat.completions.create(
        model="fake-model", messages=HELLO, tools=[TOOL], tool_choice=choice
    )
    assert answer.choices[0].message.role == "assistant"


class _Answer(BaseModel):
    a: int


async def test_answers_are_parsed_by_the_package(server: RunningServer) -> None:
    client = server.openai()

    answer = await client.chat.completions.parse(model="fake-model", messages=HELLO, response_format=_Answer)
    async with client.chat.completions.stream(model="fake-model", messages=HELLO, response_format=_Answer) as stream:
        final = await stream.get_final_completion()

    assert [one.choices[0].message.parsed for one in (answer, final)] == [_Answer(a=1)] * 2
    assert [one.choices[0].message.reasoning for one in (answer, final)] == ["hm"] * 2
