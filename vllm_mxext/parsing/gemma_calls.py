"""Tool calls of FunctionGemma."""

from __future__ import annotations

import re

from vllm_mxext.parsing.literals import PYTHON, Dialect, escape, read_value
from vllm_mxext.parsing.scanner import SPACE, MalformedError, Markers, Scanner, Sink, Steps
from vllm_mxext.parsing.stream_parser import ToolParser

_NAME = re.compile(r"[\w.:-]+")
_KEY = re.compile(r"[^\s:{}\[\],<>]+")
_WORD = re.compile(r"[^{}\[\],<>]+")
_ESCAPE = "<escape>"
_ESCAPE_MARKER = Markers(_ESCAPE)


def _read_string(scanner: Scanner, sink: Sink) -> Steps[bool]:
    if (yield from scanner.peek()) != "<":
        return False
    yield from scanner.expect(_ESCAPE)
    sink('"')
    if (yield from scanner.until(_ESCAPE_MARKER, lambda text: sink(escape(text)))) is None:
        raise MalformedError
    sink('"')
    return True


def _read_key(scanner: Scanner, sink: Sink) -> Steps[None]:
    if (yield from _read_string(scanner, sink)):
        return
    key = yield from scanner.word(_KEY)
    if not key:
        raise MalformedError
    sink(f'"{escape(key)}"')


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


GEMMA = Dialect(_read_string, _read_key, _read_scalar)
"""Bare keys, strings between `<escape>` markers."""


class GemmaParser(ToolParser):
    """FunctionGemma: `<start_function_call>call:NAME{key:<escape>text<escape>,other:1}<end_function_call>`.

    Text between `<escape>` markers is a string; numbers, booleans, lists and objects stand bare, as the model's chat
    template writes them.
    """

    _BEGIN = Markers("<start_function_call>")

    def run(self) -> Steps[None]:
        """Reads content and calls in turn."""
        while (begin := (yield from self.scanner.until(self._BEGIN, self.content))) is not None:
            yield from self.attempt(begin, self._read_call())
        self.end_content()

    def _read_call(self) -> Steps[None]:
        yield from self.scanner.space()
        yield from self.scanner.expect("call:")
        name = yield from self.scanner.word(_NAME)
        if not name or (yield from self.scanner.peek()) != "{":
            raise MalformedError
        self.start_call(name)
        yield from read_value(self.scanner, GEMMA, self.arguments)
        self.scanner.hold()
        yield from self.scanner.space()
        yield from self.scanner.expect("<end_function_call>")
