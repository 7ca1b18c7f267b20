"""`stored_snapshots()`: what is stored of a model that a user names in any of the ways a start knows."""

from __future__ import annotations

from vllm_mxext.config.hub import HubConfig, as_uri
from vllm_mxext.errors import ConfigError
from vllm_mxext.hub.manifest.lookup import find_manifest, find_model
from vllm_mxext.hub.store.model_store import ModelStore
from vllm_mxext.hub.store.snapshot import Snapshot


def stored_snapshots(
    store: ModelStore, config: HubConfig, asked: str, revision: str | None = None
) -> tuple[Snapshot, ...]:
    """Returns the snapshots of a model, whole or not; those of all of its artifacts if it has several.

    Args:
        store: where they are.
        config: names the manifest, whose aliases count.
        asked: a name in the store, a name or alias of the manifest, a URI or ORG/NAME.
        revision: only this one: a revision, its first characters, or a branch or tag that was asked for.
    """
    names, groups = _names(config, asked)
    found = [one for one in store.snapshots() if one.name in names or one.name.rpartition("/")[0] in groups]
    if revision is None:
        return tuple(found)
    exact = [store.snapshot(name, revision, must_be_whole=False) for name in dict.fromkeys(one.name for one in found)]
    return tuple(one for one in exact if one is not None)


def _names(config: HubConfig, asked: str) -> tuple[set[str], set[str]]:
    """Returns what a model may be stored as, and what names of its artifacts may begin with."""
    names = {asked}
    uri = as_uri(asked, uses_modelscope=config.network.uses_modelscope)
    if uri is not None:
        names.add(uri)
        names.add(uri.partition("://")[2].partition("@")[0])
    try:
        entry = find_model(find_manifest(config, config.network.environ), asked)
    except ConfigError:  # a manifest with mistakes must not keep anybody from looking after what is stored
        entry = None
    own = {entry.name} if entry is not None else set()
    # A name without a slash that no manifest has may be that of an organisation, whose models are not one model.
    return names | own, {name for name in names if "/" in name} | own
