"""What the chat template gets to see of a conversation."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from vllm_mxext.config.server import ParserConfig, ServerConfig
from vllm_mxext.engine.backends.fake import FakeEngineClient
from vllm_mxext.observability.metrics import PrometheusMetrics
from vllm_mxext.server.adapters import ServedAdapters
from vllm_mxext.server.clock import SystemClock
from vllm_mxext.server.context import ServerContext
from vllm_mxext.server.openai.messages import render_conversation
from vllm_mxext.server.openai.protocol import ChatCompletionRequest
from vllm_mxext.server.parsers import choose_parsers
from vllm_mxext.server.served_hub import ServedHub


@pytest.fixture
def context(tmp_path):
    with ThreadPoolExecutor(1) as executor:
        parsers = choose_parsers(ParserConfig(), None)
        client, config, clock = FakeEngineClient(), ServerConfig(), SystemClock()
        adapters = ServedAdapters(client, config.lora, clock)
        yield ServerContext(
            client, config, PrometheusMetrics("m", 10), clock, executor, parsers, "fingerprint", adapters,
            ServedHub(tmp_path, "m"),
        )  # fmt: skip


@pytest.fixture
def seen(context, monkeypatch) -> dict[str, Any]:
    """The arguments of the tokenizer's last `apply_chat_template()`."""
    arguments: dict[str, Any] = {}

    def apply_chat_template(messages: Any, **others: Any) -> str:
        arguments.update(others, messages=messages)
        return "prompt"

    monkeypatch.setattr(context.client.tokenizer, "apply_chat_template", apply_chat_template)
    return arguments


async def render(context: ServerContext, messages: list[dict[str, Any]], **fields: Any) -> None:
    await render_conversation(context, ChatCompletionRequest(messages=messages, **fields))


USER = [{"role": "user", "content": "hi"}]


async def test_messages_reach_the_template_with_the_fields_they_have(context, seen):
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "a"}], "name": "me"},
        {"role": "assistant", "content": None, "tool_calls": [call], "reasoning": "because"},
        {"role": "tool", "content": "22", "tool_call_id": "1", "unknown": "field"},
    ]
    await render(context, messages)

    assert seen["messages"] == [
        {"role": "user", "content": [{"type": "text", "text": "a"}], "name": "me"},
        {"role": "assistant", "tool_calls": [call], "reasoning": "because"},
        {"role": "tool", "content": "22", "tool_call_id": "1", "unknown": "field"},
    ]


async def test_the_prompt_opens_an_answer_unless_a_message_is_continued(context, seen):
    await render(context, USER)
    assert (seen["add_generation_prompt"], seen["continue_final_message"]) == (True, False)
    await render(context, USER, continue_final_message=True)
    assert (seen["add_generation_prompt"], seen["continue_final_message"]) == (False, True)
    await render(context, USER, add_generation_prompt=False)
    assert (seen["add_generation_prompt"], seen["continue_final_message"]) == (False, False)


async def test_template_variables_come_from_their_fields_and_the_explicit_ones_win(context, seen):
    documents = [{"title": "t", "text": "x"}]
    await render(context, USER, documents=documents, reasoning_effort="none", chat_template_kwargs={"a": 1})
    assert seen["template_kwargs"] == {
        "documents": documents, "reasoning_effort": "none", "enable_thinking": False, "a": 1,
    }  # fmt: skip
    await render(context, USER, reasoning_effort="high", chat_template_kwargs={"enable_thinking": False})
    assert seen["template_kwargs"] == {"reasoning_effort": "high", "enable_thinking": False}
