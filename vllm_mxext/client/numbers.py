"""`check_numbers()`: validates numeric settings."""

from __future__ import annotations

import math
from typing import Any

from vllm_mxext.errors import ConfigError


def check_numbers(
    owner: str, *, least: float = 0.0, most: float = math.inf, is_whole: bool = False, **values: Any
) -> None:
    """Checks that settings are numbers within bounds; NaN, infinities and booleans are not.

    Args:
        owner: what they are settings of, for the message.
        least: the smallest valid value.
        most: the largest valid value.
        is_whole: whether they must be whole numbers.
        values: the settings by name.

    Raises:
        ConfigError: one of them is not such a number.
    """
    kinds = int if is_whole else (int, float)
    for name, value in values.items():
        is_number = isinstance(value, kinds) and not isinstance(value, bool)
        if is_number and least <= value <= most and value != math.inf:
            continue
        kind = "a whole number" if is_whole else "a number"
        bounds = f"at least {least:g}" if most == math.inf else f"from {least:g} to {most:g}"
        raise ConfigError(f"{name} of {owner} must be {kind}, {bounds}, not {value!r}.")
