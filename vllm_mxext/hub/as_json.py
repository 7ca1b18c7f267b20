"""The hub's data as values for JSON: the one form in which commands print them."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from vllm_mxext.hub.manifest.model import Manifest, ModelEntry
from vllm_mxext.hub.store.snapshot import Snapshot


def model_as_json(entry: ModelEntry) -> dict[str, Any]:
    """Returns what a list of models says of one."""
    return {
        "name": entry.name,
        "aliases": list(entry.aliases),
        "family": entry.family,
        "license": entry.license,
        "description": entry.description,
        "num_parameters": entry.num_parameters,
        "revision": entry.revision,
        "sources": list(entry.sources),
        "num_profiles": len(entry.profiles),
    }


def manifest_as_json(manifest: Manifest) -> dict[str, Any]:
    """Returns where a manifest comes from."""
    return {"origin": manifest.origin, "path": manifest.path}


def snapshot_as_json(snapshot: Snapshot, *, has_files: bool = False) -> dict[str, Any]:
    """Returns a stored model.

    Args:
        snapshot: it.
        has_files: with all of its files and their digests.
    """
    value = {
        "name": snapshot.name,
        "revision": snapshot.revision,
        "asked_revision": snapshot.asked_revision,
        "uri": snapshot.uri,
        "folder": str(snapshot.folder),
        "size": snapshot.size,
        "num_files": len(snapshot.files),
        "created": snapshot.created_s,
    }
    return {**value, "files": [asdict(file) for file in snapshot.files]} if has_files else value
