"""Tool calls that are JSON objects with a name and arguments, between markers or bare."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from vllm_mxext.parsing.events import ParserContext
from vllm_mxext.parsing.literals import JSON, loads, read_value
from vllm_mxext.parsing.scanner import MalformedError, Markers, Steps, ignore
from vllm_mxext.parsing.stream_parser import ToolParser

_ARGUMENT_KEYS = ("arguments", "parameters")
_LIKELY_FIRST_KEYS = frozenset({"name", "type", "id", *_ARGUMENT_KEYS})


@dataclass(frozen=True, slots=True)
class JsonCallFormat:
    """Where the JSON of calls stands.

    Attributes:
        begins: markers before the JSON.
        ends: markers behind it.
        bare: brackets with which a text that begins with calls may begin, without any marker.
        separators: texts between bare objects.
        needs_arguments: an object without arguments is no call; otherwise it is a call without arguments.
        needs_known_name: an object that names no function of the request is no call, if the request has functions.
    """

    begins: tuple[str, ...]
    ends: tuple[str, ...] = ()
    bare: str = ""
    separators: tuple[str, ...] = ()
    needs_arguments: bool = False
    needs_known_name: bool = False


class JsonCallParser(ToolParser):
    """Reads `{"name": ..., "arguments": {...}}`, alone, several in a row or in an array.

    `parameters` means `arguments`; their order does not matter; arguments may be a string that holds the object, or
    null. Names that the request does not know are passed on, as in vLLM, unless the format says otherwise. Where there
    is no marker, an object that does not begin with one of the usual keys is not waited for.
    """

    format: ClassVar[JsonCallFormat]

    def __init__(self, context: ParserContext) -> None:
        super().__init__(context)
        self._begins = Markers(*self.format.begins)
        self._ends = Markers(*self.format.ends) if self.format.ends else None

    def run(self) -> Steps[None]:
        """Reads content and calls in turn."""
        yield from self.scanner.space(self.content)
        if (yield from self._is_bare_call()):
            yield from self.attempt("", self.read_calls(is_marked=False))
        while (begin := (yield from self.scanner.until(self._begins, self.content))) is not None:
            yield from self.attempt(begin, self.read_calls(is_marked=True))
            yield from self._read_end()
        self.end_content()

    def _is_bare_call(self) -> Steps[bool]:
        """Whether the text may begin with a call that has no marker."""
        if not self.format.bare or (yield from self.scanner.starts_with(*self.format.begins)):
            return False
        return (yield from self.scanner.peek()) in tuple(self.format.bare)

    def _read_end(self) -> Steps[None]:
        """Reads the end marker, if calls have been read before it."""
        if self.format.ends and self.is_behind_call:
            yield from self.scanner.space()
            yield from self.scanner.literal(*self.format.ends)

    def read_calls(self, *, is_marked: bool) -> Steps[None]:
        """Reads objects or an array of objects.

        Args:
            is_marked: a marker came before.
        """
        yield from self.scanner.space()
        if (yield from self.scanner.literal("[")):
            yield from self._read_array(is_marked=is_marked)
            return
        yield from self._read_object(is_marked=is_marked)
        while True:
            self.scanner.hold()
            yield from self.scanner.space()
            if self.format.separators:
                yield from self.scanner.literal(*self.format.separators)
                yield from self.scanner.space()
            if (yield from self.scanner.peek()) != "{":
                self.scanner.release()
                return
            yield from self._read_object(is_marked=is_marked)

    def _read_array(self, *, is_marked: bool) -> Steps[None]:
        following = ","
        while following == ",":
            yield from self.scanner.space()
            yield from self._read_object(is_marked=is_marked)
            self.scanner.hold()
            yield from self.scanner.space()
            following = yield from self.scanner.expect(",", "]")

    def _read_object(self, *, is_marked: bool) -> Steps[None]:
        """Reads one call.

        Raises:
            MalformedError: it is none, or breaks off.
        """
        yield from self.scanner.expect("{")
        name: str | None = None
        early_arguments: str | None = None
        has_begun, is_first, following = False, True, ","
        while following == ",":
            yield from self.scanner.space()
            key = yield from self.read_string()
            if is_first and not is_marked and key not in _LIKELY_FIRST_KEYS:
                raise MalformedError
            is_first = False
            yield from self.scanner.space()
            yield from self.scanner.expect(":")
            yield from self.scanner.space()
            if key == "name" and name is None:
                name = yield from self._read_name()
                if early_arguments is not None:
                    self._announce(name, early_arguments)
                    has_begun = True
            elif key not in _ARGUMENT_KEYS or has_begun or early_arguments is not None:
                yield from read_value(self.scanner, JSON, ignore)
            elif name is None:
                early_arguments = yield from self._read_early_arguments()
            else:
                yield from self._read_arguments(name)
                has_begun = True
            yield from self.scanner.space()
            following = yield from self.scanner.expect(",", "}")
        if not has_begun:
            if name is None or self.format.needs_arguments:
                raise MalformedError
            self._announce(name, "{}")

    def _read_name(self) -> Steps[str]:
        name = yield from self.read_string()
        is_known = name in self.context.tools or not self.context.tools
        if not name or (self.format.needs_known_name and not is_known):
            raise MalformedError
        return name

    def _announce(self, name: str, arguments: str) -> None:
        self.start_call(name)
        self.arguments(arguments)

    def _read_arguments(self, name: str) -> Steps[None]:
        """Announces a call and passes on its arguments, as they come if they are an object."""
        if (yield from self.scanner.peek()) == "{":
            yield from self.read_arguments(name, self._ends)
        else:
            self._announce(name, (yield from self._read_early_arguments()))

    def _read_early_arguments(self) -> Steps[str]:
        """Reads arguments to their end, and returns them as the text of an object."""
        pieces: list[str] = []
        yield from read_value(self.scanner, JSON, pieces.append)
        text = "".join(pieces)
        if text[0] == '"':
            text = str(loads(text)).strip()
        if text == "null":
            return "{}"
        if not isinstance(loads(text), dict):
            raise MalformedError
        return text


class HermesParser(JsonCallParser):
    """Hermes 2 Pro, Qwen 2.5 and Qwen 3: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`."""

    format = JsonCallFormat(("<tool_call>",), ("</tool_call>",))


class Llama3JsonParser(JsonCallParser):
    """Llama 3 and 4: `{"name": ..., "parameters": {...}}`, several with `;` between, after `<|python_tag|>` or bare.

    As when vLLM streams, a bare object is a call only where the text begins with it. Other things behind
    `<|python_tag|>`, such as calls of built-in tools, are content.
    """

    format = JsonCallFormat(("<|python_tag|>",), bare="{", separators=(";",), needs_arguments=True)


class GraniteParser(JsonCallParser):
    """Granite: an array of calls after `<|tool_call|>` (3.0), `<tool_call>` (3.1) or bare; Granite 4 as Hermes."""

    format = JsonCallFormat(("<|tool_call|>", "<tool_call>"), ("</tool_call>",), bare="[", needs_arguments=True)


class InternLmParser(JsonCallParser):
    """InternLM: `<|action_start|><|plugin|>{"name": ..., "parameters": {...}}<|action_end|>`."""

    format = JsonCallFormat(("<|action_start|><|plugin|>",), ("<|action_end|>",))


class JambaParser(JsonCallParser):
    """Jamba: `<tool_calls>[{"name": ..., "arguments": {...}}]</tool_calls>`."""

    format = JsonCallFormat(("<tool_calls>",), ("</tool_calls>",))


class Phi4MiniParser(JsonCallParser):
    """Phi-4-mini: `functools[{"name": ..., "arguments": {...}}]`."""

    format = JsonCallFormat(("functools",), needs_arguments=True)

    def read_calls(self, *, is_marked: bool) -> Steps[None]:
        """Reads an array; the word alone is content."""
        if (yield from self.scanner.peek()) != "[":
            raise MalformedError
        yield from super().read_calls(is_marked=is_marked)


class XlamParser(JsonCallParser):
    """xLAM: an array of calls, bare, in a code block, after `[TOOL_CALLS]` or in `<tool_call>` tags.

    A code block is one of calls if an array of objects that begin like calls stands in it.
    """

    format = JsonCallFormat(
        ("```json", "```", "[TOOL_CALLS]", "<tool_call>"), ("```", "</tool_call>"), bare="[", needs_arguments=True
    )

    def read_calls(self, *, is_marked: bool) -> Steps[None]:
        """Reads an array, wherever it stands, without waiting for objects that do not begin like calls."""
        del is_marked
        yield from super().read_calls(is_marked=False)


class GenericJsonParser(JsonCallParser):
    """Any model told to answer in JSON: an object, or an array of objects, bare or in a code block.

    Only calls of the request's own functions count, so that other answers in JSON stay content.
    """

    format = JsonCallFormat(("```json",), ("```",), bare="{[", needs_arguments=True, needs_known_name=True)

    def read_calls(self, *, is_marked: bool) -> Steps[None]:
        """Reads calls, without waiting for objects that do not begin like calls."""
        del is_marked
        yield from super().read_calls(is_marked=False)
