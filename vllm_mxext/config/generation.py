"""Sampling defaults and chat template as the user's flags choose them."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vllm_mxext.config.frontend import StructuredOutputsConfig
from vllm_mxext.config.model_spec import read_default_sampling
from vllm_mxext.constraint_params import BACKENDS
from vllm_mxext.errors import ConfigError, InvalidRequestError
from vllm_mxext.sampling_params import SamplingParams

_TEMPLATE_NAME = re.compile(r"[A-Za-z0-9_-]+")
_FIELDS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")


def default_sampling(source: str, override: Mapping[str, Any], model_path: Path) -> dict[str, float | int]:
    """Returns values for the sampling fields that a request leaves open.

    Args:
        source: `auto` = the model's `generation_config.json`, `vllm` = none, else a folder that has such a file.
        override: fields that replace those of the file; `max_new_tokens` means `max_tokens`.
        model_path: the checkpoint.

    Raises:
        ConfigError: the folder has no such file, a field is not a sampling field, or a value is out of range.
    """
    chosen: dict[str, Any] = {}
    if source == "auto":
        chosen = dict(read_default_sampling(model_path))
    elif source != "vllm":
        folder = Path(os.path.expanduser(source))
        if not os.path.isfile(folder / "generation_config.json"):
            raise ConfigError(
                f"--generation-config must be auto, vllm or a folder with generation_config.json: {source}"
            )
        chosen = dict(read_default_sampling(folder))
    for name, value in override.items():
        field = "max_tokens" if name == "max_new_tokens" else name
        if field not in (*_FIELDS, "max_tokens"):
            known = ", ".join((*_FIELDS, "max_tokens"))
            raise ConfigError(f"--override-generation-config has no field '{name}'; there are {known}.")
        chosen[field] = value
    _check(chosen)
    return chosen


def read_chat_template(given: str | None) -> str | None:
    """Returns the template text of `--chat-template`: the content of a file, or the value itself, which may be a name.

    Raises:
        ConfigError: it names no file and does not look like a template.
    """
    if given is None:
        return None
    if any(mark in given for mark in ("{{", "{%", "\n")):
        return given
    path = Path(os.path.expanduser(given))
    if _TEMPLATE_NAME.fullmatch(given) and not os.path.exists(path):
        return given
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"Chat template '{given}' is neither a template nor a readable file: {reason}.") from None


def default_template_kwargs(given: dict[str, Any] | None) -> dict[str, Any]:
    """Returns the variables of `--default-chat-template-kwargs`.

    Raises:
        ConfigError: one of them is set by every request itself.
    """
    for name in given or {}:
        if name in ("messages", "chat_template", "tokenize", "add_generation_prompt", "continue_final_message"):
            raise ConfigError(f"--default-chat-template-kwargs must not set {name}; every request does.")
    return given or {}


def _check(values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ConfigError(f"The default sampling parameter {name} must be a number, got {value!r}.")
    try:
        SamplingParams(**values)
    except InvalidRequestError as error:
        raise ConfigError(f"Default sampling parameters are wrong: {error}") from None


def structured_outputs(given: Mapping[str, Any] | None) -> StructuredOutputsConfig:
    """Reads `--structured-outputs-config`; null values count as not given.

    Raises:
        ConfigError: an unknown key, another backend, or a value that is neither true nor false.
    """
    values = {name: value for name, value in (given or {}).items() if value is not None}
    backend = values.pop("backend", "auto")
    if backend not in BACKENDS:
        raise ConfigError(
            f"--structured-outputs-config has backend {backend!r}, but llguidance enforces every constraint here; "
            "use auto or leave it out."
        )
    known = ("disable_any_whitespace", "disable_additional_properties")
    for name, value in values.items():
        if name not in known or not isinstance(value, bool):
            raise ConfigError(
                f"--structured-outputs-config takes backend, and {' and '.join(known)} as true or false, "
                f"got {name}: {value!r}."
            )
    return StructuredOutputsConfig(**values)
