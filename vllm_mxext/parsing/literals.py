"""Literals as models write them (JSON, Python, FunctionGemma), read piece by piece and passed on as JSON text."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vllm_mxext.parsing.scanner import SPACE, MalformedError, Scanner, Sink, Steps, ignore

_JSON_RUN = re.compile(r'[^"\\\x00-\x1f]+')
_QUOTED_RUNS = {quote: re.compile(rf"[^{quote}\\\x00-\x1f]+") for quote in "'\""}
_SCALAR_RUN = re.compile(r"[-+.\w]+")
_HEX_RUN = re.compile(r"[0-9a-fA-F]")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?")
_LOOSE_NUMBER = re.compile(r"([-+]?)([0-9]*)(?:\.([0-9]*))?([eE][-+]?[0-9]+)?")
_SURROGATE = re.compile("[\ud800-\udfff]")
_JSON_WORDS = ("true", "false", "null")
_PYTHON_WORDS = {**{word: word for word in _JSON_WORDS}, "True": "true", "False": "false", "None": "null"}
_PYTHON_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "a": "\a", "v": "\v", "0": "\0", "\n": ""}
_HEX_ESCAPES = {"x": 2, "u": 4, "U": 8}
_MAX_CODE_POINT = 0x10FFFF


@dataclass(frozen=True, slots=True)
class Dialect:
    """A notation of literals.

    Attributes:
        read_string: reads a string and passes on JSON text; False, and nothing is read, if none begins here.
        read_key: reads a key of an object and passes on a JSON string.
        read_scalar: reads a number or a word and passes on JSON text.
        keeps_space: white space is passed on, otherwise written anew.
        has_trailing_commas: a comma may come before a closing bracket.
    """

    read_string: Callable[[Scanner, Sink], Steps[bool]]
    read_key: Callable[[Scanner, Sink], Steps[None]]
    read_scalar: Callable[[Scanner, Sink], Steps[None]]
    keeps_space: bool = False
    has_trailing_commas: bool = False


def read_value(scanner: Scanner, dialect: Dialect, sink: Sink) -> Steps[None]:
    """Reads one value of any depth, and passes it on as JSON text as soon as each part is certain.

    Raises:
        MalformedError: the text is not of the dialect, or ends within the value.
    """
    space = sink if dialect.keeps_space else ignore
    closings: list[str] = []
    while True:
        yield from scanner.space(space)
        if (yield from scanner.peek()) in {"{", "["}:
            bracket = scanner.take()
            sink(bracket)
            closings.append("}" if bracket == "{" else "]")
            yield from scanner.space(space)
            if (yield from scanner.peek()) != closings[-1]:
                yield from _item_start(scanner, dialect, sink, closings[-1])
                continue
        elif not (yield from dialect.read_string(scanner, sink)):
            yield from dialect.read_scalar(scanner, sink)
        if not (yield from _value_end(scanner, dialect, sink, closings)):
            return


def _value_end(scanner: Scanner, dialect: Dialect, sink: Sink, closings: list[str]) -> Steps[bool]:
    """Reads what may stand behind a value; returns whether another one follows."""
    space = sink if dialect.keeps_space else ignore
    while closings:
        yield from scanner.space(space)
        following = yield from scanner.peek()
        if following == closings[-1]:
            sink(scanner.take())
            closings.pop()
        elif following != ",":
            raise MalformedError
        elif (yield from _after_comma(scanner, dialect, sink, closings[-1])):
            return True
    return False


def _after_comma(scanner: Scanner, dialect: Dialect, sink: Sink, closing: str) -> Steps[bool]:
    """Reads a comma and what comes before the next value, if there is one."""
    comma = scanner.take()
    if dialect.keeps_space:
        sink(comma)
    yield from scanner.space(sink if dialect.keeps_space else ignore)
    if (yield from scanner.peek()) == closing:
        if not dialect.has_trailing_commas:
            raise MalformedError
        return False
    if not dialect.keeps_space:
        sink(", ")
    yield from _item_start(scanner, dialect, sink, closing)
    return True


def _item_start(scanner: Scanner, dialect: Dialect, sink: Sink, closing: str) -> Steps[None]:
    """Reads the key of an object's member; there is none in an array."""
    if closing == "]":
        return
    space = sink if dialect.keeps_space else ignore
    yield from dialect.read_key(scanner, sink)
    yield from scanner.space(space)
    yield from scanner.expect(":")
    sink(":" if dialect.keeps_space else ": ")
    yield from scanner.space(space)


def _read_json_string(scanner: Scanner, sink: Sink) -> Steps[bool]:
    """Reads a JSON string; raw control characters and unknown escapes are repaired."""
    if (yield from scanner.peek()) != '"':
        return False
    sink(scanner.take())
    while True:
        yield from scanner.run(_JSON_RUN, sink)
        character = yield from scanner.peek()
        if not character:
            raise MalformedError
        scanner.take()
        if character == '"':
            sink(character)
            return True
        sink((yield from _json_escape(scanner)) if character == "\\" else escape(character))


def _json_escape(scanner: Scanner) -> Steps[str]:
    """Reads what follows a backslash, and returns an escape that is valid."""
    character = yield from scanner.peek()
    if not character:
        raise MalformedError
    if character == "u":
        digits = yield from _hex_digits(scanner, 4)
        return f"\\u{digits}" if len(digits) == 4 else f"\\\\u{digits}"
    if character in '"\\/bfnrt':
        return "\\" + scanner.take()
    return "\\\\"


def _hex_digits(scanner: Scanner, length: int) -> Steps[str]:
    """Reads the letter of an escape and up to `length` hexadecimal digits."""
    scanner.take()
    digits = ""
    while len(digits) < length:
        character = yield from scanner.peek()
        if not character:
            raise MalformedError
        if not _HEX_RUN.match(character):
            break
        digits += scanner.take()
    return digits


def _read_json_key(scanner: Scanner, sink: Sink) -> Steps[None]:
    if not (yield from _read_json_string(scanner, sink)):
        raise MalformedError


def _read_json_scalar(scanner: Scanner, sink: Sink) -> Steps[None]:
    word = yield from scanner.word(_SCALAR_RUN)
    sink(word)
    if word not in _JSON_WORDS and not _NUMBER.fullmatch(word):
        raise MalformedError


def _read_python_string(scanner: Scanner, sink: Sink) -> Steps[bool]:
    quote = yield from scanner.peek()
    if quote not in _QUOTED_RUNS:
        return False
    scanner.take()
    sink('"')
    while True:
        yield from scanner.run(_QUOTED_RUNS[quote], lambda text: sink(escape(text)))
        character = yield from scanner.peek()
        if not character:
            raise MalformedError
        scanner.take()
        if character == quote:
            sink('"')
            return True
        sink((yield from _python_escape(scanner)) if character == "\\" else escape(character))


def _python_escape(scanner: Scanner) -> Steps[str]:
    character = yield from scanner.peek()
    if not character:
        raise MalformedError
    length = _HEX_ESCAPES.get(character)
    if length is not None:
        digits = yield from _hex_digits(scanner, length)
        if len(digits) == length and int(digits, 16) <= _MAX_CODE_POINT:
            return escape(chr(int(digits, 16)))
        return escape(f"\\{character}{digits}")
    if character in _PYTHON_ESCAPES:
        return escape(_PYTHON_ESCAPES[scanner.take()])
    return escape(scanner.take()) if character in "\\'\"" else "\\\\"


def _read_python_key(scanner: Scanner, sink: Sink) -> Steps[None]:
    if (yield from _read_python_string(scanner, sink)):
        return
    pieces: list[str] = []
    yield from _read_python_scalar(scanner, pieces.append)
    sink(f'"{"".join(pieces)}"')


def _read_python_scalar(scanner: Scanner, sink: Sink) -> Steps[None]:
    word = yield from scanner.word(_SCALAR_RUN)
    written = _PYTHON_WORDS.get(word) or number(word)
    if written is None:
        raise MalformedError
    sink(written)


def escape(text: str) -> str:
    """Returns `text` as it stands inside a JSON string."""
    return _SURROGATE.sub(lambda match: f"\\u{ord(match[0]):04x}", json.dumps(text, ensure_ascii=False)[1:-1])


def number(text: str) -> str | None:
    """Returns a number as JSON writes it, with all its digits; None if `text` is no number."""
    if _NUMBER.fullmatch(text):
        return text
    match = _LOOSE_NUMBER.fullmatch(text)
    if match is None or not (match[2] or match[3]):
        return None
    sign, whole, fraction, exponent = match.groups()
    return f"{sign.strip('+')}{whole.lstrip('0') or '0'}{'.' + fraction if fraction else ''}{exponent or ''}"


JSON = Dialect(_read_json_string, _read_json_key, _read_json_scalar, keeps_space=True)
"""JSON text stays as it is."""

PYTHON = Dialect(_read_python_string, _read_python_key, _read_python_scalar, has_trailing_commas=True)
"""Python's strings, numbers, lists and dictionaries; no tuples, sets or string prefixes."""


def convert(text: str, dialect: Dialect) -> str | None:
    """Returns a whole text that is one literal as JSON text, or None if it is not one."""
    scanner, pieces = Scanner(), list[str]()
    scanner.feed(text)
    scanner.end()
    try:
        for _ in read_value(scanner, dialect, pieces.append):
            pass
    except MalformedError:
        return None
    rest = scanner.remaining()
    return None if rest.strip(SPACE) else "".join(pieces).strip(SPACE)


def loads(text: str) -> Any:
    """Returns the value of JSON text that a reader of this module has passed on; None if it nests too deeply."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
