"""`has_files()`: whether a folder in another program's cache has the files that an artifact needs, with their bytes."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

from vllm_mxext.errors import HubError
from vllm_mxext.hub.file_choice import choose_files
from vllm_mxext.hub.manifest.model import Artifact, Security
from vllm_mxext.hub.sources.interface import Listing, RemoteFile
from vllm_mxext.hub.store.blobs import is_sha256
from vllm_mxext.hub.store.hf_cache import sha256_of


def has_files(folder: Path, artifact: Artifact, security: Security) -> bool:
    """Whether a pull from this folder would have nothing to complain about.

    Links are believed to lead to the content that they name, as their cache believes it; pinned files without such a
    name are read.

    Args:
        folder: in the cache.
        artifact: what is wanted.
        security: which kinds of files are allowed.
    """
    paths = [Path(parent, name) for parent, _, names in os.walk(folder) for name in names]
    pinned = {file.path for file in artifact.files if file.sha256 is not None}
    try:
        files = tuple(_listed(path, path.relative_to(folder).as_posix(), pinned) for path in paths)
        choose_files(
            str(folder),
            artifact,
            Listing("", files),
            allows_pickle=security.allow_pickle,
            allows_code=security.trust_remote_code,
        )
    except (HubError, OSError):
        return False
    return True


def _listed(file: Path, path: str, pinned: set[str]) -> RemoteFile:
    status = file.stat()
    sha256 = None
    if path in pinned:
        name = Path(os.readlink(file)).name if file.is_symlink() else ""
        sha256 = name if is_sha256(name) else _digest(file.resolve(), status.st_size, status.st_mtime_ns)
    return RemoteFile(path, status.st_size, sha256)


@lru_cache(maxsize=1000)
def _digest(file: Path, _size: int, _mtime_ns: int) -> str:
    return sha256_of(file)
