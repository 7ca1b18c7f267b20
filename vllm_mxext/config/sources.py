"""Where values come from: command line, environment and configuration file, merged with their origins."""

from __future__ import annotations

import argparse
import difflib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_mxext import envs
from vllm_mxext.config.flags import Flag
from vllm_mxext.config.options import GROUPS, all_flags
from vllm_mxext.config.parser import Parser
from vllm_mxext.config.refused import SHORT_NAMES, RefusedFlag, refused_flags
from vllm_mxext.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Setting:
    """One value with the place it came from.

    Attributes:
        value: parsed.
        origin: for people: `command line`, `environment VLLM_API_KEY`, `file serve.yaml`, `argument`.
    """

    value: Any
    origin: str


Settings = dict[str, Setting]
"""Field name -> setting; only what something has set."""


def build_parser(prog: str) -> argparse.ArgumentParser:
    """Returns the argument parser of the server's flags; values stay text."""
    parser = Parser(
        prog=prog,
        usage=f"{prog} [MODEL] [--config FILE] [flags]",
        formatter_class=argparse.HelpFormatter,
        argument_default=argparse.SUPPRESS,
        description="Serves a model through an OpenAI-compatible API.",
        epilog="Every flag --some-flag can also be given as VLLM_MXEXT_SOME_FLAG or as a key of the --config file; "
        "the command line wins over the environment, the environment over the file.",
    )
    parser.add_argument("model_positional", nargs="?", metavar="MODEL", help="The same as --model.")
    parser.add_argument("--config", metavar="FILE", help="YAML file whose keys are long flag names.")
    groups = {
        name: parser.add_argument_group(name, (options.__doc__ or "").partition("\n")[0]) for name, options in GROUPS
    }
    for flag in all_flags():
        _add_argument(groups[flag.group], flag)
    return parser


def _add_argument(group: Any, flag: Flag) -> None:
    option, kind = f"--{flag.name}", flag.facts.kind
    help_text = flag.facts.help.replace("%", "%%")
    if kind.arity == "switch":
        action = argparse.BooleanOptionalAction
        default = "on" if flag.default else "off"
        group.add_argument(option, dest=flag.field, action=action, help=f"{help_text} Default: {default}.")
        return
    extra: dict[str, Any] = {"nargs": "+", "action": "extend"} if kind.arity == "many" else {}
    if flag.default not in (None, (), "", ("*",)):
        help_text += f" Default: {flag.default}."
    group.add_argument(option, dest=flag.field, metavar=kind.metavar.replace("%", "%%"), help=help_text, **extra)


def read_command_line(argv: Sequence[str], prog: str) -> tuple[Settings, Path | None]:
    """Reads the flags of a command line.

    Args:
        argv: arguments after the command.
        prog: the command, for help and messages.

    Returns:
        The settings, and the file named by `--config`.

    Raises:
        ConfigError: an unknown flag, one that is refused, or a value that cannot be read.
    """
    arguments = _without_refused([_with_dashes(token) for token in argv])
    namespace, unknown = build_parser(prog).parse_known_args(arguments)
    given: dict[str, Any] = vars(namespace)
    flags = [token for token in unknown if token.startswith("-")]
    if flags:
        raise ConfigError(f"Unknown flag {flags[0].partition('=')[0]}{_suggestion(flags[0])}")
    if unknown:
        raise ConfigError(f"Unexpected argument '{unknown[0]}'; one model is served, named once.")
    positional = given.pop("model_positional", None)
    if positional is not None:
        if given.get("model", positional) != positional:
            raise ConfigError(f"Two models are named, '{positional}' and --model '{given['model']}'; name one.")
        given["model"] = positional
    config_file = given.pop("config", None)
    by_field = {flag.field: flag for flag in all_flags()}
    settings = {
        name: Setting(_parse(by_field[name], value, f"--{by_field[name].name}"), "command line")
        for name, value in given.items()
    }
    return settings, Path(os.path.expanduser(config_file)) if config_file is not None else None


def read_environment(environ: Mapping[str, str], *, is_offline: bool = False) -> Settings:
    """Reads the variables that set flags; empty ones do not count.

    Raises:
        ConfigError: a value cannot be read.
    """
    settings: Settings = {}
    for flag in all_flags():
        if is_offline and not flag.facts.is_offline:
            continue
        for variable in flag.variables:
            if environ.get(variable):
                value = _parse(flag, environ[variable], f"Environment variable {variable}")
                settings[flag.field] = Setting(value, f"environment {variable}")
                break
    return settings


def unknown_variables(environ: Mapping[str, str]) -> list[str]:
    """Returns one sentence for each variable that looks like ours, vLLM's or NIM's and that nothing reads.

    Those that nothing need read are left out.
    """
    known = {variable for flag in all_flags() for variable in flag.variables}
    known |= {name for variable in envs.VARIABLES for name in (variable.name, *variable.aliases)}
    sentences = []
    for name in sorted(set(environ) - known):
        if name in envs.VARIABLES_OF_OTHERS:
            reason = envs.VARIABLES_OF_OTHERS[name]
            if reason is not None and environ[name] not in ("", "0"):
                sentences.append(f"The environment variable {name} has no effect: {reason}.")
            continue
        prefix = next((prefix for prefix in envs.OWNERS if name.startswith(prefix)), None)
        if prefix is not None and not _is_set_by_kubernetes(name, environ[name]):
            guess = did_you_mean(name, (one for one in known if one.startswith(prefix)))
            sentences.append(f"Nothing reads {envs.OWNERS[prefix]}environment variable {name}{guess}")
    return sentences


def _is_set_by_kubernetes(name: str, value: str) -> bool:
    """Whether a service whose name begins like an owner's variables brings this one into every pod."""
    return _OF_SERVICE.search(name) is not None or (name.endswith("_PORT") and "://" in value)


_OF_SERVICE = re.compile(r"_SERVICE_(HOST|PORT(_\w+)?)$|_PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|ADDR|PORT))?$")


def read_file(path: Path) -> Settings:
    """Reads a YAML file whose keys are long flag names, with dashes or underscores.

    Raises:
        ConfigError: the file cannot be read, or a key or value is wrong.
    """
    content = read_yaml(path, "Configuration file")
    return from_mapping(content, f"file {path}", f"In configuration file '{path}': ")


def read_yaml(path: Path, kind: str) -> dict[Any, Any]:
    """Reads a YAML file that holds a mapping; an empty one has no entries.

    Args:
        path: the file.
        kind: what it is, to begin error texts.

    Raises:
        ConfigError: the file cannot be read, or holds something else.
    """
    import yaml  # noqa: PLC0415 - only those who use a file pay for it

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{kind} '{path}' cannot be read: {error.strerror}.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{kind} '{path}' is not valid YAML: {reason}.") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{kind} '{path}' must hold lines of the form 'key: value'.")
    return content


def from_mapping(given: Mapping[Any, Any], origin: str, prefix: str = "", *, is_offline: bool = False) -> Settings:
    """Reads named values; None means not given.

    Args:
        given: flag name (dashes or underscores) -> value.
        origin: origin of these settings.
        prefix: begins every error text.
        is_offline: take only flags that are keyword arguments of `LLM`.

    Raises:
        ConfigError: a name is unknown or refused, or a value cannot be read.
    """
    flags = {flag.field: flag for flag in all_flags() if flag.facts.is_offline or not is_offline}
    refused = refused_flags()
    settings: Settings = {}
    for key, value in given.items():
        name = str(key).replace("-", "_")
        dashed = name.replace("_", "-")
        if name in flags:
            if name in settings:
                raise ConfigError(f"{prefix}{key} is given twice.")
            if value is not None:
                settings[name] = Setting(_parse(flags[name], value, f"{prefix}{key}"), origin)
        elif dashed in refused:
            _check_refused(refused[dashed], value, f"{prefix}{key}")
        else:
            known = [flag if is_offline else flag.replace("_", "-") for flag in flags]
            raise ConfigError(f"{prefix}unknown name '{key}'{did_you_mean(name if is_offline else dashed, known)}")
    return settings


def _parse(flag: Flag, value: Any, place: str) -> Any:
    try:
        return flag.facts.kind.parse(value)
    except ValueError as error:
        shown = "" if flag.facts.is_secret else f", got {value!r}"
        raise ConfigError(f"{place} {error}{shown}.") from None


def _with_dashes(token: str) -> str:
    if not token.startswith("--"):
        if re.fullmatch(r"-O\d", token):
            return f"{SHORT_NAMES['-O']}={token[2:]}"
        short, equals, value = token.partition("=")
        return SHORT_NAMES[short] + equals + value if short in SHORT_NAMES else token
    name, equals, value = token.partition("=")
    return name.replace("_", "-") + equals + value


def _without_refused(arguments: Sequence[str]) -> list[str]:
    """Returns the arguments less those refused flags whose value is what happens anyway."""
    refused = refused_flags()
    kept: list[str] = []
    position = 0
    while position < len(arguments):
        token = arguments[position]
        position += 1
        name, equals, value = token.partition("=")
        is_negated = name.startswith("--no-") and name[5:] in refused
        flag = refused.get(name[5:] if is_negated else name[2:]) if name.startswith("--") else None
        if flag is None:
            kept.append(token)
        elif is_negated:
            _check_refused(flag, False, name)
        elif equals or flag.is_switch:
            _check_refused(flag, value if equals else True, name)
        else:
            has_value = position < len(arguments) and not arguments[position].startswith("--")
            _check_refused(flag, arguments[position] if has_value else "", name)
            position += has_value
    return kept


def _check_refused(flag: RefusedFlag, value: Any, place: str) -> None:
    if value is not None and not flag.allows(value):
        raise ConfigError(f"{place} is not supported: {flag.sentence}.")


def _suggestion(token: str) -> str:
    name = token.partition("=")[0]
    options = ["--config"]
    for flag in all_flags():
        options.append(f"--{flag.name}")
        if flag.facts.kind.arity == "switch":
            options.append(f"--no-{flag.name}")
    return did_you_mean(name, options)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns the end of a sentence about an unknown name: a suggestion if one is close."""
    close = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else "."
