"""What becomes of every JSON Schema keyword: enforced, an annotation, or refused with the reason."""

from __future__ import annotations

ENFORCED = frozenset(
    {
        "$anchor", "$defs", "$id", "$ref", "$schema", "additionalItems", "additionalProperties", "allOf", "anyOf",
        "const", "definitions", "enum", "exclusiveMaximum", "exclusiveMinimum", "format", "id", "items", "maxItems",
        "maxLength", "maxProperties", "maximum", "minItems", "minLength", "minProperties", "minimum", "multipleOf",
        "oneOf", "pattern", "patternProperties", "prefixItems", "properties", "required", "type",
    }
)  # fmt: skip
"""Keywords that llguidance honours, or refuses itself where it cannot."""

ANNOTATIONS = frozenset(
    {
        "$comment", "default", "deprecated", "description", "examples", "readOnly", "title", "writeOnly",
        # of OpenAPI, editors and other model servers
        "discriminator", "enumDescriptions", "enumNames", "example", "externalDocs", "markdownDescription",
        "propertyOrdering", "xml",
    }
)  # fmt: skip
"""Keywords that say nothing about which values are valid; `x-...` are others."""


def is_annotation(keyword: str) -> bool:
    """Whether a keyword says nothing about which values are valid."""
    return keyword in ANNOTATIONS or keyword.startswith("x-")


_WHOLE_VALUE = "a grammar cannot look at a value again that has been written; describe the values directly"
_CONDITION = "it makes one part of a value depend on another; list the cases with anyOf"
_INSIDE = "what is inside of the string is not looked at; use pattern"
_DYNAMIC = "references are resolved when the schema is read; use $ref"

REFUSED: dict[str, str] = {
    "not": "a schema cannot be negated; describe what is allowed",
    "if": _CONDITION,
    "then": _CONDITION,
    "else": _CONDITION,
    "dependentSchemas": _CONDITION,
    "dependentRequired": _CONDITION,
    "dependencies": _CONDITION,
    "contains": _WHOLE_VALUE,
    "minContains": _WHOLE_VALUE,
    "maxContains": _WHOLE_VALUE,
    "uniqueItems": _WHOLE_VALUE,
    "propertyNames": "use patternProperties with additionalProperties: false",
    "unevaluatedProperties": "use additionalProperties",
    "unevaluatedItems": "use items: false after prefixItems",
    "contentSchema": _INSIDE,
    "contentMediaType": _INSIDE,
    "contentEncoding": _INSIDE,
    "$dynamicRef": _DYNAMIC,
    "$dynamicAnchor": _DYNAMIC,
    "$recursiveRef": _DYNAMIC,
    "$recursiveAnchor": _DYNAMIC,
    "$vocabulary": "it belongs into meta-schemas only",
    "nullable": 'it is of OpenAPI 3.0; use type: [..., "null"]',
    "x-guidance": "options are given beside the schema: whitespace_pattern, disable_any_whitespace",
}
"""Keyword -> why it is refused and what to do."""

NEUTRAL: dict[str, object] = {
    "uniqueItems": False,
    "nullable": False,
    "unevaluatedProperties": True,
    "unevaluatedItems": True,
    "propertyNames": True,
}
"""Refused keywords -> the value with which they ask for nothing and are dropped."""

FORMATS = ("date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri", "unknown")
"""Values of `format` that are enforced; others are refused."""
