"""`serve_command()`: the command line of `mxext serve` that runs a chosen profile, every flag of it spelled out."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from vllm_mxext.config.app import AppConfig
from vllm_mxext.config.flags import Flag
from vllm_mxext.config.options import all_flags
from vllm_mxext.hub.injection import inject
from vllm_mxext.hub.judgement import Judgement
from vllm_mxext.hub.manifest.model import ModelEntry

_SAID_ALREADY = ("model", "model_profile", "selection_goal")


def serve_command(app: AppConfig, entry: ModelEntry, chosen: Judgement) -> list[str]:
    """Returns the words of the command line.

    What the environment and a file say is left to them; secrets are left out.

    Args:
        app: the intent; what the command line said is repeated.
        entry: the model.
        chosen: its profile.
    """
    words = ["mxext", "serve"]
    if app.model.model is not None:
        words.append(app.model.model)
    if any(profile is chosen.profile for profile in entry.profiles) and len(entry.profiles) > 1:
        words += ["--model-profile", chosen.profile.name]
    injected = inject(app, entry, chosen)
    for flag in all_flags():
        origin = injected.origins.get(flag.field, "")
        is_wanted = origin.startswith("profile ") or origin == "command line"
        if is_wanted and flag.field not in _SAID_ALREADY and not flag.facts.is_secret:
            words += _words(flag, getattr(getattr(injected, flag.group), flag.field))
    return words


def _words(flag: Flag, value: Any) -> Iterator[str]:
    if flag.facts.kind.arity == "switch":
        yield f"--{flag.name}" if value else f"--no-{flag.name}"
        return
    yield f"--{flag.name}"
    if flag.facts.kind.arity == "many":
        yield from map(str, value)
    else:
        yield json.dumps(value) if isinstance(value, Mapping) else str(value)
