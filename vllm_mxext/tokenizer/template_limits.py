"""How large the values may become that a chat template makes: looked at before they are made."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, ItemsView, Iterable, Iterator, KeysView, Mapping, Sequence, ValuesView
from types import GeneratorType
from typing import Any

import jinja2.exceptions

MAX_RENDERED_CHARS = 32 * 1024 * 1024
"""Longest text a template may make, in characters."""

_MAX_INTEGER_BITS = 4096
_MAX_ROUNDED_DIGITS = 300
_MAX_PARTS = 1_000_000
_WIDE_FORMAT = re.compile(r"%[^%a-zA-Z(]*(\*|[0-9]{6,})")
_WIDE_FIELD = re.compile(r"[0-9]{6,}|\{[^{}]*\{")
"""A width of six digits, or one that is a field itself."""

_CONTAINERS = (Mapping, list, tuple, set, frozenset, KeysView, ValuesView, ItemsView)


class TemplateLimitError(jinja2.exceptions.SecurityError):
    """A template takes too long or makes something too large."""


def check_length(num_items: int) -> None:
    """Refuses texts and lists that are too long.

    Raises:
        TemplateLimitError: so many are too many.
    """
    if num_items > MAX_RENDERED_CHARS:
        raise TemplateLimitError(f"it makes more than {MAX_RENDERED_CHARS} characters; shorten the messages")


def check_text(value: Any) -> int:
    """Returns about how many characters a value has as text; parts that it holds several times count each time.

    Raises:
        TemplateLimitError: it has too many.
    """
    size, num_parts, open_values = 0, 0, [value]
    while open_values:
        one = open_values.pop()
        size += len(one) if isinstance(one, (str, bytes, list, tuple)) else 1
        if isinstance(one, (list, tuple)):
            parts: Sequence[Any] = one
        elif isinstance(one, (str, bytes, int, float)) or not isinstance(one, _CONTAINERS):
            parts = ()
        else:
            parts = [*one, *one.values()] if isinstance(one, Mapping) else [*one]
        num_parts += len(parts)
        if num_parts > _MAX_PARTS:
            raise TemplateLimitError(f"it writes a value with more than {_MAX_PARTS} parts; shorten the messages")
        open_values += parts
        check_length(size)
    return size


def check_operator(operator: str, left: Any, right: Any) -> None:
    """Looks at what `+`, `*`, `**` and `%` would make.

    Raises:
        TemplateLimitError: it would be too large.
    """
    if operator == "+":
        if isinstance(left, (str, list, tuple)) and isinstance(right, (str, list, tuple)):
            check_length(len(left) + len(right))
    elif operator == "%":
        if isinstance(left, str):
            _check_percent(left, right)
    else:
        _check_product(operator, left, right)


def _check_product(operator: str, left: Any, right: Any) -> None:
    for repeated, count in ((left, right), (right, left)):
        if isinstance(repeated, (str, list, tuple)) and isinstance(count, int):
            check_length(len(repeated) * max(count, 0))
    if isinstance(left, int) and isinstance(right, int):
        factor = max(right, 0) if operator == "**" else 1
        num_bits = left.bit_length() * factor + (right.bit_length() if operator == "*" else 0)
        if num_bits > _MAX_INTEGER_BITS:
            raise TemplateLimitError("it computes with a number that is too large")


def _check_percent(template: str, values: Any) -> None:
    if _WIDE_FORMAT.search(template):
        raise TemplateLimitError("it formats a text that is too wide")
    parts = values.values() if isinstance(values, Mapping) else values if isinstance(values, tuple) else (values,)
    check_length(len(template) + template.count("%") * _largest(parts))


def _largest(values: Iterable[Any]) -> int:
    return max(map(check_text, values), default=0)


def check_format(template: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Looks at what `str.format` would make.

    Raises:
        TemplateLimitError: it would be too large.
    """
    if _WIDE_FIELD.search(template):
        raise TemplateLimitError("it formats a text that is too wide")
    check_length(len(template) + template.count("{") * _largest([*args, *kwargs.values()]))


def checked_arguments(function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Sequence[Any]:
    """Looks at what a method of a text or number would make; returns its arguments, with lists for generators.

    Raises:
        TemplateLimitError: it would be too large.
    """
    size_of = _METHODS.get(getattr(function, "__name__", ""))
    owner = getattr(function, "__self__", None)
    if size_of is None or not isinstance(owner, (str, bytes, int)):
        return args
    args = [list(_counted(one)) if isinstance(one, GeneratorType) else one for one in args]
    check_length(size_of(owner, [*args, *kwargs.values()]))
    return args


def _width(_: Any, args: Sequence[Any]) -> int:
    return max((one for one in args if isinstance(one, int)), default=0)


def _expanded(owner: Any, args: Sequence[Any]) -> int:
    num_tabs: int = owner.count("\t" if isinstance(owner, str) else b"\t")
    return len(owner) + num_tabs * (_width(owner, args) or 8)


def _replaced(owner: Any, args: Sequence[Any]) -> int:
    old, new = args[:2]
    return len(owner) + str(owner).count(str(old)) * len(str(new))


def _joined(owner: Any, args: Sequence[Any]) -> int:
    parts = args[0] if args and isinstance(args[0], _CONTAINERS) else ()
    return check_text(parts) + len(parts) * len(owner)


def _translated(owner: Any, args: Sequence[Any]) -> int:
    return len(owner) * check_text(args)


_METHODS: dict[str, Callable[[Any, Sequence[Any]], int]] = {
    "ljust": _width, "rjust": _width, "center": _width, "zfill": _width, "to_bytes": _width, "expandtabs": _expanded,
    "replace": _replaced, "join": _joined, "translate": _translated,
}  # fmt: skip
"""Methods that make more than they are given, and how much at most."""


def guarded_filters(filters: Mapping[str, Callable[..., Any]]) -> dict[str, Callable[..., Any]]:
    """Returns filters that look at what they would make before they make it."""
    return {name: _guarded(name, filter_) for name, filter_ in filters.items()}


def _guarded(name: str, filter_: Callable[..., Any]) -> Callable[..., Any]:
    first = 1 if hasattr(filter_, "jinja_pass_arg") else 0
    check, makes_text = _FILTERS.get(name), name in _FROM_TEXT

    @functools.wraps(filter_)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        before, (value, *others) = args[:first], args[first:]
        if isinstance(value, GeneratorType):
            value = list(_counted(value)) if name == "join" else _counted(value)
        elif makes_text and not isinstance(value, str):
            check_text(value)
        if check is not None:
            check(value, *others, **kwargs)
        return filter_(*before, value, *others, **kwargs)

    return guarded


def _counted(values: Iterator[Any]) -> Iterator[Any]:
    size = 0
    for value in values:
        size += len(value) if isinstance(value, (str, bytes, list, tuple)) else 1
        check_length(size)
        yield value


def _center(_: Any, width: int = 80) -> None:
    check_length(width)


def _indent(value: Any, width: int | str = 4, *_: Any, **__: Any) -> None:
    check_length((str(value).count("\n") + 1) * (width if isinstance(width, int) else len(width)))


def _format(value: Any, *args: Any, **kwargs: Any) -> None:
    _check_percent(str(value), kwargs or args)


def _replace(value: Any, old: Any, new: Any, *_: Any, **__: Any) -> None:
    text, old = str(value), str(old)
    check_length(len(text) + text.count(old) * len(str(new)))


def _join(value: Any, d: Any = "", *_: Any, **__: Any) -> None:
    if isinstance(value, (str, *_CONTAINERS)):
        check_length(check_text(value) + len(value) * len(str(d)))


def _fill(_: Any, count: int = 0, *__: Any, **kwargs: Any) -> None:
    check_length(kwargs.get("slices", kwargs.get("linecount", count)))


def _wordwrap(value: Any, *args: Any, **kwargs: Any) -> None:
    check_length(check_text(value) * (1 + check_text([args, kwargs])))


def _round(_: Any, precision: int = 0, *__: Any, **___: Any) -> None:
    if abs(precision) > _MAX_ROUNDED_DIGITS:
        raise TemplateLimitError("it computes with a number that is too large")


def _json(value: Any, _: Any = None, indent: Any = None, separators: Any = (), **__: Any) -> None:
    width = indent if isinstance(indent, int) else 0
    check_length(check_text(value) * (1 + width + check_text(separators)))


_FROM_TEXT = frozenset({
    "string", "upper", "lower", "title", "capitalize", "trim", "striptags", "escape", "e", "forceescape", "urlize",
    "urlencode", "truncate", "wordcount", "xmlattr", "pprint", "reverse", "sum", "center", "indent", "format",
    "replace", "wordwrap", "tojson",
})  # fmt: skip
"""Filters that make a text of any value, or add up what is in it."""

_FILTERS: dict[str, Callable[..., None]] = {
    "center": _center, "indent": _indent, "format": _format, "replace": _replace, "join": _join, "batch": _fill,
    "slice": _fill, "wordwrap": _wordwrap, "round": _round, "tojson": _json,
}  # fmt: skip
"""Filters that make more than they are given, and what looks at it."""
