"""The parsers by name."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from typing import TypeVar

from vllm_mxext.errors import ConfigError
from vllm_mxext.parsing import (
    gemma_calls,
    harmony,
    json_calls,
    marked_calls,
    pythonic_calls,
    reasoning,
    tagged_parameters,
    tool_format,
)
from vllm_mxext.parsing.chain import ParserChain, PlainParser
from vllm_mxext.parsing.events import OutputParser, ParserContext
from vllm_mxext.parsing.reasoning import ReasoningFormat
from vllm_mxext.parsing.tool_format import ToolFormat

AUTO = "auto"
"""Name that stands for the parser that the chat template suggests."""


class CallIdForm(Enum):
    """What ids of tool calls look like where the model does not write them."""

    UUID = "chatcmpl-tool-UUID"
    ALPHANUMERIC = "nine letters and digits"
    NUMBERED = "functions.NAME:NUMBER"


@dataclass(frozen=True, slots=True)
class ToolParserEntry:
    """A tool parser and what the server needs to know of its format.

    Attributes:
        name: name of the parser.
        create: makes a parser for one sample.
        aliases: other names.
        format: how to force calls in this format; None = force the generic format, and read it with `json`; calls that
            the model makes on its own cannot be held to schemas then.
        call_id_form: ids of calls for which `ToolCallStart.id` is None.
        is_special: the markers may be special tokens, which must stay in the text.
        reads_reasoning: it tells reasoning too, so that no reasoning parser is needed before it.
    """

    name: str
    create: Callable[[ParserContext], OutputParser]
    aliases: tuple[str, ...] = ()
    format: ToolFormat | None = None
    call_id_form: CallIdForm = CallIdForm.UUID
    is_special: bool = True
    reads_reasoning: bool = False


@dataclass(frozen=True, slots=True)
class ReasoningParserEntry:
    """A reasoning parser.

    Attributes:
        name: name of the parser.
        create: makes a parser for one sample.
        aliases: other names.
        format: its markers; None if it has a grammar of its own.
    """

    name: str
    create: Callable[[ParserContext], OutputParser]
    aliases: tuple[str, ...] = ()
    format: ReasoningFormat | None = None


Entry = TypeVar("Entry", ToolParserEntry, ReasoningParserEntry)


def _reasoning(name: str, reasoning_format: ReasoningFormat, *aliases: str) -> ReasoningParserEntry:
    def create(context: ParserContext) -> OutputParser:
        return reasoning.ReasoningParser(context, reasoning_format)

    return ReasoningParserEntry(name, create, aliases, reasoning_format)


TOOL_PARSERS: tuple[ToolParserEntry, ...] = (
    ToolParserEntry("hermes", json_calls.HermesParser, ("qwen", "qwen25", "qwen3_json"), tool_format.HERMES),
    ToolParserEntry("llama3_json", json_calls.Llama3JsonParser, ("llama3", "llama4_json"), tool_format.LLAMA3_JSON),
    ToolParserEntry("llama4_pythonic", pythonic_calls.Llama4PythonicParser, (), tool_format.LLAMA4_PYTHONIC),
    ToolParserEntry("pythonic", pythonic_calls.PythonicParser, (), tool_format.PYTHONIC),
    ToolParserEntry(
        "mistral", marked_calls.MistralParser, (), tool_format.MISTRAL, call_id_form=CallIdForm.ALPHANUMERIC
    ),
    ToolParserEntry("qwen3_coder", tagged_parameters.Qwen3CoderParser, ("qwen3_xml",), tool_format.QWEN3_CODER),
    ToolParserEntry("deepseek_v3", marked_calls.DeepSeekV3Parser, ("deepseekv3",), tool_format.DEEPSEEK_V3),
    ToolParserEntry("deepseek_v31", marked_calls.DeepSeekV31Parser, ("deepseekv31",), tool_format.DEEPSEEK_V31),
    ToolParserEntry("deepseek_v32", tagged_parameters.DeepSeekV32Parser, ("deepseekv32",), tool_format.DEEPSEEK_V32),
    ToolParserEntry("kimi_k2", marked_calls.KimiK2Parser, (), tool_format.KIMI_K2, call_id_form=CallIdForm.NUMBERED),
    ToolParserEntry("glm45", tagged_parameters.Glm45Parser, ("glm47", "glm"), tool_format.GLM45),
    ToolParserEntry("granite", json_calls.GraniteParser, ("granite4",), tool_format.GRANITE),
    ToolParserEntry("internlm", json_calls.InternLmParser, (), tool_format.INTERNLM),
    ToolParserEntry("jamba", json_calls.JambaParser, ("hunyuan_a13b",), tool_format.JAMBA),
    ToolParserEntry("phi4_mini_json", json_calls.Phi4MiniParser, (), tool_format.PHI4_MINI),
    ToolParserEntry("xlam", json_calls.XlamParser, (), tool_format.XLAM),
    ToolParserEntry("minimax_m2", tagged_parameters.MinimaxM2Parser, (), tool_format.MINIMAX_M2),
    ToolParserEntry("gemma", gemma_calls.GemmaParser, ("functiongemma",), tool_format.GEMMA),
    ToolParserEntry("gemma4", gemma_calls.Gemma4Parser, (), tool_format.GEMMA4),
    ToolParserEntry("openai", harmony.HarmonyParser, ("gpt-oss",), tool_format.HARMONY, reads_reasoning=True),
    ToolParserEntry("json", json_calls.GenericJsonParser, ("generic",), tool_format.GENERIC, is_special=False),
)
"""The tool parsers that ship."""

REASONING_PARSERS: tuple[ReasoningParserEntry, ...] = (
    _reasoning("generic", reasoning.THINK, "think", "deepseek_v3"),
    _reasoning("deepseek_r1", reasoning.DEEPSEEK_R1, "deepseek-r1"),
    _reasoning("qwen3", reasoning.THINK),
    _reasoning("glm45", reasoning.THINK, "glm47"),
    _reasoning("granite", reasoning.GRANITE),
    _reasoning("mistral", reasoning.MISTRAL),
    _reasoning("gemma4", reasoning.GEMMA4),
    _reasoning("kimi_k2", reasoning.KIMI_K2),
    _reasoning("hunyuan", reasoning.HUNYUAN, "hunyuan_a13b"),
    _reasoning("minimax_m2", reasoning.DEEPSEEK_R1),
    ReasoningParserEntry(
        "openai_gptoss", lambda context: harmony.HarmonyParser(context, reads_calls=False), ("gpt-oss",)
    ),
)
"""The reasoning parsers that ship."""


class ParserRegistry:
    """The parsers that ship, and those that a plug-in adds.

    Args:
        tool_parsers: added to the shipped ones; replace those of the same name.
        reasoning_parsers: likewise.
    """

    def __init__(
        self,
        tool_parsers: Iterable[ToolParserEntry] = (),
        reasoning_parsers: Iterable[ReasoningParserEntry] = (),
    ) -> None:
        self._tool_parsers = _by_name((*TOOL_PARSERS, *tool_parsers))
        self._reasoning_parsers = _by_name((*REASONING_PARSERS, *reasoning_parsers))

    def tool_parser(self, name: str) -> ToolParserEntry:
        """Returns a tool parser by its name or an alias.

        Raises:
            ConfigError: there is none of that name.
        """
        return _find(self._tool_parsers, name, "tool parser", "--tool-call-parser")

    def reasoning_parser(self, name: str) -> ReasoningParserEntry:
        """Returns a reasoning parser by its name or an alias.

        Raises:
            ConfigError: there is none of that name.
        """
        return _find(self._reasoning_parsers, name, "reasoning parser", "--reasoning-parser")

    def output_parser(self, tool_name: str | None, reasoning_name: str | None, context: ParserContext) -> OutputParser:
        """Makes a parser for one sample.

        Args:
            tool_name: tool parser; None if calls are not to be looked for.
            reasoning_name: reasoning parser; None if reasoning is not to be looked for.
            context: what it may know of the request.

        Raises:
            ConfigError: there is no parser of a name.
        """
        tools = None if tool_name is None else self.tool_parser(tool_name)
        thinks = None if reasoning_name is None else self.reasoning_parser(reasoning_name)
        if tools is None:
            return PlainParser() if thinks is None else thinks.create(context)
        if thinks is None or tools.reads_reasoning:
            return tools.create(context)
        return ParserChain(thinks.create(context), tools.create(context))


def tool_parser_names() -> tuple[str, ...]:
    """Names of the tool parsers that ship, for help texts."""
    return tuple(entry.name for entry in TOOL_PARSERS)


def reasoning_parser_names() -> tuple[str, ...]:
    """Names of the reasoning parsers that ship, for help texts."""
    return tuple(entry.name for entry in REASONING_PARSERS)


def _by_name(entries: Iterable[Entry]) -> dict[str, Entry]:
    return dict(itertools.chain.from_iterable(_names(entry) for entry in entries))


def _names(entry: Entry) -> list[tuple[str, Entry]]:
    return [(name, entry) for name in (entry.name, *entry.aliases)]


def _find(entries: dict[str, Entry], name: str, kind: str, flag: str) -> Entry:
    if name in entries:
        return entries[name]
    close = difflib.get_close_matches(name, entries, 1)
    hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(sorted(entries))}."
    raise ConfigError(f"There is no {kind} '{name}' for {flag}; {hint}")
