"""Whether the options of a `oneOf` exclude each other: by type, or by a required property with a fixed value."""

from __future__ import annotations

import itertools
import json
from typing import Any

from vllm_mxext.native.structured.keywords import ANNOTATIONS

_MAX_REFERENCES = 16
_MAX_OPTIONS = 256
_ALL_TYPES = frozenset({"null", "boolean", "number", "string", "array", "object"})
_TYPE_OF_VALUE = {type(None): "null", bool: "boolean", int: "number", float: "number", str: "string", list: "array"}


class ExclusiveOptions:
    """Looks through references within one document.

    Args:
        root: the document.
    """

    def __init__(self, root: dict[str, Any]) -> None:
        self._root = root

    def holds(self, options: list[Any]) -> bool:
        """Whether no value can fit two of these schemas; False where that is not plain."""
        if len(options) > _MAX_OPTIONS:
            return False
        resolved = [self._resolved(option) for option in options]
        kinds = [(self._types(one), self._marks(one)) for one in resolved]
        return all(_exclude(one, other) for one, other in itertools.combinations(kinds, 2))

    def _resolved(self, schema: Any) -> dict[str, Any]:
        """Follows plain references; what is no object, or lies outside of the document, says nothing."""
        for _ in range(_MAX_REFERENCES):
            if not isinstance(schema, dict):
                break
            if schema.keys() - ANNOTATIONS != {"$ref"}:
                return schema
            schema = self._look_up(str(schema["$ref"]))
        return {}

    def _look_up(self, reference: str) -> Any:
        if not reference.startswith("#/"):
            return None
        found: Any = self._root
        for part in reference[2:].split("/"):
            if not isinstance(found, dict):
                return None
            found = found.get(part.replace("~1", "/").replace("~0", "~"))
        return found

    def _types(self, schema: dict[str, Any]) -> frozenset[str]:
        """Returns the types that a schema leaves; integers are numbers."""
        values = _fixed_values(schema)
        if values is not None:
            return frozenset(_TYPE_OF_VALUE.get(type(value), "object") for value in values)
        given = schema.get("type", sorted(_ALL_TYPES))
        names = [given] if isinstance(given, str) else given if isinstance(given, list) else sorted(_ALL_TYPES)
        return frozenset("number" if name == "integer" else str(name) for name in names)

    def _marks(self, schema: dict[str, Any]) -> dict[str, frozenset[str]]:
        """Returns the required properties of an object that have one of a few values."""
        properties, required = schema.get("properties"), schema.get("required")
        if not isinstance(properties, dict) or not isinstance(required, list):
            return {}
        marks = {}
        for name in required:
            values = _fixed_values(self._resolved(properties.get(name) if isinstance(name, str) else None))
            if values is not None:
                marks[name] = frozenset(_text_of(value) for value in values)
        return marks


def _text_of(value: Any) -> str:
    """Returns a text that equal values share, such as 1 and 1.0."""
    is_whole = isinstance(value, float) and value.is_integer()
    return json.dumps(int(value) if is_whole else value, sort_keys=True)


def _fixed_values(schema: dict[str, Any]) -> list[Any] | None:
    if "const" in schema:
        return [schema["const"]]
    values = schema.get("enum")
    return values if isinstance(values, list) else None


def _exclude(
    one: tuple[frozenset[str], dict[str, frozenset[str]]], other: tuple[frozenset[str], dict[str, frozenset[str]]]
) -> bool:
    (types, marks), (other_types, other_marks) = one, other
    common = types & other_types
    if not common:
        return True
    if common != {"object"}:
        return False
    return any(not (marks[name] & other_marks[name]) for name in marks.keys() & other_marks.keys())
