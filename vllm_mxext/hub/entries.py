"""`find_entry()`: which entry of which manifest a model's name stands for; one is made where no manifest has it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from vllm_mxext.config.app import AppConfig
from vllm_mxext.config.hub import HubConfig, as_uri, local_folder
from vllm_mxext.errors import ConfigError, DownloadError, HubCause
from vllm_mxext.hub.manifest.lookup import find_manifest, find_model, unknown_model
from vllm_mxext.hub.manifest.model import Manifest, ModelEntry, Profile
from vllm_mxext.hub.mx_download import NeedsDownloadError


@dataclass(frozen=True, slots=True)
class FoundModel:
    """What a model's name stands for.

    Attributes:
        entry: the model, with at least one profile.
        manifest: where it is written.
        folder: its files, if they are the user's own and not the store's.
    """

    entry: ModelEntry
    manifest: Manifest
    folder: Path | None = None


def find_entry(app: AppConfig, config: HubConfig, *, may_download: bool, environ: Mapping[str, str]) -> FoundModel:
    """Finds a model: a folder, a name or alias of the manifest, or a source's URI or ORG/NAME.

    Args:
        app: names the model.
        config: names the manifest, and how to reach sources.
        may_download: whether a source may be asked for a model that no manifest has.
        environ: variables that say where manifests are.

    Raises:
        ConfigError: there is no such model, or the manifest is wrong.
        DownloadError: the source cannot be asked.
        NeedsDownloadError: it would have to be, and may not.
    """
    found = _find(app, config, may_download=may_download, environ=environ)
    if found.entry.profiles:
        return found
    return replace(found, entry=replace(found.entry, profiles=(Profile("default"),)))


def _find(app: AppConfig, config: HubConfig, *, may_download: bool, environ: Mapping[str, str]) -> FoundModel:
    folder = local_folder(app)
    if folder is not None and not (app.model.model is None and config.manifest is not None):
        from vllm_mxext.hub.model_free import entry_from_folder  # noqa: PLC0415 - only folders with profiles need it

        entry = entry_from_folder(folder)
        return FoundModel(entry, Manifest((entry,), f"made from {folder}"), folder)
    manifest = find_manifest(config, environ)
    asked = app.model.model
    if asked is None:
        return FoundModel(_only_model(manifest), manifest)
    known = find_model(manifest, asked)
    if known is not None:
        return FoundModel(known, manifest)
    uri = as_uri(asked, uses_modelscope=config.network.uses_modelscope)
    if uri is None:
        raise ConfigError(unknown_model(manifest, asked))
    return _made(uri, asked, config, may_download=may_download)


def _only_model(manifest: Manifest) -> ModelEntry:
    if len(manifest.models) == 1:
        return manifest.models[0]
    names = ", ".join(model.name for model in manifest.models)
    raise ConfigError(f"The manifest has several models; name one with --model or MIM_MODEL_NAME: {names}.")


def _made(uri: str, asked: str, config: HubConfig, *, may_download: bool) -> FoundModel:
    from vllm_mxext.hub.model_free import cached_entry, entry_from_source, keep_entry  # noqa: PLC0415

    entry = cached_entry(config.folder, uri, config.revision)
    if entry is None and config.network.is_offline:
        raise DownloadError(
            f"Nothing is stored of '{asked}' in '{config.folder}', and --offline (MIM_OFFLINE) forbids asking "
            "its source.",
            cause=HubCause.OFFLINE,
        )
    if entry is None and not may_download:
        raise NeedsDownloadError
    if entry is None:
        from vllm_mxext.hub.network import Network  # noqa: PLC0415
        from vllm_mxext.hub.sources.opening import open_source  # noqa: PLC0415

        with Network(config.network) as network:
            source = open_source(uri, config.revision, network)
            try:
                entry = entry_from_source(uri, source)
            finally:
                source.close()
        keep_entry(config.folder, uri, config.revision, entry)
    return FoundModel(entry, Manifest((entry,), f"made from {uri}"))
