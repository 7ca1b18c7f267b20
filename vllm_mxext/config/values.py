"""Kinds of flag values: how text, YAML values and Python values become what the program works with."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, Literal

from vllm_mxext import envs

Arity = Literal["one", "many", "switch"]

_SUFFIXES = {
    "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12,
    "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40,
}  # fmt: skip
_BYTE_UNITS = {
    "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
    "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40,
}  # fmt: skip
_NUMBER = re.compile(r"\s*([-+]?[0-9][0-9_]*(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*\Z")


class BadValueError(ValueError):
    """A value is not of its kind; the text is the rule that it breaks."""


@dataclass(frozen=True, slots=True)
class ValueKind:
    """One kind of value.

    Attributes:
        parse: any spelling to the value; raises BadValueError with the rule, as in "must be ...".
        metavar: placeholder in help.
        arity: `switch` flags take no value on the command line and have a `--no-` form; `many` take several.
    """

    parse: Callable[[Any], Any]
    metavar: str = ""
    arity: Arity = "one"


def text(metavar: str = "TEXT") -> ValueKind:
    """A string that is not empty."""

    def parse(value: Any) -> str:
        if not isinstance(value, str) or not value:
            raise BadValueError("must be text that is not empty")
        return value

    return ValueKind(parse, metavar)


def path() -> ValueKind:
    """A path, with `~` standing for the home directory."""

    def parse(value: Any) -> Path:
        if isinstance(value, Path):
            return value
        if not isinstance(value, str) or not value:
            raise BadValueError("must be a path")
        try:
            return envs.parse_path(value)
        except ValueError as error:
            raise BadValueError(str(error)) from None

    return ValueKind(parse, "PATH")


def switch() -> ValueKind:
    """True or false."""

    def parse(value: Any) -> bool:
        if isinstance(value, bool):
            return value
        if not isinstance(value, str):
            raise BadValueError("must be true or false")
        return envs.parse_bool(value)

    return ValueKind(parse, "BOOL", "switch")


def choice(*words: str) -> ValueKind:
    """One of some words."""

    def parse(value: Any) -> str:
        if value not in words:
            raise BadValueError(f"must be one of {', '.join(words)}")
        return str(value)

    return ValueKind(parse, "{" + ",".join(words) + "}")


def integer(minimum: int, maximum: int | None = None, *, special: dict[str, int | None] | None = None) -> ValueKind:
    """A whole number; `8k` is 8,000 and `8K` is 8,192 (also m, g, t).

    Args:
        minimum: smallest value.
        maximum: largest value.
        special: words with a meaning of their own, such as `auto`.
    """
    words = special or {}
    rule = f"must be a whole number of at least {minimum}"
    if maximum is not None:
        rule = f"must be a whole number from {minimum} to {maximum}"
    if words:
        rule += f", or {' or '.join(words)}"

    def parse(value: Any) -> int | None:
        if isinstance(value, str) and value.strip().lower() in words:
            return words[value.strip().lower()]
        number = _whole_number(value, _SUFFIXES, rule)
        if str(number) in words:
            return words[str(number)]
        if number < minimum or (maximum is not None and number > maximum):
            raise BadValueError(rule)
        return number

    return ValueKind(parse, "N")


def byte_size(minimum: int) -> ValueKind:
    """A size in bytes: `2GiB` and `2G` are 2 * 2**30 bytes, `2GB` and `2g` 2 * 10**9."""
    rule = f"must be a size of at least {minimum} bytes, such as 2GiB, 512MiB or 1000000"

    def parse(value: Any) -> int:
        units = _SUFFIXES
        if isinstance(value, str) and value.strip()[-1:] in {"b", "B"}:
            units, value = _BYTE_UNITS, value.lower()
        number = _whole_number(value, units, rule)
        if number < minimum:
            raise BadValueError(rule)
        return number

    return ValueKind(parse, "BYTES")


def number(above: float, maximum: float) -> ValueKind:
    """A number greater than `above` and at most `maximum`."""
    rule = f"must be a number greater than {above:g} and at most {maximum:g}"
    return ValueKind(_number_parser(lambda value: above < value <= maximum, rule), "X")


def seconds() -> ValueKind:
    """A finite time of zero or more seconds."""
    rule = "must be a number of seconds, 0 or more"
    return ValueKind(_number_parser(lambda value: 0 <= value < float("inf"), rule), "SECONDS")


def text_list(metavar: str = "TEXT", *, separator: str | None = ",") -> ValueKind:
    """Several strings: given one after the other, as a JSON or YAML list, or separated by `separator`."""

    def parse(value: Any) -> tuple[str, ...]:
        items: list[Any] = []
        for entry in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(entry, str) and entry.lstrip().startswith("["):
                items += _json_value(entry, list, "must be a valid JSON list of texts")
            elif isinstance(entry, str) and separator:
                items += [part.strip() for part in entry.split(separator)]
            else:
                items.append(entry)
        if not all(isinstance(item, str) and item for item in items):
            raise BadValueError("must be one or more texts that are not empty")
        return tuple(items)

    return ValueKind(parse, metavar, "many")


def json_object() -> ValueKind:
    """A JSON object, or a mapping in YAML and Python."""
    rule = "must be a JSON object such as '{\"temperature\": 0.5}'"

    def parse(value: Any) -> dict[str, Any]:
        if isinstance(value, str):
            value = _json_value(value, dict, rule)
        if not isinstance(value, dict):
            raise BadValueError(rule)
        return value

    return ValueKind(parse, "JSON")


def _whole_number(value: Any, units: dict[str, int], rule: str) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise BadValueError(rule)
    if isinstance(value, int):
        return value
    match = _NUMBER.match(value)
    if match is None or (match[2] and match[2] not in units):
        raise BadValueError(rule)
    amount = Decimal(match[1].replace("_", "")) * units.get(match[2], 1)
    if amount != amount.to_integral_value():
        raise BadValueError(rule)
    return int(amount)


def _number_parser(holds: Callable[[float], bool], rule: str) -> Callable[[Any], float]:
    def parse(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float, str)):
            raise BadValueError(rule)
        try:
            result = float(Decimal(value)) if isinstance(value, str) else float(value)
        except (InvalidOperation, OverflowError):
            raise BadValueError(rule) from None
        if not holds(result):
            raise BadValueError(rule)
        return result

    return parse


def _json_value(source: str, kind: type, rule: str) -> Any:
    try:
        value = json.loads(source)
    except ValueError:
        raise BadValueError(rule) from None
    if not isinstance(value, kind):
        raise BadValueError(rule)
    return value
