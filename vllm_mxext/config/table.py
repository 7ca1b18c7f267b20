"""The configuration as a table for people: every value with its origin, secrets hidden."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from vllm_mxext.config.app import AppConfig
from vllm_mxext.config.flags import Flag
from vllm_mxext.config.options import all_flags
from vllm_mxext.config.resolve import Decision, ResolvedConfig

HIDDEN = "******"
DEFAULT = "default"

_NOTHING: Mapping[str, Decision] = {}


class Row(NamedTuple):
    """One flag.

    Attributes:
        name: without dashes in front.
        value: as it would be written on the command line.
        origin: where it comes from.
    """

    name: str
    value: str
    origin: str


def format_changes(resolved: ResolvedConfig) -> str:
    """Returns one line per flag that was given or looked up: name, value, origin; all others have their defaults."""
    return format_rows([row for row in rows(resolved.app, resolved.decisions) if row.origin != DEFAULT])


def rows(app: AppConfig, decisions: Mapping[str, Decision] = _NOTHING) -> list[Row]:
    """Returns every flag.

    Args:
        app: the intent.
        decisions: what was looked up; nothing was if the model's files are not known.
    """
    return [_row(flag, app, decisions) for flag in all_flags()]


def format_rows(shown: list[Row]) -> str:
    """Returns a line per row."""
    name_width = max(len(row.name) for row in shown)
    value_width = min(40, max(len(row.value) for row in shown))
    return "\n".join(f"  {row.name:<{name_width}}  {row.value:<{value_width}}  {row.origin}" for row in shown)


def _row(flag: Flag, app: AppConfig, decisions: Mapping[str, Decision]) -> Row:
    decision = decisions.get(flag.field)
    value = getattr(getattr(app, flag.group), flag.field)
    origin = app.origins.get(flag.field, DEFAULT)
    if decision is not None:
        value = decision.value
        origin = decision.reason if origin == DEFAULT else f"{origin}, {decision.reason}"
    if flag.facts.is_secret:
        value = tuple(HIDDEN for _ in value)
    return Row(flag.name, format_value(value), origin)


def format_value(value: Any) -> str:
    """Returns a value as it would be written on the command line; `-` for none."""
    if value is None or value in ((), "", {}):
        return "-"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return " ".join(str(item) for item in value)
    return str(value)
