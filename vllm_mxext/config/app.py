"""`AppConfig`: what the user asked for, value by value with its origin, before anything is looked up."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from vllm_mxext.config import sources
from vllm_mxext.config.flags import flags_of
from vllm_mxext.config.hub_options import HubOptions
from vllm_mxext.config.options import (
    GROUPS,
    CacheOptions,
    DeviceOptions,
    LoRAOptions,
    ModelOptions,
    SchedulerOptions,
    ServerOptions,
    SpeculationOptions,
    all_flags,
)

SERVE_COMMAND = "mxext serve"


@dataclass(frozen=True, slots=True)
class AppConfig:
    """The user's intent.

    Attributes:
        server: how the server listens, answers and logs.
        model: which model and how.
        hub: where its files and settings come from.
        cache: KV cache.
        scheduler: batching and queue.
        speculation: draft tokens.
        lora: adapters.
        device: where it runs.
        origins: field name -> origin, for every value that is not a default.
        warnings: sentences to log at start, for example about variables that nothing reads.
    """

    server: ServerOptions = field(default_factory=ServerOptions)
    model: ModelOptions = field(default_factory=ModelOptions)
    hub: HubOptions = field(default_factory=HubOptions)
    cache: CacheOptions = field(default_factory=CacheOptions)
    scheduler: SchedulerOptions = field(default_factory=SchedulerOptions)
    speculation: SpeculationOptions = field(default_factory=SpeculationOptions)
    lora: LoRAOptions = field(default_factory=LoRAOptions)
    device: DeviceOptions = field(default_factory=DeviceOptions)
    origins: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def parse_serve_args(
    argv: Sequence[str], *, environ: Mapping[str, str] | None = None, prog: str = SERVE_COMMAND
) -> AppConfig:
    """Merges a command line with the environment and the file it names: command line > environment > file > default.

    `--help` prints the flags and leaves the process with status 0.

    Args:
        argv: arguments after the command.
        environ: variables to read instead of the process's environment.
        prog: the command, for help and messages.

    Raises:
        ConfigError: a flag, variable, key or value is wrong; the text is one sentence.
    """
    environ = os.environ if environ is None else environ
    settings, config_file = sources.read_command_line(argv, prog)
    from_file = sources.read_file(config_file) if config_file is not None else {}
    merged = {**from_file, **sources.read_environment(environ), **settings}
    warnings = sources.unknown_variables(environ)
    if "lora_config" in merged:
        from vllm_mxext.config.lora_file import with_lora_file  # noqa: PLC0415 - only those who use a file pay for it

        merged, more = with_lora_file(merged)
        warnings += more
    return _build(merged, tuple(warnings))


def from_arguments(given: Mapping[str, Any], *, environ: Mapping[str, str] | None = None) -> AppConfig:
    """Merges the keyword arguments of `LLM` with the environment: argument > environment > default.

    Args:
        given: flag names with underscores -> values as text or Python values; None means not given.
        environ: variables to read instead of the process's environment.

    Raises:
        ConfigError: a name is unknown or not for offline use, or a value is wrong.
    """
    environ = os.environ if environ is None else environ
    arguments = sources.from_mapping(given, "argument", is_offline=True)
    return _build({**sources.read_environment(environ, is_offline=True), **arguments}, ())


def with_settings(app: AppConfig, given: Mapping[str, Any], origin: str) -> AppConfig:
    """Sets what nothing else has set: a layer above the defaults and below everything that is there.

    Args:
        app: the intent.
        given: flag names -> values as text or Python values.
        origin: where these values come from.

    Raises:
        ConfigError: a name is unknown or a value is wrong.
    """
    settings = sources.from_mapping(given, origin, f"{origin[:1].upper()}{origin[1:]}: ")
    fresh = {name: setting for name, setting in settings.items() if name not in app.origins}
    groups = {
        group: replace(
            getattr(app, group),
            **{flag.field: fresh[flag.field].value for flag in flags_of(group, options) if flag.field in fresh},
        )
        for group, options in GROUPS
    }
    origins = {**app.origins, **{name: setting.origin for name, setting in fresh.items()}}
    return replace(app, **groups, origins=origins)


def _build(settings: sources.Settings, warnings: tuple[str, ...]) -> AppConfig:
    by_group: dict[str, dict[str, Any]] = {name: {} for name, _ in GROUPS}
    for flag in all_flags():
        if flag.field in settings:
            by_group[flag.group][flag.field] = settings[flag.field].value
    groups = {name: options(**by_group[name]) for name, options in GROUPS}
    origins = {name: setting.origin for name, setting in settings.items()}
    return AppConfig(**groups, origins=origins, warnings=warnings)
