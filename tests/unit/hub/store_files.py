"""Blobs and small models for tests of the store."""

from __future__ import annotations

import hashlib
from pathlib import Path

from vllm_mxext.hub.store.blobs import BlobStore
from vllm_mxext.hub.store.model_store import ModelStore
from vllm_mxext.hub.store.snapshot import Snapshot, StoredFile


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def put_blob(blobs: BlobStore, content: bytes, folder: Path) -> str:
    """Stores bytes as a blob, by way of a file in a folder of the same disk."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"new-{digest(content)}"
    file.write_bytes(content)
    size = blobs.chunk_bytes
    chunks = [content[start : start + size] for start in range(0, len(content), size)]
    blobs.adopt(file, digest(content), tuple(digest(chunk) for chunk in chunks))
    return digest(content)


def put_files(store: ModelStore, files: dict[str, bytes], way: str = "incoming") -> list[StoredFile]:
    """Stores files as blobs, by way of a folder that nobody else uses."""
    return [
        StoredFile(path, len(content), put_blob(store.blobs, content, store.folder.parent / way))
        for path, content in files.items()
    ]


def publish(
    store: ModelStore,
    name: str,
    revision: str,
    files: dict[str, bytes],
    *,
    asked_revision: str = "",
    way: str = "incoming",
) -> Snapshot:
    return store.publish(name, revision, f"hf://{name}", put_files(store, files, way), asked_revision=asked_revision)


def contents(snapshot: Snapshot) -> dict[str, bytes]:
    return {file.path: (snapshot.folder / file.path).read_bytes() for file in snapshot.files}
