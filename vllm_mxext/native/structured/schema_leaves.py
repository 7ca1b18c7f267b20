"""A JSON schema as a choice of schemas with one type each, for notations in which each type is written differently."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vllm_mxext.native.structured.keywords import is_annotation
from vllm_mxext.native.structured.lark_rules import alternatives

_MAX_DEPTH = 8
_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
_SCALARS = {
    "null": "null",
    "boolean": "true|false",
    "integer": "-?(0|[1-9][0-9]{0,15})",
    "number": "-?(0|[1-9][0-9]{0,15})(\\.[0-9]{1,16})?([eE][-+]?[0-9]{1,2})?",
}


@dataclass(frozen=True, slots=True)
class Leaf:
    """Values of one type.

    Attributes:
        type: JSON type.
        schema: what holds for them, the type included.
        values: the only ones; None if they are not listed.
    """

    type: str
    schema: Mapping[str, Any]
    values: tuple[Any, ...] | None = None

    @property
    def is_container(self) -> bool:
        """Whether the values are objects or arrays."""
        return self.type in {"object", "array"}

    @property
    def scalar(self) -> str | None:
        """Regular expression of the values; None if there is none, as for strings, containers and numbers in bounds."""
        if self.type not in _SCALARS:
            return None
        if self.values is not None:
            return alternatives(json.dumps(value) for value in self.values)
        return None if any(keyword in self.schema for keyword in _BOUNDS) else _SCALARS[self.type]


def leaves_of(schema: Any, definitions: Mapping[str, Any], depth: int = _MAX_DEPTH) -> tuple[Leaf, ...] | None:
    """Returns the choice; empty if every value is valid, None if the schema is no plain choice.

    Args:
        schema: a checked schema.
        definitions: reference -> what it stands for.
        depth: how many references and choices may lie within one another.
    """
    if not isinstance(schema, dict) or not depth:
        return () if schema is True else None
    core = {keyword: value for keyword, value in schema.items() if not is_annotation(keyword)}
    if not core:
        return ()
    if "type" in core or "enum" in core or "const" in core:
        return _typed(core)
    options: list[tuple[Leaf, ...] | None] = [None]
    [(keyword, value), *others] = core.items()
    if keyword == "$ref" and not others:
        options = [leaves_of(definitions.get(str(value)), definitions, depth - 1)]
    elif isinstance(value, list) and not others and (keyword == "anyOf" or (keyword == "allOf" and len(value) == 1)):
        options = [leaves_of(option, definitions, depth - 1) for option in value]
    known = [option for option in options if option is not None]
    if len(known) < len(options):
        return None
    return () if () in known else tuple(leaf for option in known for leaf in option)


def _typed(core: dict[str, Any]) -> tuple[Leaf, ...] | None:
    if {"$ref", "allOf", "anyOf", "oneOf"} & core.keys():
        return None
    types = core.get("type", list(_TYPES))
    listed = core.get("enum")
    if "const" in core:
        listed = [core["const"]] if listed is None or core["const"] in listed else []
    if listed is not None and not isinstance(listed, list):
        return None
    plain = {keyword: value for keyword, value in core.items() if keyword not in ("enum", "const")}
    leaves = []
    for kind in types if isinstance(types, list) else [types]:
        if kind not in _TYPES:
            return None
        if listed is None:
            leaves.append(Leaf(kind, plain | {"type": kind}))
        elif values := _of_type(kind, listed):
            leaves.append(Leaf(kind, plain | {"type": kind, "enum": list(values)}, values))
    return tuple(leaves) or None


_TYPES: dict[str, type | tuple[type, ...]] = {
    "string": str, "null": type(None), "boolean": bool, "integer": int, "number": (int, float), "object": dict,
    "array": list,
}  # fmt: skip


def _of_type(kind: str, values: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(
        value for value in values if isinstance(value, _TYPES[kind]) and (kind == "boolean") == isinstance(value, bool)
    )
