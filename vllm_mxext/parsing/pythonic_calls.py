"""Tool calls written as a list of Python calls."""

from __future__ import annotations

import re

from vllm_mxext.parsing.literals import PYTHON, escape, read_value
from vllm_mxext.parsing.scanner import MalformedError, Steps
from vllm_mxext.parsing.stream_parser import ToolParser

_NAME = re.compile(r"[A-Za-z_0-9.]+")


class PythonicParser(ToolParser):
    """Llama 3.2, Llama 4, ToolACE: the text begins with `[name(key="value", other=[1, True, None]), ...]`.

    Values are literals: strings, numbers, booleans, None, lists, dictionaries. As in vLLM anything else is content;
    positional arguments, which vLLM drops, are as well. A later argument that is no literal breaks its call off.
    """

    begin_marker: str | None = None
    """Marker that may come before the list."""

    end_marker: str | None = None
    """Marker that may come behind it."""

    def run(self) -> Steps[None]:
        """Reads calls where the text begins with them, then content."""
        yield from self.scanner.space(self.content)
        begin = (yield from self.scanner.literal(self.begin_marker)) if self.begin_marker else None
        if begin is not None or (yield from self.scanner.peek()) == "[":
            yield from self.attempt(begin or "", self._read_calls())
        if self.end_marker is not None and self.is_behind_call:
            yield from self.scanner.space()
            yield from self.scanner.literal(self.end_marker)
        while (yield from self.scanner.peek()):
            self.content(self.scanner.remaining())
        self.end_content()

    def _read_calls(self) -> Steps[None]:
        yield from self.scanner.space()
        yield from self.scanner.expect("[")
        following = ","
        while following == ",":
            yield from self._read_call()
            self.scanner.hold()
            yield from self.scanner.space()
            following = yield from self.scanner.expect(",", "]")

    def _read_call(self) -> Steps[None]:
        yield from self.scanner.space()
        name = yield from self.scanner.word(_NAME)
        yield from self.scanner.expect("(")
        key = yield from self._read_key()
        if not name.replace(".", "").isidentifier():
            raise MalformedError
        self.start_call(name)
        self.arguments("{")
        separator = ""
        while key is not None:
            self.arguments(f'{separator}"{escape(key)}": ')
            separator = ", "
            yield from read_value(self.scanner, PYTHON, self.arguments)
            yield from self.scanner.space()
            if (yield from self.scanner.literal(",")):
                key = yield from self._read_key()
            else:
                yield from self.scanner.expect(")")
                key = None
        self.arguments("}")

    def _read_key(self) -> Steps[str | None]:
        """Reads the name of an argument and the sign behind it; None at the end of the call."""
        yield from self.scanner.space()
        if (yield from self.scanner.literal(")")):
            return None
        key = yield from self.scanner.word(_NAME)
        yield from self.scanner.space()
        yield from self.scanner.expect("=")
        if not key.isidentifier():
            raise MalformedError
        return key


class Llama4PythonicParser(PythonicParser):
    """Llama 4: as `pythonic`, with or without `<|python_start|>` and `<|python_end|>` around."""

    begin_marker = "<|python_start|>"
    end_marker = "<|python_end|>"
