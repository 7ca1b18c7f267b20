"""Reading single values of a checkpoint's `config.json` with clear errors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vllm_mxext.errors import ConfigError


def is_number(value: object) -> bool:
    """Whether a JSON value is a number (booleans are not)."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def positive_int(values: Mapping[str, Any], name: str, default: int | None = None) -> int:
    """Integer of at least 1; None as default makes it required.

    Raises:
        ConfigError: missing or not a positive integer.
    """
    value = values.get(name)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        problem = "is missing" if value is None else f"must be a positive integer, got {value!r}"
        raise ConfigError(f"config.json: {name} {problem}.")
    return value


def number(values: Mapping[str, Any], name: str, default: float | None = None) -> float:
    """A number; None as default makes it required.

    Raises:
        ConfigError: missing or not a number.
    """
    value = optional_number(values, name)
    value = default if value is None else value
    if value is None:
        raise ConfigError(f"config.json: {name} is missing.")
    return float(value)


def optional_number(values: Mapping[str, Any], name: str) -> float | None:
    """A number, or None if absent or null.

    Raises:
        ConfigError: not a number.
    """
    value = values.get(name)
    if value is not None and not is_number(value):
        raise ConfigError(f"config.json: {name} must be a number, got {value!r}.")
    return value
