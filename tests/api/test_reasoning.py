"""Reasoning in chat completions: its names, its tokens, and that of the past."""

from __future__ import annotations

from typing import Any

import pytest

from tests.api.talking import (
    CALL,
    HELLO,
    WEATHER,
    joined,
)
from vllm_mxext.config.server import ServerConfig

pytestmark = pytest.mark.promise("TOOL-1", "PAIN-21")


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
