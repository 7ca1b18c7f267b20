"""`validate()`: holds a file against the JSON Schema and says what is wrong as sentences with lines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from itertools import islice
from typing import TYPE_CHECKING, Any

from vllm_mxext.config.sources import did_you_mean
from vllm_mxext.hub.manifest.complaints import Complaint, shown
from vllm_mxext.hub.manifest.document import Node
from vllm_mxext.hub.manifest.schema import catalogue_schema, known_keys, model_schema

if TYPE_CHECKING:
    import jsonschema_rs

_MAX_FINDINGS = 500
"""A file that is wrong everywhere need not be searched to its end."""

_TYPES = {
    "string": "text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "array": "a list",
    "object": "a mapping of keys",
    "null": "nothing",
}


def validate(root: Node, plain: Any, *, has_many: bool) -> list[Complaint]:
    """Returns what is wrong with a file.

    Args:
        root: the file with its lines.
        plain: its values.
        has_many: it is a list of models.
    """
    schema = catalogue_schema() if has_many else model_schema()
    complaints: list[Complaint] = []
    for error in islice(_validator(has_many).iter_errors(plain), _MAX_FINDINGS):
        complaints += _complaints(error, root, schema)
    return complaints


@cache
def _validator(has_many: bool) -> jsonschema_rs.Draft202012Validator:
    """Returns what knows the rules; to make it takes longer than to read a file."""
    import jsonschema_rs  # noqa: PLC0415 - only those who read a manifest pay for it

    return jsonschema_rs.Draft202012Validator(catalogue_schema() if has_many else model_schema())


def name_of(path: tuple[str | int, ...]) -> str:
    """Returns a path as messages say it: `profiles[2].tags.tp`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")


def _complaints(error: Any, root: Node, schema: Mapping[str, Any]) -> Iterator[Complaint]:
    path = tuple(error.instance_path)
    line, name, facts = root.line_of(path), name_of(path) or "the file", error.kind.as_dict()
    kind = error.kind.name
    if kind == "additionalProperties":
        known = known_keys(path, schema)
        for key in facts["unexpected"]:
            where = f"in {name} " if path else ""
            suggestion = did_you_mean(key, known)
            if suggestion == ".":
                suggestion = f"; known are {', '.join(known)}."
            yield Complaint(root.line_of((*path, key)), f"Unknown key {shown(key)} {where}".rstrip() + suggestion)
    elif kind == "required":
        yield Complaint(line, f"{_capital(name)} has no {facts['property']}, which it needs.")
    else:
        rules = _rules_at(error.schema_path, schema)
        end = did_you_mean(str(error.instance), map(str, rules["enum"])) if kind == "enum" else "."
        yield Complaint(line, f"{name} {_rule(error, facts, rules)}, got {_found(error.instance)}{end}")


def _capital(name: str) -> str:
    return f"{name[0].upper()}{name[1:]}" if name == "the file" else name


def _rule(error: Any, facts: Mapping[str, Any], rules: Mapping[str, Any]) -> str:
    kind = error.kind.name
    if kind == "type":
        wanted = " or ".join(_TYPES[name] for name in facts["types"])
        if facts["types"] == ["string"] and isinstance(error.instance, (int, float, type(None))):
            return f"must be {wanted}; put it in quotes"
        return f"must be {rules['x-rule'].removeprefix('must be ')}" if "x-rule" in rules else f"must be {wanted}"
    if kind == "enum":
        return f"must be one of {', '.join(map(str, rules['enum']))}"
    limits = {
        "const": f"must be {rules.get('const')}",
        "minimum": f"must be at least {rules.get('minimum')}",
        "maximum": f"must be at most {rules.get('maximum')}",
        "minLength": "must not be empty",
        "maxLength": f"must have at most {rules.get('maxLength')} characters",
        "maxItems": f"must have at most {rules.get('maxItems')} entries",
        "maxProperties": f"must have at most {rules.get('maxProperties')} keys",
    }
    return str(rules.get("x-rule") if kind == "pattern" else limits.get(kind, f"breaks the rule {kind}"))


def _rules_at(schema_path: list[str | int], schema: Mapping[str, Any]) -> Mapping[str, Any]:
    rules: Any = schema
    for part in schema_path[:-1]:
        rules = rules[part]
    return rules if isinstance(rules, Mapping) else {}


def _found(value: Any) -> str:
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    return "nothing" if value is None else shown(value)
