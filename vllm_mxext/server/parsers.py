"""Chooses the parsers a server was started with."""

from __future__ import annotations

from vllm_mxext.config.server import ParserConfig
from vllm_mxext.errors import ConfigError
from vllm_mxext.parsing.registry import ParserRegistry
from vllm_mxext.server.openai.output_plan import ParserSetup


def choose_parsers(config: ParserConfig) -> ParserSetup:
    """Finds the parsers that flags name.

    Raises:
        ConfigError: there is no parser of a name, or tools may be chosen and there is no parser for them.
    """
    registry = ParserRegistry()
    tool_parser, reasoning_parser = config.tool_parser, config.reasoning_parser
    if tool_parser is None and config.may_choose_tools:
        raise ConfigError("--enable-auto-tool-choice needs --tool-call-parser; name the parser of the model's format.")
    return ParserSetup(
        registry,
        tool_parser=None if tool_parser is None else registry.tool_parser(tool_parser).name,
        reasoning_parser=None if reasoning_parser is None else registry.reasoning_parser(reasoning_parser).name,
        may_choose_tools=config.may_choose_tools,
        hides_unused_tools=config.hides_unused_tools,
    )
