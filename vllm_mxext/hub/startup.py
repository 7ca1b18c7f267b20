"""`prepare()`: what a start asks of the hub: a model's name becomes a folder, and its profile flags with origins."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from vllm_mxext import builtin
from vllm_mxext.config.app import AppConfig, with_settings
from vllm_mxext.config.hub import HubConfig, model_needs_hub, resolve_hub
from vllm_mxext.hub.entries import FoundModel, find_entry
from vllm_mxext.hub.hardware import Hardware
from vllm_mxext.hub.hardware_inspect import inspect_hardware
from vllm_mxext.hub.injection import inject, overrides
from vllm_mxext.hub.judgement import Selection
from vllm_mxext.hub.manifest.model import Goal
from vllm_mxext.hub.mx_download import Downloading, check_signature, is_here, obtain, wish_for
from vllm_mxext.hub.references import with_adapters, with_local_references
from vllm_mxext.hub.selection import Question, rank, select
from vllm_mxext.hub.served_model import ServedModel
from vllm_mxext.hub.store.snapshot import Snapshot
from vllm_mxext.logger import init_logger

logger = init_logger(__name__)

DEFAULT_GOAL: Goal = "latency"


@dataclass(frozen=True, slots=True)
class Prepared:
    """A start that needs nothing more from anywhere.

    Attributes:
        app: the intent, with the model as a folder and the profile's flags.
        served: how that came about; None if the model is a folder and no profile was asked for.
    """

    app: AppConfig
    served: ServedModel | None = None


def prepare(
    app: AppConfig,
    downloading: Downloading | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    hardware: Hardware | None = None,
) -> Prepared:
    """Finds the model, chooses its profile, and sees to it that its files are there.

    A stored model is started without asking its source whether there is a newer one; `mxext hub pull` asks.

    Args:
        app: the intent.
        downloading: what to do about missing files; downloads them by default.
        environ: variables to read instead of the process's environment.
        hardware: the machine to choose for; inspected by default.

    Raises:
        ConfigError: there is no such model, or the manifest or profile is wrong.
        HubError: no profile can run, or the files cannot be had.
        NeedsDownloadError: files are missing and downloading is not allowed.
    """
    downloading = downloading or Downloading()
    environ = os.environ if environ is None else environ
    config = resolve_hub(app, environ)
    served = None
    if model_needs_hub(app):
        app, served = _prepare_model(app, config, downloading, environ, hardware)
    prepared = Prepared(with_local_references(app, config, downloading), served)
    if served is not None:  # only now: who may not download comes a second time
        for note in served.manifest.notes:
            logger.info("%s", note)
        logger.info("%s", chosen_line(served))
    return prepared


def _prepare_model(
    app: AppConfig,
    config: HubConfig,
    downloading: Downloading,
    environ: Mapping[str, str],
    hardware: Hardware | None,
) -> tuple[AppConfig, ServedModel]:
    found = find_entry(app, config, may_download=downloading.is_allowed, environ=environ)
    hardware = hardware or inspect_hardware(config.folder)
    selection = choose(app, config, found, hardware)
    assert selection.chosen is not None, "select() raises if nothing can run"
    folder, snapshot = found.folder, None
    if folder is None:
        wish = wish_for(found.entry, config, selection.chosen.profile.artifact)
        folder, snapshot = obtain(wish, config, downloading)
    else:
        check_signature(found.entry, config, folder)
    app = with_adapters(inject(app, found.entry, selection.chosen), found)
    app = _with_folder(app, found, folder, snapshot)
    return app, ServedModel(found.entry, found.manifest, folder, hardware, selection, snapshot)


def choose(app: AppConfig, config: HubConfig, found: FoundModel, hardware: Hardware) -> Selection:
    """Chooses the profile that a start with this intent runs.

    Raises:
        ConfigError: there is no such profile.
        NoCompatibleProfileError: none can run.
    """
    return select(found.entry, hardware, _question(app, config, found))


def rank_profiles(app: AppConfig, config: HubConfig, found: FoundModel, hardware: Hardware) -> Selection:
    """Orders the profiles as `choose()` does; where none can run, none is chosen.

    Raises:
        ConfigError: there is no such profile.
    """
    return rank(found.entry, hardware, _question(app, config, found))


def _question(app: AppConfig, config: HubConfig, found: FoundModel) -> Question:
    goal, origin = DEFAULT_GOAL, "default"
    if found.entry.goal is not None:
        goal, origin = found.entry.goal, "manifest"
    if config.goal is not None:
        goal, origin = cast("Goal", config.goal), config.goal_origin
    return Question(
        goal,
        origin,
        config.profile,
        config.tensor_parallel,
        overrides(app),
        is_stored=found.folder is not None or is_here(wish_for(found.entry, config), config),
    )


def chosen_line(served: ServedModel) -> str:
    """Says in one sentence what was chosen and why."""
    selection = served.selection
    assert selection is not None
    assert selection.chosen is not None
    chosen, profile = selection.chosen, selection.chosen.profile
    return (
        f"Model {served.entry.name} ({served.manifest.origin}): profile {profile.name} ({profile.id[:12]}) is "
        f"{chosen.state.value}: {chosen.reasons[0]} {selection.rankings[0].why}"
    )


def _with_folder(app: AppConfig, found: FoundModel, folder: Path, snapshot: Snapshot | None) -> AppConfig:
    """Names the folder as the model, which is served under the name that it was asked for by."""
    origin = app.origins.get("model", "default")
    asked = app.model.model or found.entry.name
    revision = f" at {snapshot.revision[:12]}" if snapshot is not None else ""
    origins = {**app.origins, "model": f"{origin}, {asked}{revision}"}
    app = replace(app, model=replace(app.model, model=str(folder)), origins=origins)
    names = [asked] if found.folder is not None and asked not in builtin.BUILTIN_ALIASES else [asked, found.entry.name]
    return with_settings(app, {"served_model_name": list(dict.fromkeys(names))}, "the model's name")
