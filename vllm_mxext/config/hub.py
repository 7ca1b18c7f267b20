"""`HubConfig`: concrete settings of the MX Hub, from options and environment."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from vllm_mxext import builtin
from vllm_mxext.config import machine
from vllm_mxext.config.app import AppConfig
from vllm_mxext.errors import ConfigError

LOCK_FILE_NAME = "model.lock"

_ORG_AND_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+(@[\w./-]+)?\Z")


@dataclass(frozen=True, slots=True)
class NetworkConfig:
    """How connections are made.

    Attributes:
        is_offline: never.
        num_connections: at once, all downloads together.
        bytes_per_s: all downloads together; None = no limit.
        stall_s: seconds without a byte after which a connection is given up.
        hf_token: for the Hugging Face hub; None = what its own token file says.
        uses_modelscope: ORG/NAME is a model of ModelScope.
        environ: variables that sources read their endpoints and credentials from, and proxies.
    """

    is_offline: bool = False
    num_connections: int = 8
    bytes_per_s: int | None = None
    stall_s: float = 30.0
    hf_token: str | None = field(default=None, repr=False)
    uses_modelscope: bool = False
    environ: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class HubConfig:
    """Which files and settings a model's name stands for.

    Attributes:
        folder: where models are stored.
        network: how they get there.
        manifest: file that was asked for; None = the first of the usual places.
        manifest_origin: who asked, for people.
        profile: name, alias, id or beginning of an id; None or `default` = the best.
        goal: what is best; None = what the manifest says.
        goal_origin: who said so.
        tensor_parallel: only profiles with so many devices; None = any.
        revision: of the sources; None = what the manifest says.
        is_frozen: only files that the lock file pins.
        lock_file: it.
        allows_unsafe: pickles and Python files too.
        signature: `off`, `warn` or `require`; None = what the manifest says.
    """

    folder: Path
    network: NetworkConfig = field(default_factory=NetworkConfig)
    manifest: Path | None = None
    manifest_origin: str = ""
    profile: str | None = None
    goal: str | None = None
    goal_origin: str = ""
    tensor_parallel: int | None = None
    revision: str | None = None
    is_frozen: bool = False
    lock_file: Path = Path(LOCK_FILE_NAME)
    allows_unsafe: bool = False
    signature: str | None = None


def local_folder(app: AppConfig) -> Path | None:
    """Returns the folder that the model is named by; that of the built-in model without a name, None if none is.

    Raises:
        ConfigError: it may not be looked at.
    """
    given = app.model.model
    path = builtin.model_path() if given is None else _existing(given)
    return builtin.model_path() if path is None and given in builtin.BUILTIN_ALIASES else path


def as_uri(asked: str, *, uses_modelscope: bool = False) -> str | None:
    """Returns the URI of a source that a name stands for; None if it is neither a URI nor ORG/NAME."""
    if "://" in asked:
        return asked
    if _ORG_AND_NAME.match(asked) is None:
        return None
    return ("modelscope://" if uses_modelscope else "hf://") + asked


def is_remote(reference: str | None) -> bool:
    """Whether a source has to be asked for something that a flag names; what is on this machine is not remote."""
    return reference is not None and as_uri(reference) is not None and _existing(reference) is None


def model_needs_hub(app: AppConfig) -> bool:
    """Whether a manifest, profile or source has a say in which model is started and how."""
    hub = app.hub
    asks = (
        hub.model_profile is not None
        or hub.model_signature in ("warn", "require")
        or (app.model.model is None and hub.manifest is not None)
    )
    return asks or local_folder(app) is None


def without_effect(app: AppConfig) -> list[str]:
    """Returns a sentence for each option of the hub that means nothing, because the model is a folder."""
    if model_needs_hub(app):
        return []
    names = ("selection_goal", "revision", "frozen")
    return [
        f"--{name.replace('_', '-')} ({app.origins[name]}) has no effect: the model is a folder, and no profile is "
        "asked for with --model-profile."
        for name in names
        if name in app.origins
    ]


def needs_hub(app: AppConfig) -> bool:
    """Whether anything that is to be started comes from the hub."""
    adapters = [module.path for module in app.lora.lora_modules]
    references = [app.model.tokenizer, draft_reference(app), *adapters]
    return model_needs_hub(app) or any(map(is_remote, references))


def _existing(text: str) -> Path | None:
    """Returns what a path names on this machine; None if there is nothing, or it cannot be a path.

    Raises:
        ConfigError: it is an absolute path that may not be looked at; names of models are relative ones.
    """
    path = Path(os.path.expanduser(text))
    try:
        path.stat()
    except (OSError, ValueError) as error:
        if isinstance(error, PermissionError) and path.is_absolute():
            raise ConfigError(f"'{path}' may not be looked at; give this user the right to it.") from None
        return None
    return path


def draft_reference(app: AppConfig) -> str | None:
    """Returns what the draft model is named by; None if there is none."""
    draft = app.speculation.spec_model or (app.speculation.speculative_config or {}).get("model")
    return draft if isinstance(draft, str) else None


def resolve_hub(app: AppConfig, environ: Mapping[str, str] | None = None) -> HubConfig:
    """Returns the hub's settings.

    Raises:
        ConfigError: there is no folder to store models in.
    """
    options, environ = app.hub, os.environ if environ is None else environ
    folder = options.download_dir
    if folder is None:
        base = app.model.cache_path or machine.cache_folder(environ)
        if base is None:
            raise ConfigError("There is no home folder to store models in; name a folder with --download-dir.")
        folder = base / "models"
    network = NetworkConfig(
        is_offline=options.offline,
        num_connections=options.download_connections,
        bytes_per_s=options.download_bandwidth,
        stall_s=options.download_stall_timeout,
        hf_token=options.hf_token[-1] if options.hf_token else None,
        uses_modelscope=options.use_modelscope,
        environ=environ,
    )
    return HubConfig(
        folder.absolute(),
        network,
        manifest=options.manifest,
        manifest_origin=app.origins.get("manifest", ""),
        profile=options.model_profile,
        goal=options.selection_goal,
        goal_origin=app.origins.get("selection_goal", ""),
        tensor_parallel=options.tensor_parallel_size,
        revision=options.revision,
        is_frozen=options.frozen,
        lock_file=options.lock_file or Path(LOCK_FILE_NAME),
        allows_unsafe=options.manifest_allow_unsafe,
        signature=options.model_signature,
    )
