"""Adapters: whether they are served, and what the flags about them mean together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vllm_mxext.config.engine import LoRAConfig
from vllm_mxext.config.options import LoRAOptions
from vllm_mxext.config.server import LoRAServingConfig
from vllm_mxext.errors import ConfigError


def lora_reason(options: LoRAOptions) -> str | None:
    """Returns the flag that asks for adapters; None if none does."""
    asked = {
        "--enable-lora": options.enable_lora,
        "--lora-modules": options.lora_modules,
        "--lora-config": options.lora_config is not None,
        "--lora-dir": options.lora_dir is not None,
        "--allow-runtime-lora-updating": options.allow_runtime_lora_updating,
    }
    return next((flag for flag, is_asked in asked.items() if is_asked), None)


def resolve_lora(
    options: LoRAOptions, origins: Mapping[str, str], served_names: Sequence[str]
) -> tuple[LoRAConfig | None, LoRAServingConfig]:
    """Returns what engine and server do about adapters; None for the engine if nothing asks for them.

    Args:
        options: the intent.
        origins: field name -> origin, for every value that is not a default.
        served_names: of the model, which adapters cannot have.

    Raises:
        ConfigError: values contradict each other.
    """
    reason = lora_reason(options)
    if reason is None:
        return None, LoRAServingConfig()
    if "enable_lora" in origins and not options.enable_lora:
        raise ConfigError(f"{reason} needs LoRA adapters, which --no-enable-lora switches off; leave one of them out.")
    for module in options.lora_modules:
        if module.name in served_names:
            raise ConfigError(
                f"--lora-modules names an adapter '{module.name}' as the model is; choose another name for it."
            )
    folder = options.lora_dir
    if folder is not None and not folder.is_dir():
        raise ConfigError(f"--lora-dir names '{folder}', which is no folder on this machine.")
    config = LoRAConfig(
        options.max_loras, options.max_lora_rank, _max_cpu_loras(options, origins), options.lora_allow_pickle
    )
    serving = LoRAServingConfig(
        options.lora_modules, options.allow_runtime_lora_updating, folder, options.lora_refresh_interval
    )
    return config, serving


def _max_cpu_loras(options: LoRAOptions, origins: Mapping[str, str]) -> int:
    """Returns how many adapters main memory holds: those in slots are among them."""
    if options.max_cpu_loras < options.max_loras and "max_cpu_loras" in origins:
        raise ConfigError(
            f"--max-cpu-loras {options.max_cpu_loras} is less than --max-loras {options.max_loras}; raise it or lower "
            "the other."
        )
    return max(options.max_cpu_loras, options.max_loras)
