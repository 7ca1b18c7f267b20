"""`check_numbers()`: settings that are numbers, refused with a clear sentence where they mean nothing."""

from __future__ import annotations

import math
from typing import Any

from vllm_mxext.errors import ConfigError


def check_numbers(
    owner: str, *, least: float = 0.0, most: float = math.inf, is_whole: bool = False, **values: Any
) -> None:
    """Checks settings by name; not a number, infinities and truth values are none.

    Args:
        owner: whose settings they are.
        least: the smallest good value.
        most: the largest good value.
        is_whole: they count something.
        values: the settings.

    Raises:
        ConfigError: one of them is of another kind, or out of range.
    """
    kinds = int if is_whole else (int, float)
    for name, value in values.items():
        is_number = isinstance(value, kinds) and not isinstance(value, bool)
        if is_number and least <= value <= most and value != math.inf:
            continue
        kind = "a whole number" if is_whole else "a number"
        bounds = f"at least {least:g}" if most == math.inf else f"from {least:g} to {most:g}"
        raise ConfigError(f"{name} of {owner} must be {kind}, {bounds}, not {value!r}.")
