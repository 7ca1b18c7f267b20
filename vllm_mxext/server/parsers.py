"""Chooses the parsers a server was started with."""

from __future__ import annotations

from vllm_mxext.config.server import ParserConfig
from vllm_mxext.errors import ConfigError
from vllm_mxext.logger import init_logger
from vllm_mxext.parsing.detection import detect_parsers
from vllm_mxext.parsing.plugins import load_plugin
from vllm_mxext.parsing.registry import AUTO
from vllm_mxext.server.openai.output_plan import ParserSetup

logger = init_logger(__name__)


def choose_parsers(config: ParserConfig, chat_template: str | None) -> ParserSetup:
    """Finds the parsers that flags name or the chat template suggests.

    Args:
        config: the flags.
        chat_template: what conversations with tools are rendered with, if there is anything.

    Raises:
        ConfigError: there is no parser of a name, the plug-in cannot be loaded, or the template suggests none.
    """
    registry = load_plugin(config.plugin)
    suggested = detect_parsers(chat_template or "")
    tool_parser, reasoning_parser = config.tool_parser, config.reasoning_parser
    if tool_parser == AUTO or (tool_parser is None and config.may_choose_tools):
        tool_parser = suggested.tool_parser
        if tool_parser is None:
            raise ConfigError(
                "The chat template does not tell how the model writes tool calls; name the parser with "
                "--tool-call-parser, or leave --enable-auto-tool-choice out."
            )
        logger.info("Tool calls are read by the parser %s, as the chat template suggests.", tool_parser)
    if reasoning_parser == AUTO:
        reasoning_parser = suggested.reasoning_parser
        logger.info("Reasoning is read by the parser %s, as the chat template suggests.", reasoning_parser or "none")
    return ParserSetup(
        registry,
        tool_parser=None if tool_parser is None else registry.tool_parser(tool_parser).name,
        reasoning_parser=None if reasoning_parser is None else registry.reasoning_parser(reasoning_parser).name,
        may_choose_tools=config.may_choose_tools,
        hides_unused_tools=config.hides_unused_tools,
    )
