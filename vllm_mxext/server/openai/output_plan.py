"""How the output of a chat request is to be read: which tools it may call, which it must, and which parsers read it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vllm_mxext.errors import InvalidRequestError
from vllm_mxext.parsing.events import OutputParser, ParserContext
from vllm_mxext.parsing.reasoning import PROMPT_END_CHARS, ReasoningFormat
from vllm_mxext.parsing.registry import CallIdForm, ParserRegistry
from vllm_mxext.parsing.tool_format import ToolFormat
from vllm_mxext.server.openai.protocol import ChatCompletionRequest
from vllm_mxext.server.openai.tool_protocol import AllowedToolChoice, NamedToolChoice, Tool

GENERIC_PARSER = "json"
"""Reads forced calls where the server has no tool parser, or one whose format cannot be forced."""


@dataclass(frozen=True, slots=True)
class ParserSetup:
    """The parsers a server was started with.

    Attributes:
        registry: all parsers by name.
        tool_parser: name of the tool parser, or None.
        reasoning_parser: name of the reasoning parser, or None.
        may_choose_tools: the model may choose on its own to call tools (`--enable-auto-tool-choice`).
        hides_unused_tools: tools are not shown to the model when it must not call any.
    """

    registry: ParserRegistry
    tool_parser: str | None = None
    reasoning_parser: str | None = None
    may_choose_tools: bool = False
    hides_unused_tools: bool = False


@dataclass(frozen=True, slots=True)
class OutputPlan:
    """How one request's output is forced and read.

    Attributes:
        setup: the server's parsers.
        tools: tools that the template shows to the model.
        callable_tools: those of them that may be called.
        tool_parser: what reads calls; None if there are none to read.
        is_forced: at least one call must be made.
        is_named: the request names the one function that is called.
        max_calls: calls that are passed on; None is all.
    """

    setup: ParserSetup
    tools: tuple[Tool, ...] = ()
    callable_tools: tuple[Tool, ...] = ()
    tool_parser: str | None = None
    is_forced: bool = False
    is_named: bool = False
    max_calls: int | None = None

    @property
    def has_parser(self) -> bool:
        """Whether the output is more than plain text."""
        return self.tool_parser is not None or self.setup.reasoning_parser is not None

    @property
    def keeps_special_tokens(self) -> bool:
        """Whether the parsers need special tokens in the text."""
        if self.tool_parser is not None and self.setup.registry.tool_parser(self.tool_parser).is_special:
            return True
        return self.setup.reasoning_parser is not None

    @property
    def call_id_form(self) -> CallIdForm:
        """What ids of calls look like; as the server's tool parser has it, also where calls are forced."""
        name = self.setup.tool_parser or self.tool_parser
        return CallIdForm.UUID if name is None else self.setup.registry.tool_parser(name).call_id_form

    @property
    def reasoning_format(self) -> ReasoningFormat | None:
        """How reasoning is marked; None if there is none, or no simple marks."""
        name = self.setup.reasoning_parser
        return None if name is None else self.setup.registry.reasoning_parser(name).format

    @property
    def has_strict_tools(self) -> bool:
        """Whether calls of some tools must fit their schemas."""
        return any(tool.function.strict for tool in self.callable_tools)

    @property
    def tool_format(self) -> ToolFormat | None:
        """How calls are written where they are constrained; None if that is not known."""
        return None if self.tool_parser is None else self.setup.registry.tool_parser(self.tool_parser).format

    def parser(self, prompt: str) -> OutputParser:
        """Makes the parser of one sample that answers `prompt`."""
        functions: dict[str, dict[str, Any]] = {
            tool.function.name: {"name": tool.function.name, "parameters": tool.function.schema_of_arguments}
            for tool in self.callable_tools
        }
        context = ParserContext(functions, prompt[-PROMPT_END_CHARS:])
        return self.setup.registry.output_parser(self.tool_parser, self.setup.reasoning_parser, context)


def plan_output(request: ChatCompletionRequest, setup: ParserSetup) -> OutputPlan:
    """Decides how a request's output is read.

    Raises:
        InvalidRequestError: the model is to choose tools, and the server was not started for it.
    """
    tools, choice = tuple(request.offered_tools or ()), request.chosen_tool or "auto"
    if not tools:
        return OutputPlan(setup)
    if choice == "none":
        return OutputPlan(setup, () if setup.hides_unused_tools else tools)
    if isinstance(choice, AllowedToolChoice):
        tools, choice = _named(tools, choice.allowed_tools.tools), choice.allowed_tools.mode
    max_calls = 1 if request.parallel_tool_calls is False or request.has_legacy_functions else None
    if choice == "auto":
        if not setup.may_choose_tools or setup.tool_parser is None:
            raise InvalidRequestError(
                '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set; start the '
                "server with them, or send tool_choice none, required or a function.",
                param="tool_choice",
            )
        return OutputPlan(setup, tools, tools, setup.tool_parser, max_calls=max_calls)
    parser = _forced_parser(setup)
    if isinstance(choice, NamedToolChoice):
        return OutputPlan(setup, tools, _named(tools, [choice]), parser, is_forced=True, is_named=True, max_calls=1)
    return OutputPlan(setup, tools, tools, parser, is_forced=True, max_calls=max_calls)


def _forced_parser(setup: ParserSetup) -> str:
    if setup.tool_parser is None or setup.registry.tool_parser(setup.tool_parser).format is None:
        return GENERIC_PARSER
    return setup.tool_parser


def _named(tools: Sequence[Tool], chosen: Sequence[NamedToolChoice]) -> tuple[Tool, ...]:
    names = {one.function.name for one in chosen}
    return tuple(tool for tool in tools if tool.function.name in names)
