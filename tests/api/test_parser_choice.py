"""Which parsers a server reads outputs with: those of its flags, of the chat template, of a plug-in."""

from __future__ import annotations

import pytest

from tests.api.refusals import CHAT
from tests.api.talking import (
    CLOCK,
    HELLO,
    WEATHER,
)
from tests.template_conformance import source_of
from vllm_mxext.config.server import ParserConfig, ServerConfig
from vllm_mxext.engine.backends.fake import FakeEngineClient
from vllm_mxext.server.parsers import choose_parsers

pytestmark = pytest.mark.promise("TOOL-1", "PAIN-21")


async def test_special_tokens_stay_in_the_text_that_a_parser_reads(talk):
    server = await talk("x")
    for tools in (None, [WEATHER]):
        await server.http.post("/v1/chat/completions", json=CHAT | {"tools": tools})
    plain = await talk("x", ParserConfig())
    await plain.http.post("/v1/chat/completions", json=CHAT)

    assert [request.params.skip_special_tokens for request in server.engine.requests] == [False, False]
    assert plain.engine.requests[0].params.skip_special_tokens is True


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
