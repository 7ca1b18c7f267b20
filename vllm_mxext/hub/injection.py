"""Injection: the flags that a profile stands for, laid below everything that the user has said."""

from __future__ import annotations

import re
from typing import Any

from vllm_mxext.config.app import AppConfig, with_settings
from vllm_mxext.config.options import all_flags
from vllm_mxext.errors import ManifestError
from vllm_mxext.hub.judgement import Judgement
from vllm_mxext.hub.manifest.model import ModelEntry, Profile

_GROUPS = frozenset({"cache", "scheduler", "speculation", "device"})

_FIELDS = frozenset(
    {
        "dtype", "quantization", "max_model_len", "generation_config", "override_generation_config", "chat_template",
        "chat_template_content_format", "default_chat_template_kwargs", "prepared_weights", "enable_lora", "max_loras",
        "max_lora_rank", "max_cpu_loras", "reasoning_parser", "tool_call_parser", "enable_auto_tool_choice",
    }
)  # fmt: skip
"""What a profile may set besides these groups: how the model runs, never who may reach it or which code is loaded."""


def allowed_fields() -> frozenset[str]:
    """Names of the flags, with underscores, that a profile may set."""
    return frozenset(flag.field for flag in all_flags() if flag.group in _GROUPS or flag.field in _FIELDS)


def reads_file(name: str, value: Any) -> bool:
    """Whether a flag makes the server read a file of whoever starts it, which a manifest of somebody else must not.

    What a chat template says, clients can get to see.

    Args:
        name: of the flag, with dashes.
        value: as the manifest has it.
    """
    if name == "generation-config":
        return value not in ("auto", "vllm")
    is_text = isinstance(value, str) and any(mark in value for mark in ("{{", "{%", "\n"))
    return name == "chat-template" and not is_text and not re.fullmatch(r"[\w-]+", str(value))


def profile_settings(profile: Profile) -> dict[str, Any]:
    """Returns the flags of a profile, with dashes, and their values.

    Raises:
        ManifestError: it sets a flag that is not for profiles.
    """
    given = {**profile.engine_args, **profile.lora}
    settings = {name.replace("_", "-"): value for name, value in given.items()}
    for name in sorted(settings.keys() - {field.replace("_", "-") for field in allowed_fields()}):
        raise ManifestError(
            f"Profile '{profile.name}' sets --{name}, which a profile may not; give it on the command line."
        )
    for name, value in sorted(settings.items()):
        if reads_file(name, value):
            raise ManifestError(
                f"Profile '{profile.name}' sets --{name} to a file, which a profile may not; give it yourself."
            )
    return settings


def overrides(app: AppConfig) -> dict[str, Any]:
    """Returns the flags that profiles may set and the user has set: every profile is judged with them."""
    by_group = {flag.field: flag.group for flag in all_flags()}
    return {name: getattr(getattr(app, by_group[name]), name) for name in allowed_fields() if name in app.origins}


def inject(app: AppConfig, entry: ModelEntry, chosen: Judgement) -> AppConfig:
    """Returns the user's intent with a profile's flags where it says nothing.

    Args:
        app: the intent.
        entry: the model.
        chosen: its profile; what makes a reduced one fit is set too.

    Raises:
        ConfigError: a value of the profile is wrong.
    """
    profile = chosen.profile
    settings = profile_settings(profile)
    if profile.tags.tp > 1:
        settings["tensor-parallel-size"] = profile.tags.tp
    app = with_settings(app, chosen.suggested, f"profile {profile.name}, what fits into memory")
    return with_settings(app, settings, f"profile {profile.name} of {entry.name}")
