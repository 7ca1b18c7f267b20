"""Tool calls of FunctionGemma and Gemma 4."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

from vllm_mxext.parsing.literals import PYTHON, Dialect, escape, read_value
from vllm_mxext.parsing.scanner import SPACE, MalformedError, Markers, Scanner, Sink, Steps
from vllm_mxext.parsing.stream_parser import ToolParser

_NAME = re.compile(r"[\w.:-]+")
_KEY = re.compile(r"[^\s:{}\[\],<>]+")
_WORD = re.compile(r"[^{}\[\],<>]+")


def _between(delimiter: str) -> Dialect:
    """Returns the dialect with bare keys, and strings between two of a delimiter."""
    marker = Markers(delimiter)

    def read_string(scanner: Scanner, sink: Sink) -> Steps[bool]:
        if (yield from scanner.peek()) != delimiter[0]:
            return False
        yield from scanner.expect(delimiter)
        sink('"')
        if (yield from scanner.until(marker, lambda text: sink(escape(text)))) is None:
            raise MalformedError
        sink('"')
        return True

    def read_key(scanner: Scanner, sink: Sink) -> Steps[None]:
        if (yield from read_string(scanner, sink)):
            return
        key = yield from scanner.word(_KEY)
        if not key:
            raise MalformedError
        sink(f'"{escape(key)}"')

    return Dialect(read_string, read_key, _read_scalar)


def _read_scalar(scanner: Scanner, sink: Sink) -> Steps[None]:
    """Reads a number or a word; other bare text is a string, for the model may have left out the marker."""
    word = (yield from scanner.word(_WORD)).strip(SPACE)
    if not word or not (yield from scanner.peek()):
        raise MalformedError
    part = Scanner()
    part.feed(word)
    part.end()
    pieces: list[str] = []
    try:
        yield from PYTHON.read_scalar(part, pieces.append)
    except MalformedError:
        sink(f'"{escape(word)}"')
        return
    sink(f'"{escape(word)}"' if part.remaining() else "".join(pieces))


@dataclass(frozen=True, slots=True)
class GemmaFormat:
    """The marks of a format.

    Attributes:
        begin: before a call.
        end: behind it.
        dialect: of its arguments.
    """

    begin: str
    end: str
    dialect: Dialect


class GemmaParser(ToolParser):
    """FunctionGemma: `<start_function_call>call:NAME{key:<escape>text<escape>,other:1}<end_function_call>`.

    Text between `<escape>` markers is a string; numbers, booleans, lists and objects stand bare, as the model's chat
    template writes them.
    """

    format: ClassVar = GemmaFormat("<start_function_call>", "<end_function_call>", _between("<escape>"))

    def run(self) -> Steps[None]:
        """Reads content and calls in turn."""
        begins = Markers(self.format.begin)
        while (begin := (yield from self.scanner.until(begins, self.content))) is not None:
            yield from self.attempt(begin, self._read_call())
        self.end_content()

    def _read_call(self) -> Steps[None]:
        yield from self.scanner.space()
        yield from self.scanner.expect("call:")
        name = yield from self.scanner.word(_NAME)
        if not name or (yield from self.scanner.peek()) != "{":
            raise MalformedError
        self.start_call(name)
        yield from read_value(self.scanner, self.format.dialect, self.arguments)
        self.scanner.hold()
        yield from self.scanner.space()
        yield from self.scanner.expect(self.format.end)


class Gemma4Parser(GemmaParser):
    """Gemma 4: `<|tool_call>call:NAME{key:<|"|>text<|"|>,other:1}<tool_call|>`, several one behind the other."""

    format: ClassVar = GemmaFormat("<|tool_call>", "<tool_call|>", _between('<|"|>'))
