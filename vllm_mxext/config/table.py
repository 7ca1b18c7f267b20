"""The resolved configuration as a table for people: every value with its origin, secrets hidden."""

from __future__ import annotations

from typing import Any

from vllm_mxext.config.flags import Flag
from vllm_mxext.config.options import all_flags
from vllm_mxext.config.resolve import ResolvedConfig

HIDDEN = "******"


def format_table(resolved: ResolvedConfig) -> str:
    """Returns one line per flag: name, value, origin."""
    rows = [_row(flag, resolved) for flag in all_flags()]
    name_width = max(len(name) for name, _, _ in rows)
    value_width = min(40, max(len(value) for _, value, _ in rows))
    return "\n".join(f"  {name:<{name_width}}  {value:<{value_width}}  {origin}" for name, value, origin in rows)


def _row(flag: Flag, resolved: ResolvedConfig) -> tuple[str, str, str]:
    decision = resolved.decisions.get(flag.field)
    value = getattr(getattr(resolved.app, flag.group), flag.field)
    origin = resolved.app.origins.get(flag.field, "default")
    if decision is not None:
        value = decision.value
        origin = decision.reason if origin == "default" else f"{origin}, {decision.reason}"
    if flag.facts.is_secret:
        value = tuple(HIDDEN for _ in value)
    return flag.name, format_value(value), origin


def format_value(value: Any) -> str:
    """Returns a value as it would be written on the command line; `-` for none."""
    if value is None or value in ((), "", {}):
        return "-"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return " ".join(str(item) for item in value)
    return str(value)
