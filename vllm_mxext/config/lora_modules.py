"""Adapters as users name them: `name=path` or a JSON object, and the rule for their names."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping
from typing import Any

from vllm_mxext.config.server import LoRAModule
from vllm_mxext.config.values import BadValueError, ValueKind

MAX_NAME_LENGTH = 128

_RULE = 'must be NAME=PATH or a JSON object such as {"name": "sql", "path": "/adapters/sql"}'
_KEYS = ("name", "path", "base_model_name", "format", "description")


def name_problem(name: str) -> str | None:
    """Returns the rule that an adapter's name breaks, as in "must ..."; None if it is one."""
    if not 1 <= len(name) <= MAX_NAME_LENGTH:
        return f"must have 1 to {MAX_NAME_LENGTH} characters"
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in name):
        return "must not contain control characters"
    if name != name.strip():
        return "must not begin or end with a space"
    if ":" in name:
        return "must not contain ':', which stands between model and adapter"
    return None


def lora_modules() -> ValueKind:
    """Several adapters: one after the other, as a JSON or YAML list, or as `a=/x,b=/y`."""

    def parse(value: Any) -> tuple[LoRAModule, ...]:
        modules = tuple(_modules(value))
        names = [module.name for module in modules]
        for name in names:
            problem = name_problem(name)
            if problem is not None:
                raise BadValueError(f"names adapters, whose names {problem}")
            if names.count(name) > 1:
                raise BadValueError(f"must name every adapter once, '{name}' is there twice")
        return modules

    return ValueKind(parse, "NAME=PATH", "many")


def _modules(value: Any) -> list[LoRAModule]:
    if isinstance(value, (list, tuple)):
        return [module for entry in value for module in _modules(entry)]
    if isinstance(value, LoRAModule):
        return [value]
    if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
        try:
            parsed = json.loads(value)
        except ValueError:
            raise BadValueError(_RULE) from None
        return _modules(parsed)
    if isinstance(value, Mapping):
        return [_from_object(value)]
    if not isinstance(value, str):
        raise BadValueError(_RULE)
    parts = value.split(",")
    return [_from_text(part) for part in (parts if all("=" in part for part in parts) else [value])]


def _from_text(text: str) -> LoRAModule:
    name, _, path = text.strip().partition("=")
    if not name or not path:
        raise BadValueError(_RULE)
    return LoRAModule(name, path)


def _from_object(given: Mapping[Any, Any]) -> LoRAModule:
    unknown = [key for key in given if key not in _KEYS]
    if unknown:
        raise BadValueError(f"names adapters with the keys {', '.join(_KEYS)}, not '{unknown[0]}'")
    values = {key: value for key, value in given.items() if value is not None}
    if not all(isinstance(value, str) and value for value in values.values()) or not {"name", "path"} <= set(values):
        raise BadValueError(_RULE)
    return LoRAModule(**values)
