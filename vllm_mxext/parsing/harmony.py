"""The output of gpt-oss: messages in channels, each with reasoning, an answer or a tool call."""

from __future__ import annotations

import re
from collections.abc import Callable

from vllm_mxext.parsing.events import ContentDelta, Event, ParserContext, ReasoningDelta
from vllm_mxext.parsing.scanner import MalformedError, Markers, Steps
from vllm_mxext.parsing.stream_parser import ToolParser

_RECIPIENT = re.compile(r"\bto=([^\s<]+)")
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)")
_FUNCTIONS = "functions."
_SEPARATOR = "\n\n"

_BODY_BEGIN = "<|message|>"
_HEADER_BEGINS = ("<|channel|>", "<|start|>")
_MESSAGE_ENDS = ("<|end|>", "<|call|>", "<|return|>")
_HEADER_ENDS = Markers(_BODY_BEGIN, *_MESSAGE_ENDS)
_BODY_ENDS = Markers(*_MESSAGE_ENDS, *_HEADER_BEGINS)


class HarmonyParser(ToolParser):
    """Reads channels: `analysis` is reasoning, `final` is the answer, `commentary to=functions.NAME` is a call.

    Commentary to nobody is content, a preamble of calls; messages to built-in tools are reasoning. An empty line is put
    between two messages of a kind. A text that does not begin with a channel is content.

    Args:
        context: what it may know of the request.
        reads_calls: read calls as such; otherwise their arguments are content.
    """

    def __init__(self, context: ParserContext, *, reads_calls: bool = True) -> None:
        super().__init__(context)
        self._reads_calls = reads_calls
        self._kinds_before: set[type[Event]] = set()

    def run(self) -> Steps[None]:
        """Reads messages one by one."""
        header = open_header(self.context.prompt_end)
        if header is not None:
            yield from self.attempt("", self._read_messages(header))
        else:
            yield from self.scanner.space(self.content)
            if (yield from self.scanner.starts_with(*_HEADER_BEGINS, "to=")):
                yield from self.attempt("", self._read_messages(None))
            else:
                yield from self._read_rest()
        while (marker := (yield from self.scanner.until(_BODY_ENDS, self.content))) is not None:
            if marker in _HEADER_BEGINS:
                yield from self.attempt(marker, self._read_messages(None, marker))
        self.end_content()

    def _read_rest(self) -> Steps[None]:
        while (yield from self.scanner.peek()):
            self.content(self.scanner.remaining())

    def _read_messages(self, header: str | None, begin: str = "") -> Steps[None]:
        """Reads a message, and those that follow without an end marker between.

        Args:
            header: of the first message, if it has been read.
            begin: the beginning of the header otherwise.
        """
        if header is None:
            header = yield from self._read_header(begin)
        while (end := (yield from self._read_body(header))) in _HEADER_BEGINS:
            self.scanner.hold(end)
            header = yield from self._read_header(end)

    def _read_header(self, begin: str) -> Steps[str]:
        pieces = [begin]
        if (yield from self.scanner.until(_HEADER_ENDS, pieces.append)) != _BODY_BEGIN:
            raise MalformedError
        return "".join(pieces)

    def _read_body(self, header: str) -> Steps[str]:
        """Reads a message's body, and returns what ended it; nothing at the end of the text."""
        recipient, channel = _RECIPIENT.search(header), _CHANNEL.search(header)
        is_function = recipient is not None and recipient[1].startswith(_FUNCTIONS)
        if recipient is not None and is_function and self._reads_calls:
            yield from self._read_call(recipient[1].removeprefix(_FUNCTIONS))
            return ""
        self.scanner.release()
        if (recipient is not None and not is_function) or (channel is not None and channel[1] == "analysis"):
            sink = self._message_of(ReasoningDelta, lambda text: self.emit(ReasoningDelta(text)))
        else:
            sink = self._message_of(ContentDelta, self.content)
        return (yield from self.scanner.until(_BODY_ENDS, sink)) or ""

    def _message_of(self, kind: type[Event], sink: Callable[[str], None]) -> Callable[[str], None]:
        """Returns a sink that puts an empty line before the message, if it is not the first of its kind."""
        separator = _SEPARATOR if kind in self._kinds_before else ""

        def take(text: str) -> None:
            nonlocal separator
            self._kinds_before.add(kind)
            sink(separator + text)
            separator = ""

        return take

    def _read_call(self, name: str) -> Steps[None]:
        yield from self.scanner.space()
        if (yield from self.scanner.starts_with(*_MESSAGE_ENDS)):
            self.start_call(name)
            self.arguments("{}")
        else:
            yield from self.read_arguments(name, _BODY_ENDS)


def open_header(prompt_end: str) -> str | None:
    """Returns the header of the message within which a prompt ends, or None if it does not end within one."""
    _, start, last = prompt_end.rpartition("<|start|>")
    header, begin, body = last.partition(_BODY_BEGIN)
    return header if start and begin and not any(end in body for end in _MESSAGE_ENDS) else None
