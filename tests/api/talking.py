"""What tests of tools and reasoning share: models that say one text, tools, and streams read to their end."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from vllm_mxext.config.server import ParserConfig
from vllm_mxext.engine.backends.fake_tokenizer import FakeTokenizer

HELLO: list[Any] = [{"role": "user", "content": "hello"}]
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER: dict[str, Any] = {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}
CLOCK: dict[str, Any] = {"type": "function", "function": {"name": "clock", "description": "tells the time"}}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Zürich"}}\n</tool_call>'
TWO_CALLS = f'Let me see.\n{CALL}\n<tool_call>\n{{"name": "clock", "arguments": {{}}}}\n</tool_call>'
PARSERS = ParserConfig(may_choose_tools=True, tool_parser="hermes", reasoning_parser="qwen3")
NO_REASONING = ParserConfig(may_choose_tools=True, tool_parser="hermes")


def saying(text: str) -> Callable[..., Sequence[int]]:
    return lambda *_: [*text.encode(), FakeTokenizer.EOS]


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


def shown_tools(server: Any) -> str:
    """What the template wrote of the tools in the last prompt."""
    return server.engine.requests[-1].prompt.text.partition("<|user|>")[0]


def constraint_of(server: Any) -> dict[str, Any]:
    """The form that the last request's output must have."""
    params = server.engine.requests[-1].params.structured_outputs
    return json.loads(params.structural_tag)["format"]
