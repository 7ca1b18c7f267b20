"""Checks a JSON schema keyword by keyword before llguidance sees it: what it would ignore silently is refused here."""

from __future__ import annotations

import json
from typing import Any

from vllm_mxext.constraint_params import MAX_JSON_NESTING
from vllm_mxext.errors import InvalidRequestError
from vllm_mxext.native.structured.exclusive_options import ExclusiveOptions
from vllm_mxext.native.structured.keywords import ENFORCED, NEUTRAL, REFUSED, is_annotation

_SCHEMA_MAPS = ("properties", "patternProperties", "$defs", "definitions")
_SCHEMA_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
_SCHEMAS = ("additionalProperties", "items", "additionalItems")
_NUMBERS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")


def parse_json(text: str, what: str) -> Any:
    """Reads JSON whose nesting is limited.

    Raises:
        InvalidRequestError: it is not JSON, or nested too deeply.
    """
    depth = deepest = 0
    is_string = is_escaped = False
    for char in text:
        if is_string:
            is_string = is_escaped or char != '"'
            is_escaped = char == "\\" and not is_escaped
        elif char == '"':
            is_string = True
        elif char in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif char in "]}":
            depth -= 1
    if deepest > MAX_JSON_NESTING:
        raise _invalid(f"{what} is nested more than {MAX_JSON_NESTING} levels deep; make it flatter.")
    try:
        return json.loads(text)
    except ValueError as error:
        raise _invalid(f"{what} is not valid JSON: {error}.") from None


def checked_schema(schema: Any, *, disable_additional_properties: bool = False) -> dict[str, Any]:
    """Returns a copy of a schema in which every keyword is one that llguidance enforces, or an annotation.

    `oneOf` becomes `anyOf` where no two options can hold at once, which llguidance does not see through references.

    Args:
        schema: parsed schema, or its text.
        disable_additional_properties: objects that name properties have no others.

    Raises:
        InvalidRequestError: a keyword is refused or unknown, or its value has a wrong type; the text says where.
    """
    if isinstance(schema, str):
        schema = parse_json(schema, "The JSON schema")
    if schema is True:
        schema = {}
    if not isinstance(schema, dict):
        raise _invalid("A JSON schema must be an object.")
    checked: dict[str, Any] = _Checker(schema, disable_additional_properties).check(schema, "#")
    return checked


class _Checker:
    def __init__(self, root: dict[str, Any], disable_additional_properties: bool) -> None:
        self._is_closed = disable_additional_properties
        self._exclusion = ExclusiveOptions(root)

    def check(self, schema: Any, place: str) -> Any:
        if isinstance(schema, bool):
            return schema
        if not isinstance(schema, dict):
            raise _invalid(f"The JSON schema at {place} must be an object, true or false.")
        checked: dict[str, Any] = {}
        for keyword, value in schema.items():
            if keyword in NEUTRAL and value is NEUTRAL[keyword]:
                continue
            self._check_keyword(keyword, value, place)
            if keyword == "additionalItems" and not isinstance(schema.get("items"), list):
                raise _invalid(f"JSON schema keyword 'additionalItems' at {place} needs a list in items; use items.")
            checked[keyword] = self._check_value(keyword, value, f"{place}/{keyword}")
        options, others = schema.get("oneOf"), checked.get("allOf", [])
        if isinstance(options, list) and isinstance(others, list) and self._exclusion.holds(options):
            checked["allOf"] = [*others, {"anyOf": checked.pop("oneOf")}]
        names_properties = any(isinstance(schema.get(one), dict) for one in ("properties", "patternProperties"))
        if self._is_closed and names_properties and "additionalProperties" not in schema:
            checked["additionalProperties"] = False
        return checked

    def _check_keyword(self, keyword: str, value: Any, place: str) -> None:
        if keyword in REFUSED:
            raise _invalid(f"JSON schema keyword '{keyword}' at {place} is not supported: {REFUSED[keyword]}.")
        if keyword not in ENFORCED and not is_annotation(keyword):
            raise _invalid(
                f"JSON schema keyword '{keyword}' at {place} is unknown; correct its spelling or leave it out."
            )
        if keyword in _NUMBERS and (isinstance(value, bool) or not isinstance(value, (int, float))):
            raise _invalid(f"JSON schema keyword '{keyword}' at {place} must be a number, got {str(value)[:40]!r}.")

    def _check_value(self, keyword: str, value: Any, place: str) -> Any:
        if keyword in _SCHEMA_MAPS and isinstance(value, dict):
            return {name: self.check(inner, f"{place}/{name}") for name, inner in value.items()}
        if isinstance(value, list) and (keyword in _SCHEMA_LISTS or keyword in ("items", "additionalItems")):
            return [self.check(inner, f"{place}/{index}") for index, inner in enumerate(value)]
        if keyword in _SCHEMAS:
            return self.check(value, place)
        return value


def _invalid(message: str) -> InvalidRequestError:
    return InvalidRequestError(message, param="structured_outputs")
