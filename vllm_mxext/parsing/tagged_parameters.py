"""Tool calls whose parameters stand one by one between tags, their values as bare text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import ClassVar

from vllm_mxext.parsing.events import ParserContext
from vllm_mxext.parsing.literals import escape
from vllm_mxext.parsing.scanner import SPACE, MalformedError, Markers, Steps
from vllm_mxext.parsing.schema_values import BRACKETS, parameter_types, to_json
from vllm_mxext.parsing.stream_parser import ToolParser

_NAME = re.compile(r"[\w.:/-]+")
_KEY = re.compile(r"[^\n<>\"']+")


class _Value:
    """A parameter's value as it comes: strings are passed on at once, others when they are complete."""

    def __init__(self, parser: TaggedParameterParser, types: frozenset[str]) -> None:
        self._parser = parser
        self._types = types
        self._is_string = types == {"string"} or (not types and not parser.guesses_types)
        self._pieces: list[str] = []
        self._newlines = ""
        self._has_begun = False
        self._strings = None if self._is_string else _JsonStrings(types)
        if self._is_string:
            parser.arguments('"')

    @property
    def is_in_string(self) -> bool:
        """Whether what comes next belongs to a string in an object or array."""
        return self._strings is not None and self._strings.is_inside

    def add(self, text: str) -> None:
        """Takes more of the value; one line break at either end belongs to the format."""
        if not text:
            return
        if not self._has_begun and self._parser.trims_lines:
            text = text.removeprefix("\n")
        self._has_begun = True
        text = self._newlines + text
        self._newlines = "\n" if self._parser.trims_lines and text.endswith("\n") else ""
        text = text.removesuffix("\n") if self._newlines else text
        if self._is_string:
            self._parser.arguments(escape(text))
        else:
            self._pieces.append(text)
        if self._strings is not None:
            self._strings.read(text)

    def end(self) -> None:
        """Notes that the value is complete."""
        if self._is_string:
            self._parser.arguments('"')
        else:
            self._parser.arguments(to_json("".join(self._pieces), self._types, guesses=self._parser.guesses_types))


class _JsonStrings:
    """Follows the strings in a value that is an object or array.

    Args:
        types: JSON types that the value may have.
    """

    def __init__(self, types: frozenset[str]) -> None:
        self._brackets = tuple(bracket for kind, bracket in BRACKETS.items() if kind in types)
        self._has_begun = self._is_escaped = False
        self.is_inside = False

    def read(self, text: str) -> None:
        """Takes more of the value; a line break within a string says that the value is no JSON."""
        if not self._has_begun and (text := text.lstrip(SPACE)):
            self._has_begun = True
            self._brackets = self._brackets if text.startswith(self._brackets) else ()
        for char in text if self._brackets else "":
            if char == "\n" and self.is_inside:
                self._brackets, self.is_inside = (), False
                return
            if char == '"' and not self._is_escaped:
                self.is_inside = not self.is_inside
            self._is_escaped = char == "\\" and self.is_inside and not self._is_escaped


class Ends:
    """What may end a parameter's value.

    Args:
        followers: end tag -> what comes behind it, after white space, for elsewhere the tag is part of the value; none
            if anything may come.
    """

    def __init__(self, followers: Mapping[str, tuple[str, ...]]) -> None:
        self.markers = Markers(*followers)
        self.followers = followers


class TaggedParameterParser(ToolParser):
    """Writes parameters as JSON arguments, converted to the types of the function's schema.

    A call that breaks off has arguments that break off too, so that nobody takes it for complete.

    Attributes:
        trims_lines: a line break at either end of a value belongs to the format.
        guesses_types: values of unknown type are read as literals if possible, otherwise they are strings.
    """

    trims_lines: ClassVar[bool] = False
    guesses_types: ClassVar[bool] = False

    def __init__(self, context: ParserContext) -> None:
        super().__init__(context)
        self._function = ""
        self._num_parameters = 0

    def begin_function(self, name: str) -> None:
        """Announces a call."""
        if not name:
            raise MalformedError
        self._function, self._num_parameters = name, 0
        self.start_call(name)
        self.arguments("{")

    def read_parameter(self, key: str, ends: Ends, types: frozenset[str] | None = None) -> Steps[str]:
        """Reads a value, and passes on key and value.

        Args:
            key: name of the parameter.
            ends: what ends the value.
            types: JSON types that it may have; None = those of the function's schema.

        Returns:
            The end.

        Raises:
            MalformedError: the value does not end.
        """
        self.arguments(f'{", " if self._num_parameters else ""}"{escape(key)}": ')
        self._num_parameters += 1
        value = _Value(self, parameter_types(self.context, self._function, key) if types is None else types)
        while (end := (yield from self.scanner.until(ends.markers, value.add))) is not None:
            space: list[str] = []
            followers = ends.followers[end]
            if followers:
                yield from self.scanner.space(space.append)
            # no string of JSON has a line break, so one tells the end from a text about ends
            is_text = value.is_in_string and "\n" not in "".join((end, *space))
            if not is_text and (not followers or (yield from self.scanner.starts_with(*followers))):
                value.end()
                return end
            if not (yield from self.scanner.peek()):
                value.end()
                break
            value.add(end + "".join(space))
        raise MalformedError

    def end_function(self) -> None:
        """Passes on the end of the arguments."""
        self.arguments("}")


class Qwen3CoderParser(TaggedParameterParser):
    """Qwen3-Coder: `<tool_call><function=NAME><parameter=KEY>VALUE</parameter>...</function></tool_call>`.

    The outer tags may be missing. A missing `</parameter>` before the next parameter or the end of the function is
    forgiven, as in vLLM; a `</parameter>` within a value, as in code about this format, does not end it.
    """

    trims_lines = True

    _BEGINS = Markers("<tool_call>", "<function=")
    _FUNCTION_ENDS = ("</function>", "</tool_call>")
    _ENDS = Ends({
        "</parameter>": ("<parameter=", *_FUNCTION_ENDS),
        "\n<parameter=": (),
        "</function>": ("</tool_call>", "<tool_call>", "<function="),
    })  # fmt: skip

    def run(self) -> Steps[None]:
        """Reads content and calls in turn."""
        while (begin := (yield from self.scanner.until(self._BEGINS, self.content))) is not None:
            yield from self.attempt(begin, self._read_calls(begin))
        self.end_content()

    def _read_calls(self, begin: str) -> Steps[None]:
        if begin == "<tool_call>":
            yield from self.scanner.space()
            yield from self.scanner.expect("<function=")
        following: str | None = "<function="
        while following == "<function=":
            yield from self._read_function()
            yield from self.scanner.space()
            following = yield from self.scanner.literal("<function=", "</tool_call>")

    def _read_function(self) -> Steps[None]:
        self.scanner.hold("<function=" if not self.scanner.is_holding else self.scanner.release())
        name = yield from self.scanner.word(_NAME)
        yield from self.scanner.expect(">")
        yield from self.scanner.space()
        following = yield from self.scanner.expect("<parameter=", *self._FUNCTION_ENDS)
        self.begin_function(name)
        while following not in self._FUNCTION_ENDS:
            key = (yield from self.scanner.word(_KEY)).strip(SPACE)
            yield from self.scanner.expect(">")
            following = yield from self.read_parameter(key, self._ENDS)
            if following == "</parameter>":
                yield from self.scanner.space()
                following = yield from self.scanner.expect("<parameter=", *self._FUNCTION_ENDS)
        self.end_function()


class BlockParser(TaggedParameterParser):
    """Calls between two markers around all of them.

    Attributes:
        block_begin: marker before the calls.
        call_begin: text with which each of them begins.
        block_end: marker behind the last one.
    """

    block_begin: ClassVar[Markers]
    call_begin: ClassVar[str]
    block_end: ClassVar[str]

    def run(self) -> Steps[None]:
        """Reads content and calls in turn."""
        while (begin := (yield from self.scanner.until(self.block_begin, self.content))) is not None:
            yield from self.attempt(begin, self._read_calls())
        self.end_content()

    def _read_calls(self) -> Steps[None]:
        yield from self.scanner.space()
        following = yield from self.scanner.expect(self.call_begin)
        while following == self.call_begin:
            yield from self._read_function()
            self.scanner.hold()
            yield from self.scanner.space()
            following = yield from self.scanner.expect(self.call_begin, self.block_end)

    def _read_function(self) -> Steps[None]:
        """Reads one call, of which the beginning has been read."""
        raise NotImplementedError


class MinimaxM2Parser(BlockParser):
    """MiniMax M2: `<minimax:tool_call><invoke name="NAME"><parameter name="KEY">VALUE</parameter></invoke>...`."""

    trims_lines = True

    block_begin = Markers("<minimax:tool_call>")
    call_begin = "<invoke name="
    block_end = "</minimax:tool_call>"

    _ENDS = Ends({"</parameter>": ("<parameter name=", "</invoke>")})

    def _read_function(self) -> Steps[None]:
        name = yield from self._read_quoted(_NAME)
        yield from self.scanner.space()
        following = yield from self.scanner.expect("<parameter name=", "</invoke>")
        self.begin_function(name)
        while following != "</invoke>":
            key = yield from self._read_quoted(_KEY)
            yield from self.read_parameter(key, self._ENDS)
            yield from self.scanner.space()
            following = yield from self.scanner.expect("<parameter name=", "</invoke>")
        self.end_function()

    def _read_quoted(self, pattern: re.Pattern[str]) -> Steps[str]:
        """Reads a name in quotes of either kind, or in none, and the end of its tag."""
        quote = yield from self.scanner.literal('"', "'")
        name = yield from self.scanner.word(pattern)
        yield from self.scanner.expect((quote or "") + ">")
        return name


class Glm45Parser(TaggedParameterParser):
    """GLM 4.5 and later: `<tool_call>NAME<arg_key>KEY</arg_key><arg_value>VALUE</arg_value>...</tool_call>`.

    Line breaks may stand between the tags. Values of unknown type are literals if they read as such, as in vLLM.
    """

    guesses_types = True

    _BEGIN = Markers("<tool_call>")
    _ENDS = Ends({"</arg_value>": ("<arg_key>", "</tool_call>")})

    def run(self) -> Steps[None]:
        """Reads content and calls in turn."""
        while (begin := (yield from self.scanner.until(self._BEGIN, self.content))) is not None:
            yield from self.attempt(begin, self._read_call())
        self.end_content()

    def _read_call(self) -> Steps[None]:
        yield from self.scanner.space()
        name = yield from self.scanner.word(_NAME)
        yield from self.scanner.space()
        following = yield from self.scanner.expect("<arg_key>", "</tool_call>")
        self.begin_function(name)
        while following == "<arg_key>":
            key = (yield from self.scanner.word(_KEY)).strip(SPACE)
            yield from self.scanner.expect("</arg_key>")
            yield from self.scanner.space()
            yield from self.scanner.expect("<arg_value>")
            yield from self.read_parameter(key, self._ENDS)
            yield from self.scanner.space()
            following = yield from self.scanner.expect("<arg_key>", "</tool_call>")
        self.end_function()


class DeepSeekV32Parser(BlockParser):
    """DeepSeek V3.2: `<｜DSML｜function_calls>`, then calls with parameters that say whether they are strings.

    A call is `<｜DSML｜invoke name="NAME">` and one JSON object with all arguments, or for each parameter
    `<｜DSML｜parameter name="KEY" string="true">VALUE</｜DSML｜parameter>`.
    """

    guesses_types = True

    block_begin = Markers("<｜DSML｜function_calls>")
    call_begin = '<｜DSML｜invoke name="'
    block_end = "</｜DSML｜function_calls>"

    _CALL_END = "</｜DSML｜invoke>"
    _PARAMETER = '<｜DSML｜parameter name="'
    _ENDS = Ends({"</｜DSML｜parameter>": (_PARAMETER, _CALL_END)})
    _JSON_ENDS = Markers(_CALL_END)

    def _read_function(self) -> Steps[None]:
        name = yield from self.scanner.word(_NAME)
        yield from self.scanner.expect('">')
        yield from self.scanner.space()
        if name and (yield from self.scanner.peek()) == "{":
            yield from self.read_arguments(name, self._JSON_ENDS)
            self.scanner.hold()
            yield from self.scanner.space()
            yield from self.scanner.expect(self._CALL_END)
            return
        following = yield from self.scanner.expect(self._PARAMETER, self._CALL_END)
        self.begin_function(name)
        while following != self._CALL_END:
            key = yield from self.scanner.word(_KEY)
            kind = yield from self.scanner.expect('" string="true">', '" string="false">', '">')
            yield from self.read_parameter(key, self._ENDS, frozenset({"string"}) if "true" in kind else None)
            yield from self.scanner.space()
            following = yield from self.scanner.expect(self._PARAMETER, self._CALL_END)
        self.end_function()
