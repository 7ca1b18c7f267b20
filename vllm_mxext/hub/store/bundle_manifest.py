"""What a bundle says that it holds: models with their files and digests, read as if a stranger had written it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_mxext.errors import HubCause, StoreError, UnsafeFileError
from vllm_mxext.hub.safety import check_file_kind, check_paths
from vllm_mxext.hub.store.blobs import is_sha256
from vllm_mxext.hub.store.layout import SNAPSHOT
from vllm_mxext.hub.store.snapshot import Snapshot, StoredFile

SCHEMA = "mx.hub.bundle/v1"
MAX_BYTES = 16 * 2**20

_MAX_MODELS = 1000
_MAX_TEXT = 500
_MAX_SIZE = 2**50


@dataclass(frozen=True, slots=True)
class BundleManifest:
    """What a bundle holds.

    Attributes:
        models: snapshots, without folders.
        sizes: digest -> bytes of each different file, in the order of the archive.
    """

    models: tuple[Snapshot, ...]
    sizes: dict[str, int]


def manifest_of(snapshots: Iterable[Snapshot]) -> BundleManifest:
    """Returns what a bundle of snapshots holds, in an order that does not depend on theirs."""
    models = tuple(sorted(snapshots, key=lambda one: (one.name, one.revision, one.files, one.asked_revision)))
    sizes = {file.sha256: file.size for one in models for file in one.files}
    return BundleManifest(models, dict(sorted(sizes.items())))


def to_bytes(manifest: BundleManifest) -> bytes:
    """Returns the first file of a bundle."""
    models = [
        {
            "name": one.name,
            "revision": one.revision,
            "uri": one.uri,
            "asked_revision": one.asked_revision,
            "files": [{"path": file.path, "size": file.size, "sha256": file.sha256} for file in one.files],
        }
        for one in manifest.models
    ]
    return (json.dumps({"schema": SCHEMA, "models": models}, indent=1, ensure_ascii=False) + "\n").encode()


def from_bytes(content: bytes, *, allows_pickle: bool, allows_code: bool) -> BundleManifest:
    """Reads and checks the first file of a bundle.

    Raises:
        StoreError: it is none, or of another version.
        UnsafeFileError: a file has a path or kind that is refused.
    """
    try:
        data = json.loads(content)
        schema = data["schema"]
        if schema != SCHEMA:
            raise StoreError(f"The bundle has the form {schema!r:.50}, and only {SCHEMA} is read; update this program.")
        models = tuple(_snapshot(model) for model in data["models"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise StoreError(
            "The bundle's list of models cannot be read; export it again.", cause=HubCause.DAMAGED
        ) from None
    if not 0 < len(models) <= _MAX_MODELS or len({(one.name, one.revision) for one in models}) != len(models):
        raise StoreError("The bundle names no model, too many, or one twice; export it again.", cause=HubCause.DAMAGED)
    for model in models:
        check_paths([*(file.path for file in model.files), SNAPSHOT], ignores_case=True)
        for file in model.files:
            check_file_kind(file.path, allows_pickle=allows_pickle, allows_code=allows_code)
    manifest = manifest_of(models)
    if any(manifest.sizes[file.sha256] != file.size for model in models for file in model.files):
        raise UnsafeFileError("The bundle is refused: it gives one file two sizes; export it again.")
    return manifest


def _snapshot(data: Any) -> Snapshot:
    name, revision = _text(data["name"]), _text(data["revision"])
    files: Sequence[StoredFile] = [_file(one) for one in data["files"]]
    if not (name and revision and files):
        raise ValueError
    ordered = tuple(sorted(files, key=lambda file: file.path))
    return Snapshot(name, revision, _text(data["uri"]), ordered, Path(), _text(data["asked_revision"]))


def _file(data: Any) -> StoredFile:
    path, size, sha256 = data["path"], data["size"], data["sha256"]
    if not isinstance(path, str) or type(size) is not int or not 0 <= size <= _MAX_SIZE or not is_sha256(sha256):
        raise ValueError
    return StoredFile(path, size, sha256)


def _text(value: Any) -> str:
    if not isinstance(value, str) or len(value) > _MAX_TEXT or (value and not value.isprintable()):
        raise ValueError
    return value
