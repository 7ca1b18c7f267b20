"""Manifests from texts, as if they were in files."""

from __future__ import annotations

from pathlib import Path

from vllm_mxext.hub.manifest.document import parse
from vllm_mxext.hub.manifest.model import Manifest
from vllm_mxext.hub.manifest.reading import manifest_of


def parse_manifest(
    content: str | bytes, name: str = "manifest", origin: str = "", folder: Path | None = None
) -> Manifest:
    content = content.encode(errors="surrogatepass") if isinstance(content, str) else content
    return manifest_of(parse(content, name), name, origin or name, folder)
