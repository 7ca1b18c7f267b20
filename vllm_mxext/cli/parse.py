"""`mxext parse`: runs tool and reasoning parsers on a model's text and prints the resulting message."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vllm_mxext.errors import ConfigError
from vllm_mxext.parsing.chain import ParsedMessage, join
from vllm_mxext.parsing.detection import detect_parsers
from vllm_mxext.parsing.events import OutputParser, ParserContext
from vllm_mxext.parsing.plugins import load_plugin
from vllm_mxext.parsing.registry import AUTO, reasoning_parser_names, tool_parser_names


def run(argv: Sequence[str]) -> int:
    """Parses one text; returns the exit code."""
    arguments = _parser().parse_args(argv)
    if arguments.chunk < 0:
        raise ConfigError(f"--chunk must be a number of characters, or 0 for one piece, got {arguments.chunk}.")
    context = ParserContext(_read_tools(arguments.tools), arguments.prompt_end)
    tool_parser, reasoning_parser = _chosen_parsers(arguments)
    registry = load_plugin(arguments.tool_parser_plugin)
    parser = registry.output_parser(tool_parser, reasoning_parser, context)
    text = sys.stdin.read() if arguments.file is None else _read(arguments.file)
    message = _message(parser, text, arguments.chunk)
    print(json.dumps(_as_json(message), ensure_ascii=False, indent=2))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mxext parse", description="Split a model's text into reasoning, tool calls and answer."
    )
    parser.add_argument("file", nargs="?", type=Path, help="the text (default: standard input)")
    names = ", ".join((*tool_parser_names(), AUTO))
    parser.add_argument("--tool-call-parser", metavar="NAME", help=f"how calls are written: {names}")
    names = ", ".join((*reasoning_parser_names(), AUTO))
    parser.add_argument("--reasoning-parser", metavar="NAME", help=f"how reasoning is marked: {names}")
    parser.add_argument("--tool-parser-plugin", metavar="FILE", type=Path, help="Python file with further parsers")
    parser.add_argument("--chat-template", metavar="FILE", type=Path, help="template that 'auto' goes by")
    parser.add_argument("--tools", metavar="FILE", type=Path, help="the request's tools, a JSON list as in the API")
    parser.add_argument(
        "--prompt-end", metavar="TEXT", default="", help="end of the prompt, which may have opened the reasoning"
    )
    parser.add_argument(
        "--chunk", metavar="N", type=int, default=0, help="feed the text in pieces of N characters (default: in one)"
    )
    return parser


def _chosen_parsers(arguments: argparse.Namespace) -> tuple[str | None, str | None]:
    tool_parser, reasoning_parser = arguments.tool_call_parser, arguments.reasoning_parser
    if AUTO not in (tool_parser, reasoning_parser):
        return tool_parser, reasoning_parser
    if arguments.chat_template is None:
        raise ConfigError("'auto' goes by the model's chat template; name its file with --chat-template.")
    detected = detect_parsers(_read(arguments.chat_template))
    return (
        detected.tool_parser if tool_parser == AUTO else tool_parser,
        detected.reasoning_parser if reasoning_parser == AUTO else reasoning_parser,
    )


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"Cannot read '{path}': {reason}.") from None


def _read_tools(path: Path | None) -> dict[str, dict[str, Any]]:
    if path is None:
        return {}
    rule = f"--tools {path} must be a JSON list of tools as in the API."
    try:
        tools = json.loads(_read(path))
        functions = [tool.get("function", tool) for tool in tools]
        return {function["name"]: function for function in functions}
    except (ValueError, TypeError, KeyError, AttributeError):
        raise ConfigError(rule) from None


def _message(parser: OutputParser, text: str, chunk: int) -> ParsedMessage:
    size = chunk or max(1, len(text))
    events = [event for start in range(0, len(text), size) for event in parser.feed(text[start : start + size])]
    return join([*events, *parser.finish()])


def _as_json(message: ParsedMessage) -> dict[str, Any]:
    calls = [
        {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        for call in message.calls
    ]
    return {
        "role": "assistant",
        "reasoning": message.reasoning or None,
        "content": message.content or None,
        "tool_calls": calls,
    }
