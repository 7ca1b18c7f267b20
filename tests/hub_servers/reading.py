"""`network()` and `read()`: what tests of sources do all the time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vllm_mxext.config.hub import NetworkConfig
from vllm_mxext.hub.network import Network
from vllm_mxext.hub.sources.interface import RemoteFile, Source


def network(environ: Mapping[str, str] | None = None, **settings: Any) -> Network:
    """Returns connections that look at no variables but these."""
    return Network(NetworkConfig(environ=environ or {}, **settings))


def read(
    source: Source, file: RemoteFile, start: int = 0, end: int | None = None, validator: str | None = None
) -> bytes:
    """Returns bytes of a file."""
    with source.open_range(file, start, end, validator) as opened:
        return b"".join(opened.chunks())


def read_all(source: Source) -> dict[str, bytes]:
    """Returns path -> content of every file."""
    return {file.path: read(source, file) for file in source.list_files().files}


def tree(folder: Path) -> dict[str, bytes]:
    """Returns path -> content of every file below a folder."""
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
