"""Tool calls whose names and JSON arguments stand between markers of their own."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

from vllm_mxext.parsing.events import ParserContext
from vllm_mxext.parsing.json_calls import JsonCallFormat, JsonCallParser
from vllm_mxext.parsing.scanner import MalformedError, Markers, Steps
from vllm_mxext.parsing.stream_parser import ToolParser

_NAME = re.compile(r"[\w.:/-]+")


@dataclass(frozen=True, slots=True)
class MarkedCallFormat:
    """The markers of a format.

    Attributes:
        openings: before the first call.
        call_begin: before each call.
        name_end: behind the name.
        call_end: behind the arguments.
        closings: behind the last call.
        kind_end: between the kind of a call, which comes before its name, and the name; None if there is no kind.
        fence: before the end of a call, if the arguments stand in a code block.
    """

    openings: tuple[str, ...]
    call_begin: str
    name_end: str
    call_end: str
    closings: tuple[str, ...]
    kind_end: str | None = None
    fence: str | None = None


class MarkedCallParser(ToolParser):
    """Reads calls of the form name, marker, arguments; nothing between the markers is an empty object."""

    format: ClassVar[MarkedCallFormat]

    def __init__(self, context: ParserContext) -> None:
        super().__init__(context)
        self._begins = Markers(*self.format.openings, self.format.call_begin)
        self._ends = tuple(end for end in (self.format.fence, self.format.call_end) if end is not None)

    def run(self) -> Steps[None]:
        """Reads content and calls in turn."""
        while (begin := (yield from self.scanner.until(self._begins, self.content))) is not None:
            yield from self.attempt(begin, self._read_calls(begin))
        self.end_content()

    def call_of(self, written: str) -> tuple[str, str | None]:
        """Returns the name and the id of a call from what stands before its arguments."""
        return written, None

    def _read_calls(self, begin: str) -> Steps[None]:
        following: str | None = begin
        while following not in self.format.closings:
            if following != self.format.call_begin:
                yield from self.scanner.space()
                yield from self.scanner.expect(self.format.call_begin)
            yield from self._read_call()
            self.scanner.hold()
            yield from self.scanner.space()
            following = yield from self.scanner.expect(self.format.call_begin, *self.format.closings)

    def _read_call(self) -> Steps[None]:
        yield from self.scanner.space()
        if self.format.kind_end is not None:
            yield from self.scanner.word(_NAME)
            yield from self.scanner.expect(self.format.kind_end)
        name, call_id = self.call_of((yield from self.scanner.word(_NAME)))
        if not name:
            raise MalformedError
        yield from self.scanner.space()
        yield from self.scanner.expect(self.format.name_end)
        yield from self.scanner.space()
        if (yield from self.scanner.peek()) == "{":
            yield from self.read_arguments(name, Markers(*self._ends), call_id)
        else:
            yield from self._read_end()
            self.start_call(name, call_id)
            self.arguments("{}")
            return
        self.scanner.hold()
        yield from self.scanner.space()
        yield from self._read_end()

    def _read_end(self) -> Steps[None]:
        if self.format.fence is not None and (yield from self.scanner.literal(self.format.fence)):
            yield from self.scanner.space()
        yield from self.scanner.expect(self.format.call_end)


class DeepSeekV3Parser(MarkedCallParser):
    """DeepSeek V3 and R1-0528: begin, kind, separator, name, a code block of JSON, end."""

    format = MarkedCallFormat(
        openings=("<｜tool▁calls▁begin｜>",),
        call_begin="<｜tool▁call▁begin｜>",
        kind_end="<｜tool▁sep｜>",
        name_end="```json",
        fence="```",
        call_end="<｜tool▁call▁end｜>",
        closings=("<｜tool▁calls▁end｜>",),
    )


class DeepSeekV31Parser(MarkedCallParser):
    """DeepSeek V3.1: begin, name, separator, JSON, end."""

    format = MarkedCallFormat(
        openings=("<｜tool▁calls▁begin｜>",),
        call_begin="<｜tool▁call▁begin｜>",
        name_end="<｜tool▁sep｜>",
        call_end="<｜tool▁call▁end｜>",
        closings=("<｜tool▁calls▁end｜>",),
    )


class KimiK2Parser(MarkedCallParser):
    """Kimi K2: `functions.NAME:NUMBER`, which is also the call's id, and JSON."""

    format = MarkedCallFormat(
        openings=("<|tool_calls_section_begin|>", "<|tool_call_section_begin|>"),
        call_begin="<|tool_call_begin|>",
        name_end="<|tool_call_argument_begin|>",
        call_end="<|tool_call_end|>",
        closings=("<|tool_calls_section_end|>", "<|tool_call_section_end|>"),
    )

    def call_of(self, written: str) -> tuple[str, str | None]:
        """Returns the name within the id, and the id."""
        match = re.fullmatch(r"(?:functions\.)?(.+):[0-9]+", written)
        return (match[1], written) if match else ("", None)


class MistralParser(JsonCallParser):
    """Mistral: `[TOOL_CALLS][{"name": ..., "arguments": {...}}]`, since version 11 `[TOOL_CALLS]NAME[ARGS]{...}`.

    Between name and `[ARGS]` may stand `[CALL_ID]` and an id; `[ARGS]` may be missing.
    """

    format = JsonCallFormat(("[TOOL_CALLS]",), needs_arguments=True)

    def read_calls(self, *, is_marked: bool) -> Steps[None]:
        """Reads an array or one call with its name in front."""
        yield from self.scanner.space()
        if (yield from self.scanner.peek()) in {"[", "{"}:
            yield from super().read_calls(is_marked=is_marked)
            return
        name = yield from self.scanner.word(_NAME)
        if not name:
            raise MalformedError
        call_id: str | None = None
        if (yield from self.scanner.literal("[CALL_ID]")):
            call_id = (yield from self.scanner.word(_NAME)) or None
        yield from self.scanner.literal("[ARGS]")
        yield from self.scanner.space()
        yield from self.read_arguments(name, None, call_id)
