"""`find_entry()`: which entry of which manifest a model's name stands for; one is made where no manifest has it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from vllm_mxext.config.app import AppConfig
from vllm_mxext.config.hub import HubConfig, as_uri, local_folder
from vllm_mxext.errors import ChecksumError, ConfigError, DownloadError, HubCause, MissingDependencyError
from vllm_mxext.hub.manifest.lookup import find_manifest, find_model, origin_of, unknown_model
from vllm_mxext.hub.manifest.model import Manifest, ModelEntry, Profile
from vllm_mxext.hub.mx_download import NeedsDownloadError, split_revision, stored, wish_for
from vllm_mxext.hub.store.hf_cache import find_snapshot
from vllm_mxext.hub.store.model_store import ModelStore
from vllm_mxext.logger import init_logger

logger = init_logger(__name__)


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


def find_entry(
    app: AppConfig, config: HubConfig, *, may_download: bool, environ: Mapping[str, str], asks_again: bool = False
) -> FoundModel:
    """Finds a model: a folder, a name or alias of the manifest, or a source's URI or ORG/NAME.

    Args:
        app: names the model.
        config: names the manifest, and how to reach sources.
        may_download: whether a source may be asked for a model that no manifest has.
        environ: variables that say where manifests are.
        asks_again: what a source answered before does not count; `remember()` makes the new answer count.

    Raises:
        ConfigError: there is no such model, or the manifest is wrong.
        DownloadError: the source cannot be asked.
        NeedsDownloadError: it would have to be, and may not.
    """
    found = _find(app, config, may_download=may_download, environ=environ, asks_again=asks_again)
    found = _with_shape(found, config, may_download=may_download)
    if found.entry.profiles:
        return found
    return replace(found, entry=replace(found.entry, profiles=(Profile("default"),)))


def remember(app: AppConfig, config: HubConfig, found: FoundModel) -> None:
    """Makes later starts find what a source was asked again: after its files are here, so that none is without."""
    uri = as_uri(app.model.model or "", uses_modelscope=config.network.uses_modelscope)
    if uri is not None and found.folder is None and found.manifest.path is None:
        from vllm_mxext.hub.model_free import keep_entry  # noqa: PLC0415 - most models are in manifests

        keep_entry(config.folder, uri, config.revision, found.entry)


def _find(
    app: AppConfig, config: HubConfig, *, may_download: bool, environ: Mapping[str, str], asks_again: bool
) -> FoundModel:
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
        return FoundModel(known, replace(manifest, origin=origin_of(manifest, known)))
    uri = as_uri(asked, uses_modelscope=config.network.uses_modelscope)
    if uri is None:
        raise ConfigError(unknown_model(manifest, asked))
    return _made(uri, asked, config, may_download=may_download, asks_again=asks_again)


def _only_model(manifest: Manifest) -> ModelEntry:
    if len(manifest.models) == 1:
        return manifest.models[0]
    if not manifest.models:
        raise ConfigError(f"The manifest has no models ({manifest.origin}); add one, or name another manifest.")
    names = ", ".join(model.name for model in manifest.models)
    raise ConfigError(f"The manifest has several models; name one with --model or MIM_MODEL_NAME: {names}.")


def _made(uri: str, asked: str, config: HubConfig, *, may_download: bool, asks_again: bool) -> FoundModel:
    entry = _entry_of(uri, config, may_download=may_download, asks_again=asks_again)
    if entry is None:
        entry = _entry_of_stored(uri, config)
    if entry is None:
        at = f" at the revision '{config.revision}'" if config.revision else ""
        raise DownloadError(
            f"Nothing is stored of '{asked}'{at} in '{config.folder}', and --offline (MIM_OFFLINE) forbids asking its "
            "source.",
            cause=HubCause.OFFLINE,
        )
    return FoundModel(entry, Manifest((entry,), f"made from {uri}"))


def _with_shape(found: FoundModel, config: HubConfig, *, may_download: bool) -> FoundModel:
    """Adds what memory is estimated from, where a manifest leaves it out: from the files, or from a source.

    Args:
        found: the model.
        config: where its files are, and how to reach sources.
        may_download: whether sources may be asked.

    Raises:
        NeedsDownloadError: one would have to be, and may not.
    """
    if found.entry.config or found.folder is not None:
        return found
    wish = wish_for(found.entry, config)
    snapshot = stored(wish, ModelStore(config.folder))
    folder = find_snapshot(wish.uris, wish.revision, config.network.environ) if snapshot is None else snapshot.folder
    if folder is not None:
        from vllm_mxext.hub.model_free import entry_from_folder  # noqa: PLC0415 - few manifests need it

        return _shaped(found, entry_from_folder(folder))
    made = next((made for uri in wish.uris if (made := _tried(uri, config, may_download=may_download))), None)
    return found if made is None else _shaped(found, made)


def _tried(uri: str, config: HubConfig, *, may_download: bool) -> ModelEntry | None:
    try:
        return _entry_of(uri, config, may_download=may_download)
    except (DownloadError, ChecksumError, MissingDependencyError) as error:
        logger.warning("The shape of a model is not known from %s: %s", uri, error)
        return None


def _shaped(found: FoundModel, made: ModelEntry) -> FoundModel:
    entry = found.entry
    num_parameters = entry.num_parameters or made.num_parameters
    return replace(found, entry=replace(entry, config=made.config, num_parameters=num_parameters))


def _entry_of_stored(uri: str, config: HubConfig) -> ModelEntry | None:
    """Makes an entry of files that came in a bundle, of which no source has told anything here."""
    from vllm_mxext.hub.model_free import entry_from_folder  # noqa: PLC0415 - imports httpx

    store = ModelStore(config.folder)
    plain_uri, revision = split_revision(uri)
    names = {one.name for one in store.snapshots() if one.uri in (uri, plain_uri)}
    asked = config.revision or revision or None
    found = [one for name in sorted(names) if (one := store.snapshot(name, asked)) is not None]
    if not found:
        return None
    snapshot = max(found, key=lambda one: one.created_s)
    made = entry_from_folder(snapshot.folder)
    paths = {file.path for file in snapshot.files}  # the store's own description lies beside them
    artifacts = tuple(
        replace(one, files=tuple(file for file in one.files if file.path in paths)) for one in made.artifacts
    )
    return replace(made, name=snapshot.name, artifacts=artifacts, sources=(uri,), revision=snapshot.revision)


def _entry_of(uri: str, config: HubConfig, *, may_download: bool, asks_again: bool = False) -> ModelEntry | None:
    """Returns what a source has, from an earlier look if there was one; None if there was none and we are offline."""
    from vllm_mxext.hub.model_free import cached_entry, entry_from_source, keep_entry  # noqa: PLC0415 - imports httpx

    entry = None if asks_again else cached_entry(config.folder, uri, config.revision)
    if entry is not None or config.network.is_offline:
        return entry
    if not may_download:
        raise NeedsDownloadError
    from vllm_mxext.hub.network import Network  # noqa: PLC0415
    from vllm_mxext.hub.sources.opening import open_source  # noqa: PLC0415

    with Network(config.network) as network:
        source = open_source(uri, config.revision, network)
        try:
            entry = entry_from_source(uri, source, num_connections=config.network.num_connections)
        finally:
            source.close()
    if not asks_again:
        keep_entry(config.folder, uri, config.revision, entry)
    return entry
