"""Reads a `Plan` from a YAML file and from a command line; both take their names from the plan's options."""

from __future__ import annotations

import argparse
import dataclasses
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vllm_mxext.bench.serve.plan import Length, Option, Plan, options, sections
from vllm_mxext.bench.serve.slo import SLO_PRESETS, Slo
from vllm_mxext.config.sources import did_you_mean, read_yaml
from vllm_mxext.errors import ConfigError

_LENGTH = re.compile(r"(\d+)(?::(\d+))?\Z")


def read_plan(path: Path) -> Plan:
    """Reads a YAML file.

    Raises:
        ConfigError: it cannot be read, names something unknown, or holds a wrong value.
    """
    return plan_from_mapping(read_yaml(path, "The test's configuration"), f"{path}: ").checked()


def plan_from_mapping(data: Mapping[Any, Any], prefix: str = "") -> Plan:
    """Reads sections as a YAML file has them, without checking whether they go together.

    Args:
        data: section -> key -> value; and `prompts`, a list.
        prefix: begins error messages.

    Raises:
        ConfigError: an unknown name or a wrong value.
    """
    known = sections()
    values: dict[str, Any] = {}
    for name, content in data.items():
        if name == "prompts":
            values["prompts"] = _prompts(content, f"{prefix}prompts")
        elif name in known:
            values[name] = _section(known[name], content, f"{prefix}{name}")
        else:
            raise ConfigError(f"{prefix}unknown section '{name}'{did_you_mean(str(name), [*known, 'prompts'])}")
    return Plan(**values)


def add_plan_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds every flag of a plan; a flag that is not given leaves its value to the file or the default."""
    titles = {
        "server": "server",
        "test_params": "requests",
        "workload": "prompts",
        "load": "load",
        "slo": "objectives",
        "output": "output",
    }
    for section, kind in sections().items():
        group = parser.add_argument_group(titles[section])
        for name, option, default in options(kind):
            _add_flag(group, f"{section}.{name}", option, default)


def plan_from_arguments(arguments: argparse.Namespace, base: Plan | None = None) -> Plan:
    """Returns `base` with the values that the command line gives.

    Args:
        arguments: parsed with the flags of `add_plan_arguments`.
        base: the plan of a file; None = the defaults.

    Raises:
        ConfigError: a wrong value, or options that do not go together.
    """
    plan = base or Plan()
    changed = {}
    for section, kind in sections().items():
        given = {}
        for name, option, _ in options(kind):
            value = getattr(arguments, f"{section}.{name}", None)
            if value is not None:
                given[name] = _value(option, value, option.flag)
        if given:
            changed[section] = dataclasses.replace(getattr(plan, section), **given)
    return dataclasses.replace(plan, **changed).checked()


def limits(plan: Plan) -> Slo:
    """Returns the plan's objectives: those of its preset, overridden by those given one by one."""
    given = plan.slo
    base = SLO_PRESETS.get(given.preset, Slo())

    def chosen(milliseconds: float, otherwise: float | None) -> float | None:
        return milliseconds / 1000 if milliseconds else otherwise

    return Slo(
        chosen(given.ttft_ms, base.ttft_s),
        chosen(given.tpot_ms, base.tpot_s),
        chosen(given.e2e_ms, base.e2e_s),
        given.percentile,
    )


def _section(kind: type[Any], content: Any, place: str) -> Any:
    if content is None:
        return kind()
    if not isinstance(content, dict):
        raise ConfigError(f"{place} must hold lines of the form 'key: value'.")
    known = {name: option for name, option, _ in options(kind)}
    values = {}
    for key, value in content.items():
        if key not in known:
            raise ConfigError(f"{place}: unknown key '{key}'{did_you_mean(str(key), known)}")
        if value is not None:
            values[key] = _value(known[key], value, f"{place}.{key}")
    return kind(**values)


def _prompts(content: Any, place: str) -> tuple[str, ...]:
    if not isinstance(content, list) or not content or not all(isinstance(item, str) and item for item in content):
        raise ConfigError(f"{place} must be a list of texts, one per line after '- '.")
    return tuple(content)


def _add_flag(group: argparse._ArgumentGroup, dest: str, option: Option, default: Any) -> None:
    if not option.flag:
        return
    if option.kind == "switch":
        positive, negative = option.flag, f"--no-{option.flag[2:]}"
        group.add_argument(
            positive, dest=dest, action="store_true", default=None, help=f"{option.help} (default: {bool(default)})"
        )
        group.add_argument(negative, dest=dest, action="store_false", default=None, help=f"The opposite of {positive}")
        return
    is_told = default in (None, "", ()) or "default:" in option.help or (default == 0 and "0:" in option.help)
    shown = "" if is_told else f" (default: {default:g})" if isinstance(default, float) else f" (default: {default})"
    choices = f": {', '.join(option.choices)}" if option.choices else ""
    group.add_argument(
        option.flag,
        dest=dest,
        metavar=option.metavar,
        default=None,
        help=f"{option.help}{choices}{shown}".replace("%", "%%"),
    )


def _value(option: Option, value: Any, place: str) -> Any:
    try:
        return _READERS[option.kind](option, value)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{place} {error}; got {value!r}.") from None


def _text(option: Option, value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("must be a text")
    if value and option.choices and value not in option.choices:
        raise ValueError(f"must be one of {', '.join(option.choices)}")
    return value


def _integer(option: Option, value: Any) -> int:
    if isinstance(value, bool) or (isinstance(value, float) and not value.is_integer()):
        raise ValueError("must be a whole number")
    try:
        number = int(value)
    except (ValueError, TypeError, OverflowError):
        raise ValueError("must be a whole number") from None
    _check_range(option, number)
    return number


def _number(option: Option, value: Any) -> float:
    if isinstance(value, bool):
        raise TypeError("must be a number")
    try:
        number = float(value)
    except (ValueError, TypeError, OverflowError):
        raise ValueError("must be a number") from None
    if math.isnan(number):
        raise ValueError("must be a number")
    if math.isinf(number) and option.flag != "--burstiness":
        raise ValueError("must be finite")
    _check_range(option, number)
    return number


def _switch(_: Option, value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError("must be true or false")
    return value


def _numbers(option: Option, value: Any) -> tuple[float, ...]:
    items: Iterable[Any] = value.split(",") if isinstance(value, str) else value
    if not isinstance(items, (list, tuple)):
        raise TypeError("must be a list of numbers such as 1,2,4,8")
    return tuple(_number(option, item) for item in items)


def _length(option: Option, value: Any) -> Length:
    match = None if isinstance(value, bool) else _LENGTH.match(str(value).strip())
    if match is None:
        raise ValueError("must be a number of tokens such as 128, or a range such as 64:256")
    low = int(match[1])
    high = int(match[2] or low)
    _check_range(option, low)
    _check_range(option, high)
    if high < low:
        raise ValueError("must have its smaller number first")
    return Length(low, high)


def _check_range(option: Option, number: float) -> None:
    if option.minimum is not None and number < option.minimum:
        raise ValueError(f"must be at least {option.minimum:g}")
    if option.maximum is not None and number > option.maximum:
        raise ValueError(f"must be at most {option.maximum:,.0f}")


_READERS: dict[str, Any] = {
    "text": _text,
    "int": _integer,
    "float": _number,
    "switch": _switch,
    "numbers": _numbers,
    "length": _length,
}
