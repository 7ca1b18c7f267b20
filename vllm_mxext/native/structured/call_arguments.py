"""Arguments of tool calls that are no JSON object: parameters between tags, Python's keywords, Gemma's notation."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vllm_mxext.errors import InvalidRequestError
from vllm_mxext.native.structured.json_schema import checked_schema
from vllm_mxext.native.structured.keywords import is_annotation
from vllm_mxext.native.structured.lark_rules import LarkRules
from vllm_mxext.native.structured.schema_leaves import Leaf, leaves_of
from vllm_mxext.native.structured.string_terminals import string_terminal
from vllm_mxext.parsing.schema_values import definitions_of, types_of

SchemaText = Callable[[Any], str]
"""Checks a JSON schema and writes it with its whitespace options, for `%json`."""

_OBJECT_KEYWORDS = frozenset(
    {"$defs", "$id", "$schema", "additionalProperties", "definitions", "id", "properties", "required", "type"}
)
_ARRAY_KEYWORDS = frozenset({"type", "items", "minItems", "maxItems"})
_PYTHON_WORDS = {"boolean": '"True" | "False"', "null": '"None"'}
_ANY_STRING = Leaf("string", {})
_MAX_DEPTH = 32
_ANY_KEY = "/[A-Za-z_][A-Za-z0-9_]*/"


@dataclass(frozen=True, slots=True)
class ArgumentStyle:
    """How arguments are written.

    Attributes:
        name: of the style, for messages.
        key: what keys may be.
        before_key: text before a key.
        before_value: text between key and value.
        after_value: text behind a value.
        separator: text between two arguments.
        around: text before and behind all of them.
        forbidden: texts that strings cannot contain.
        is_trimmed: strings cannot begin or end with a line break.
        delimiter: text before and behind strings; None if they stand bare, or in quotes as JSON.
        is_json: values are JSON, strings too.
    """

    name: str
    key: re.Pattern[str]
    before_key: str = ""
    before_value: str = ""
    after_value: str = ""
    separator: str = ""
    around: tuple[str, str] = ("", "")
    forbidden: tuple[str, ...] = ()
    is_trimmed: bool = False
    delimiter: str | None = None
    is_json: bool = False


_TAG_KEY = re.compile(r"[^\s<>\"']+(?: +[^\s<>\"']+)*")


def _gemma(name: str, delimiter: str) -> ArgumentStyle:
    return ArgumentStyle(
        name,
        re.compile(r"[^\s:{}\[\],<>\"']+"),
        before_value=":",
        separator=",",
        around=("{", "}"),
        forbidden=(delimiter,),
        delimiter=delimiter,
    )


STYLES = {
    style.name: style
    for style in (
        ArgumentStyle(
            "qwen_xml",
            _TAG_KEY,
            "<parameter=",
            ">\n",
            "\n</parameter>\n",
            forbidden=("</parameter>", "<parameter=", "</function>"),
        ),
        ArgumentStyle(
            "minimax_xml",
            _TAG_KEY,
            '<parameter name="',
            '">',
            "</parameter>\n",
            forbidden=("</parameter>",),
            is_trimmed=True,
        ),
        ArgumentStyle(
            "glm_xml",
            _TAG_KEY,
            "<arg_key>",
            "</arg_key>\n<arg_value>",
            "</arg_value>\n",
            forbidden=("</arg_value>",),
        ),
        ArgumentStyle(
            "python", re.compile(r"[A-Za-z_][A-Za-z_0-9]*"), before_value="=", separator=", ", is_json=True
        ),
        _gemma("gemma", "<escape>"),
        _gemma("gemma4", '<|"|>'),
    )
}  # fmt: skip
"""The styles by name; those of the tags have the names of xgrammar."""


class ArgumentWriter:
    """Writes the grammar of one function's arguments: declared parameters in their order, required ones present.

    Args:
        rules: takes the rules.
        schema_text: checks and writes schemas of values that are JSON.
        style: how arguments are written.
    """

    def __init__(self, rules: LarkRules, schema_text: SchemaText, style: ArgumentStyle) -> None:
        self._rules = rules
        self._schema_text = schema_text
        self._style = style
        self._root: dict[str, Any] = {}
        self._definitions: Mapping[str, Any] = {}
        self._depth = 0

    def write(self, schema: Any) -> str:
        """Returns the expression of the arguments.

        Raises:
            InvalidRequestError: the schema is malformed, or asks for what cannot be enforced in this style.
        """
        checked = checked_schema(schema)
        self._root = {key: checked[key] for key in ("$defs", "definitions") if key in checked}
        self._definitions = definitions_of(checked)
        return self._object(checked)

    def _object(self, schema: Mapping[str, Any]) -> str:
        others = _beside(_OBJECT_KEYWORDS, schema)
        if others:
            raise self._refusal(f"{others[0]!r} beside parameters")
        before, after = map(self._rules.literal, self._style.around)
        return f"{before} {self._members(schema)} {after}".strip() or '""'

    def _members(self, schema: Mapping[str, Any]) -> str:
        properties, required = schema.get("properties", {}), schema.get("required", [])
        if not isinstance(properties, dict) or not isinstance(required, list):
            raise self._refusal("properties or required of a wrong type")
        properties = {**properties, **{name: {} for name in required if name not in properties}}
        more = schema.get("additionalProperties", True)
        if not properties and more is not False:
            if more not in (True, {}):
                raise self._refusal("'additionalProperties' with a schema and without properties")
            return self._any_members()
        items = [(self._member(name, value), name in required) for name, value in properties.items()]
        if self._style.separator:
            return self._separated(items)
        return self._rules.rule(" ".join(item if needed else f"{item}?" for item, needed in items) or '""')

    def _member(self, name: str, schema: Any) -> str:
        if not self._style.key.fullmatch(name):
            raise self._refusal(f"the parameter name {name[:40]!r}")
        before = self._rules.literal(f"{self._style.before_key}{name}{self._style.before_value}")
        return self._rules.rule(f"{before} ({self._value(schema, name)})")

    def _separated(self, items: Sequence[tuple[str, bool]]) -> str:
        """Returns a sequence of items, some of them optional, with separators between those that are there."""
        separator = self._rules.literal(self._style.separator)
        behind = begin = ""
        for item, is_needed in reversed(items):
            first = f"{item} {behind}".strip()
            begin = first if is_needed else self._rules.rule(f"{first} | {begin}" if begin else f"({first})?")
            behind = self._rules.rule(f"{f'{separator} {item}' if is_needed else f'({separator} {item})?'} {behind}")
        return begin or '""'

    def _any_members(self) -> str:
        """Returns any parameters, each with a value that the parser can read."""
        key = self._rules.terminal(_ANY_KEY)
        separator = self._rules.literal(self._style.separator)
        before, between = map(self._rules.literal, (self._style.before_key, self._style.before_value))
        member = self._rules.rule(f"{before} {key} {between} ({self._value({}, '')})")
        return self._rules.rule(f"({member} ({separator} {member})*)?")

    def _value(self, schema: Any, name: str) -> str:
        """Returns the expression of a value and the text behind it."""
        leaves = leaves_of(schema, self._definitions)
        if self._style.is_json:
            return self._python_value(schema, leaves)
        if self._style.delimiter is not None:
            return self._gemma_value(schema, name)
        types = types_of(schema, self._definitions)
        if leaves is None and types and "string" not in types:
            return f"{self._json(schema)} {self._rules.literal(self._style.after_value)}"
        if leaves is None:
            raise self._refusal(f"the schema of {name[:40]!r}, a choice of strings and others that is not plain")
        return " | ".join(self._tagged_value(leaves or (_ANY_STRING,), types - {"string"}, name))

    def _python_value(self, schema: Any, leaves: Sequence[Leaf] | None) -> str:
        """Returns JSON, which the parser takes for Python, but for the words of plain types."""
        options = [
            _PYTHON_WORDS[leaf.type] if leaf.values is None and leaf.type in _PYTHON_WORDS else self._json(leaf.schema)
            for leaf in leaves or ()
        ]
        return " | ".join(options) or self._json(schema)

    def _tagged_value(self, leaves: Sequence[Leaf], other_types: frozenset[str], name: str) -> list[str]:
        """Returns bare texts for strings, JSON for other types; the parser must not take one for another."""
        end = self._style.after_value
        options, unlike = [], set(other_types)
        if any(leaf.scalar is None and leaf.type in {"integer", "number"} for leaf in leaves):
            unlike.add("bounded number")
        for leaf in leaves:
            if leaf.type == "string":
                text = string_terminal(
                    leaf, forbidden=self._style.forbidden, is_trimmed=self._style.is_trimmed, unlike=sorted(unlike)
                )
            else:
                text = leaf.scalar and f"/{leaf.scalar}/"
            if text is not None:
                options.append(self._rules.ended(self._rules.terminal(text), end))
            elif leaf.type != "string":
                options.append(f"{self._json(leaf.schema)} {self._rules.literal(end)}")
        if not options:
            raise self._refusal(f"the schema of {name[:40]!r}, of which no value can be written")
        return options

    def _gemma_value(self, schema: Any, name: str) -> str:
        leaves = leaves_of(schema, self._definitions)
        if leaves is None or self._depth == _MAX_DEPTH:
            raise self._refusal(f"the schema of {name[:40]!r}, which is no plain choice of types")
        if not leaves:
            return self._any_gemma_value()
        self._depth += 1
        options = [self._gemma_leaf(leaf, name) for leaf in leaves]
        self._depth -= 1
        return " | ".join(options)

    def _gemma_leaf(self, leaf: Leaf, name: str) -> str:
        if leaf.type == "string":
            text = string_terminal(leaf, forbidden=self._style.forbidden)
            if text is None:
                raise self._refusal(f"the schema of {name[:40]!r}, of which no value can be written")
            return self._delimited(text)
        if not leaf.is_container:
            return self._json(leaf.schema)
        if leaf.values is not None:
            raise self._refusal(f"the schema of {name[:40]!r}, which lists objects or arrays")
        return self._object(leaf.schema) if leaf.type == "object" else self._gemma_array(leaf.schema, name)

    def _delimited(self, text: str) -> str:
        delimiter = self._style.delimiter or ""
        return f"{self._rules.literal(delimiter)} {self._rules.ended(self._rules.terminal(text), delimiter)}"

    def _gemma_array(self, schema: Mapping[str, Any], name: str) -> str:
        others = _beside(_ARRAY_KEYWORDS, schema)
        if others or isinstance(schema.get("items"), list):
            raise self._refusal(f"{(others or ['items'])[0]!r} of {name[:40]!r}")
        item = self._rules.rule(self._gemma_value(schema.get("items", True), name))
        lowest, highest = schema.get("minItems", 0), schema.get("maxItems")
        if highest == 0:
            return '"[]"'
        more = f'("," {item}){{{max(lowest - 1, 0)},{"" if highest is None else highest - 1}}}'
        return f'"[" {item} {more} "]"' if lowest else f'"[" ({item} {more})? "]"'

    def _any_gemma_value(self) -> str:
        text = self._delimited(string_terminal(_ANY_STRING, forbidden=self._style.forbidden) or "")
        name, key = f"any_{self._style.name}", self._rules.terminal(_ANY_KEY)
        member = f'{key} ":" {name}'
        array, members = f'"[" ({name} ("," {name})*)? "]"', f'"{{" ({member} ("," {member})*)? "}}"'
        scalar = self._rules.rule(f"%json {self._schema_text({'type': ['number', 'boolean', 'null']})}")
        return self._rules.recursive(name, f"{text} | {scalar} | {array} | {members}")

    def _json(self, schema: Any) -> str:
        return self._rules.rule(f"%json {self._schema_text({**schema, **self._root})}")

    def _refusal(self, what: str) -> InvalidRequestError:
        return InvalidRequestError(
            f"Calls in this model's format cannot be held to {what}; change the schema, or leave strict out.",
            param="structured_outputs",
        )


def _beside(known: frozenset[str], schema: Mapping[str, Any]) -> list[str]:
    """Returns the keywords of a schema that ask for more than the known ones."""
    return sorted(keyword for keyword in schema.keys() - known if not is_annotation(keyword))
