"""What the routes of the hub answer, as plain data without secrets; some of it reads files, so call it in a thread."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from vllm_mxext.hub.hardware import Hardware
from vllm_mxext.hub.judgement import Judgement, Ranking, Selection
from vllm_mxext.hub.manifest.model import SCHEMA, ModelEntry
from vllm_mxext.redaction import redact
from vllm_mxext.server.served_hub import KnownModel

MAX_TEXT_BYTES = 4 * 2**20
"""Licenses and manifests that are longer are not shown."""

_LICENSE_NAMES = ("license", "licence", "copying", "notice")


def plain(value: Any) -> Any:
    """Returns dataclasses, enumerations, paths and mappings as what JSON has; secrets in texts are cut out."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, (str, Path)):
        return redact(str(value))
    if is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(each) for each in value]
    return value


def metadata_document(model: KnownModel, version: str) -> dict[str, Any]:
    """Returns the body of `/v1/metadata`, with NVIDIA NIM's fields; what there is not is an empty text."""
    served = model.served
    chosen = served.selection.chosen if served is not None and served.selection is not None else None
    info = {"modelUrl": _url(model), "shortName": model.entry.name}
    return {
        "assetInfo": [adapter["uri"] for adapter in plain(model.entry.adapters)],
        "licenseInfo": license_document(model),
        "modelInfo": [info],
        "repository_override": _override(model),
        "version": version,
        "selectedModelProfileId": "" if chosen is None else chosen.profile.id,
    }


def _url(model: KnownModel) -> str:
    snapshot = model.served.snapshot if model.served is not None else None
    if snapshot is None or not snapshot.uri:
        return redact(model.folder.absolute().as_uri())
    return redact(f"{snapshot.uri}@{snapshot.revision}" if snapshot.revision else snapshot.uri)


def _override(model: KnownModel) -> str:
    """Returns the source that the files came from if it is not the manifest's first one."""
    snapshot = model.served.snapshot if model.served is not None else None
    if snapshot is None or snapshot.uri in model.entry.sources[:1]:
        return ""
    return redact(snapshot.uri)


def license_document(model: KnownModel) -> dict[str, Any]:
    """Returns the body of `/v1/license`, with NVIDIA NIM's fields; without a file in the model the text is empty."""
    path = _license_file(model.folder)
    text = "" if path is None else path.read_text(encoding="utf-8", errors="replace")
    return {
        "name": model.entry.license,
        "path": "" if path is None else str(path),
        "sha": hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest() if text else "",
        "size": len(text),
        "url": model.entry.license_url,
        "type": "file",
        "content": text,
    }


def _license_file(folder: Path) -> Path | None:
    if not folder.is_dir():
        return None
    for name in _LICENSE_NAMES:
        for path in sorted(folder.iterdir()):
            if path.name.lower().startswith(name) and path.is_file() and path.stat().st_size <= MAX_TEXT_BYTES:
                return path
    return None


def manifest_document(model: KnownModel) -> dict[str, Any]:
    """Returns the body of `/v1/manifest`: NVIDIA NIM's text of the file, and the served entry as data."""
    return {
        "manifest_file": _manifest_text(model.manifest.path),
        "repository_override": _override(model),
        "schema": SCHEMA,
        "origin": plain(model.manifest.origin),
        "path": plain(model.manifest.path),
        "model": _entry(model.entry),
    }


def _manifest_text(path: str | None) -> str:
    file = None if path is None else Path(path)
    if file is None or not file.is_file() or file.stat().st_size > MAX_TEXT_BYTES:
        return ""
    return redact(file.read_text(encoding="utf-8", errors="replace"))


def _entry(entry: ModelEntry) -> dict[str, Any]:
    content: dict[str, Any] = plain(entry)
    content["profiles"] = [{"id": profile.id, **plain(profile)} for profile in entry.profiles]
    return content


def profiles_document(selection: Selection, hardware: Hardware) -> dict[str, Any]:
    """Returns the body of `/v1/hub/profiles`: every profile with its place and state, the best one first."""
    chosen = selection.chosen
    return {
        "object": "list",
        "model": selection.model.name,
        "chosen": None if chosen is None else chosen.profile.name,
        "chosen_id": None if chosen is None else chosen.profile.id,
        "goal": selection.goal,
        "goal_origin": selection.goal_origin,
        "rules": list(selection.rules),
        "hardware": plain(hardware),
        "data": [_ranking(ranking, chosen) for ranking in selection.rankings],
    }


def _ranking(ranking: Ranking, chosen: Judgement | None) -> dict[str, Any]:
    judgement = ranking.judgement
    estimate = judgement.estimate
    return {
        "name": judgement.profile.name,
        "id": judgement.profile.id,
        "chosen": judgement == chosen,
        "place": ranking.place,
        "why": plain(ranking.why),
        "state": judgement.state.value,
        "can_run": judgement.state.can_run,
        "reasons": plain(judgement.reasons),
        "estimate": None if estimate is None else {**plain(estimate), "device_total": estimate.device_total},
        "device_indexes": list(judgement.device_indexes),
        "suggested": plain(judgement.suggested),
        "profile": plain(judgement.profile),
    }


def cache_document(folder: Path | None) -> dict[str, Any]:
    """Returns the body of `/v1/hub/cache`: what is stored, and how much room is left.

    Raises:
        StoreError: the folder cannot be read.
    """
    answer: dict[str, Any] = {"object": "list", "folder": None, "disk_free_bytes": None, "size_bytes": 0, "pins": []}
    if folder is None:
        return {**answer, "data": []}
    from vllm_mxext.hub.store.model_store import ModelStore  # noqa: PLC0415 - few ask for it

    store = ModelStore(folder)
    snapshots = store.snapshots()
    sizes = {file.sha256: file.size for snapshot in snapshots for file in snapshot.files}  # a file counts once
    return {
        **answer,
        "folder": str(folder),
        "disk_free_bytes": _disk_free(folder),
        "size_bytes": sum(sizes.values()),
        "pins": plain(store.pins.list()),
        "data": [
            {
                "name": one.name,
                "revision": one.revision,
                "asked_revision": one.asked_revision,
                "uri": plain(one.uri),
                "folder": str(one.folder),
                "size_bytes": one.size,
                "num_files": len(one.files),
                "created": int(one.created_s),
                "current": store.is_current(one),
                "pinned": store.pins.protects(one),
            }
            for one in snapshots
        ],
    }


def _disk_free(folder: Path) -> int | None:
    there = next((path for path in (folder, *folder.parents) if path.exists()), None)
    return None if there is None else shutil.disk_usage(there).free
