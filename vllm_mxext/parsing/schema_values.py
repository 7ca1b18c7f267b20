"""Values that models write as bare text, as JSON of the type that the function's schema asks for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from vllm_mxext.parsing.events import ParserContext
from vllm_mxext.parsing.literals import JSON, PYTHON, convert, escape, number
from vllm_mxext.parsing.scanner import SPACE

_TYPE_NAMES = {
    "int": "integer", "long": "integer", "short": "integer", "uint": "integer", "float": "number", "double": "number",
    "bool": "boolean", "str": "string", "text": "string", "enum": "string", "varchar": "string", "char": "string",
    "dict": "object", "map": "object", "list": "array", "arr": "array", "tuple": "array",
}  # fmt: skip
_VALUE_TYPES = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}
_CHOICES = ("anyOf", "oneOf", "allOf")
_MAX_DEPTH = 8
_INTEGER = re.compile(r"[-+]?[0-9]+(?:\.0*)?")
BRACKETS = {"object": "{", "array": "["}
"""What values of a type begin with."""


def parameter_types(context: ParserContext, function: str, parameter: str) -> frozenset[str]:
    """Returns the JSON types that a parameter of a function may have; none if nothing is known of it."""
    description = context.tools.get(function)
    schema = description.get("parameters") if isinstance(description, Mapping) else None
    properties = schema.get("properties") if isinstance(schema, Mapping) else None
    found = properties.get(parameter) if isinstance(properties, Mapping) else None
    return types_of(found, definitions_of(schema))


def types_of(schema: Any, definitions: Mapping[str, Any]) -> frozenset[str]:
    """Returns the JSON types that values of a schema may have; none if nothing is known of them."""
    return frozenset(_types(schema, definitions, _MAX_DEPTH))


def definitions_of(schema: Any) -> Mapping[str, Any]:
    """Returns what a schema defines: reference -> definition."""
    if not isinstance(schema, Mapping):
        return {}
    return {
        f"#/{key}/{name}": definition
        for key in ("$defs", "definitions")
        if isinstance(schema.get(key), Mapping)
        for name, definition in schema[key].items()
    }


def _types(schema: Any, definitions: Mapping[str, Any], depth: int) -> set[str]:
    if not isinstance(schema, Mapping) or not depth:
        return set()
    written = schema.get("type")
    names = written if isinstance(written, list) else [written]
    found = {_TYPE_NAMES.get(name.lower(), name.lower()) for name in names if isinstance(name, str)}
    values = [*_listed(schema.get("enum")), *([schema["const"]] if "const" in schema else [])]
    found |= {"null" if value is None else _VALUE_TYPES.get(type(value), "string") for value in values}
    for choice in (choice for key in _CHOICES for choice in _listed(schema.get(key))):
        found |= _types(choice, definitions, depth - 1)
    reference = schema.get("$ref")
    if isinstance(reference, str):
        found |= _types(definitions.get(reference), definitions, depth - 1)
    return found


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def to_json(text: str, types: frozenset[str], *, guesses: bool = False) -> str:
    """Returns bare text as JSON.

    The types are tried in the order null, integer, number, boolean, object, array; text that fits none of them is a
    string, as in vLLM's parsers.

    Args:
        text: the value as written.
        types: JSON types that it may have; none = it is not known.
        guesses: text of unknown type that reads as a literal is that literal, otherwise a string.
    """
    bare = text.strip(SPACE)
    found: str | None = None
    if types:
        found = _typed(bare, types)
    elif guesses:
        found = convert(bare, JSON) or convert(bare, PYTHON)
    return f'"{escape(text)}"' if found is None else found


def _typed(bare: str, types: frozenset[str]) -> str | None:
    """Returns a value as JSON of the first type that it fits, strings apart."""
    if bare.lower() in {"null", "none"} and ("null" in types or "string" not in types):
        return "null"
    if "integer" in types and _INTEGER.fullmatch(bare):
        return number(bare.split(".", maxsplit=1)[0])
    if "number" in types and (found := number(bare)):
        return found
    if "boolean" in types and bare.lower() in {"true", "false"}:
        return bare.lower()
    is_container = any(kind in types and bare[:1] == bracket for kind, bracket in BRACKETS.items())
    return (convert(bare, JSON) or convert(bare, PYTHON)) if is_container else None
