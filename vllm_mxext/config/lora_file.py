"""The file of `--lora-config`: base model, adapters and settings in YAML, as values of flags."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vllm_mxext.config import sources
from vllm_mxext.config.options import LoRAOptions
from vllm_mxext.config.server import LoRAModule
from vllm_mxext.config.sources import Setting, Settings, did_you_mean
from vllm_mxext.errors import ConfigError

_KIND = "LoRA configuration file"


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=())


class BaseModelSection(_Section):
    """The model that is served."""

    model_path: str | None = None
    model_name: str | None = None


class AdapterSection(_Section):
    """One adapter."""

    name: str
    path: str
    format: Literal["huggingface", "nemo", "trtllm", "gguf"] | None = None
    description: str | None = None
    base_model_name: str | None = None
    auto_load: bool | None = None


class SettingsSection(_Section):
    """Limits and switches."""

    max_lora_rank: int | None = Field(default=None, ge=1)
    max_loras: int | None = Field(default=None, ge=1)
    enable_dynamic_loading: bool | None = None
    cache_size: int | None = Field(default=None, ge=1)


class LoRAFile(_Section):
    """The whole file; every key may be left out."""

    base_model: BaseModelSection | None = None
    lora_adapters: list[AdapterSection] | None = None
    lora_settings: SettingsSection | None = None
    auto_load: list[str] | None = None

    def loads_at_start(self, adapter: AdapterSection) -> bool:
        """Whether an adapter is served from the start.

        Its own `auto_load` says so, else the list of the file; without a list all adapters are.
        """
        if adapter.auto_load is not None:
            return adapter.auto_load
        return self.auto_load is None or adapter.name in self.auto_load


def with_lora_file(settings: Settings) -> tuple[Settings, list[str]]:
    """Adds what the file of `--lora-config` says where nothing else has set it; adapters of flags come in addition.

    Returns:
        The settings, and sentences to warn with.

    Raises:
        ConfigError: the file cannot be read, or a key or value is wrong.
    """
    path: Path = settings["lora_config"].value
    content = read_lora_file(path)
    values = dict(_flag_values(content, path.parent.absolute()))
    given = sources.from_mapping(values, f"file {path}", f"In {_KIND} '{path}': ")
    if "lora_modules" in given and "lora_modules" in settings:
        named = settings["lora_modules"]
        names = {module.name for module in named.value}
        others = tuple(module for module in given["lora_modules"].value if module.name not in names)
        settings = {**settings, "lora_modules": Setting((*named.value, *others), f"{named.origin}, file {path}")}
    return {**given, **settings}, _warnings(content)


def read_lora_file(path: Path) -> LoRAFile:
    """Reads and checks a file.

    Raises:
        ConfigError: it cannot be read, or a key or value is wrong; the text is one sentence.
    """
    content = sources.read_yaml(path, _KIND)
    try:
        file = LoRAFile.model_validate(content)
    except ValidationError as error:
        raise ConfigError(f"In {_KIND} '{path}': {_first_finding(error)}") from None
    names = [adapter.name for adapter in file.lora_adapters or ()]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"In {_KIND} '{path}': lora_adapters names '{name}' twice; give each a name of its own.")
    for name in file.auto_load or ():
        if name not in names:
            raise ConfigError(
                f"In {_KIND} '{path}': auto_load names an unknown adapter '{name}'{did_you_mean(name, names)}"
            )
    for adapter in file.lora_adapters or ():
        if adapter.auto_load is False and adapter.name in (file.auto_load or ()):
            raise ConfigError(
                f"In {_KIND} '{path}': adapter '{adapter.name}' has auto_load: false and is in the list auto_load; "
                "remove one of the two."
            )
    return file


def _flag_values(file: LoRAFile, folder: Path) -> Iterator[tuple[str, Any]]:
    """Yields names of flags with their values, None for those that the file leaves open."""
    base, settings = file.base_model or BaseModelSection(), file.lora_settings or SettingsSection()
    if base.model_path is not None:
        here = _in_folder(base.model_path, folder)
        yield "model", here if os.path.exists(here) else base.model_path
    yield "served_model_name", base.model_name
    yield "max_lora_rank", settings.max_lora_rank
    yield "max_loras", settings.max_loras
    if settings.cache_size is not None:
        yield "max_cpu_loras", max(settings.cache_size, settings.max_loras or LoRAOptions().max_loras)
    yield "allow_runtime_lora_updating", settings.enable_dynamic_loading
    modules = [
        LoRAModule(
            adapter.name,
            _in_folder(adapter.path, folder),
            adapter.base_model_name,
            adapter.format,
            adapter.description,
            is_loaded_at_start=file.loads_at_start(adapter),
        )
        for adapter in file.lora_adapters or ()
    ]
    yield "lora_modules", modules or None


def _in_folder(path: str, folder: Path) -> str:
    """Returns a path as seen from the folder of the file."""
    return path if "://" in path else os.path.normpath(folder / os.path.expanduser(path))


def _warnings(file: LoRAFile) -> list[str]:
    settings = file.lora_settings or SettingsSection()
    if settings.cache_size is None or settings.max_loras is None or settings.cache_size >= settings.max_loras:
        return []
    return [
        f"cache_size {settings.cache_size} is less than max_loras {settings.max_loras} in the LoRA configuration file; "
        f"{settings.max_loras} adapters are kept in memory."
    ]


def _first_finding(error: ValidationError) -> str:
    findings = error.errors(include_url=False, include_context=False)
    unknown = [finding for finding in findings if finding["type"] == "extra_forbidden"]
    finding = (unknown or findings)[0]
    path = finding["loc"]
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")
    if unknown:
        known = _known_keys(path[:-1])
        return f"unknown key {where}{did_you_mean(str(path[-1]), known)} Known here: {', '.join(known)}."
    if finding["type"] == "missing":
        return f"{where} is missing."
    wanted = "Input should be a mapping of keys" if finding["type"] == "model_type" else finding["msg"]
    return f"{where}: {wanted}, got {finding['input']!r}."


def _known_keys(path: tuple[int | str, ...]) -> list[str]:
    sections: dict[tuple[int | str, ...], type[_Section]] = {
        (): LoRAFile,
        ("base_model",): BaseModelSection,
        ("lora_adapters",): AdapterSection,
        ("lora_settings",): SettingsSection,
    }
    return list(sections[tuple(part for part in path if isinstance(part, str))].model_fields)
