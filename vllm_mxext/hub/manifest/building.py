"""`build_model()`: values that the schema has let through become a `ModelEntry`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from vllm_mxext.config import values
from vllm_mxext.hub.manifest.model import (
    AdapterEntry,
    Artifact,
    DeviceNeeds,
    FileEntry,
    HostNeeds,
    ModelEntry,
    Profile,
    Security,
    Tags,
)

_SIZE = values.byte_size(0)


def build_model(content: Mapping[str, Any], folder: Path | None) -> ModelEntry:
    """Returns a model of a manifest.

    Args:
        content: its values.
        folder: that paths are relative to; None = the working folder.
    """
    about = content["model"]
    return ModelEntry(
        name=about["name"],
        aliases=tuple(about.get("aliases", ())),
        family=about.get("family", ""),
        license=about.get("license", ""),
        license_url=about.get("license_url", ""),
        revision=about.get("revision"),
        description=about.get("description", ""),
        num_parameters=about.get("parameters", 0),
        config=MappingProxyType(about.get("config", {})),
        sources=_sources(content, folder),
        artifacts=tuple(_artifact(entry, folder) for entry in content.get("artifacts", ())),
        profiles=tuple(_profile(entry) for entry in content.get("profiles", ())),
        adapters=tuple(_adapter(entry, folder) for entry in content.get("adapters", ())),
        goal=content.get("selection", {}).get("goal"),
        security=Security(**content.get("security", {})),
    )


def parse_size(value: int | str) -> int:
    """Reads a size in bytes.

    Raises:
        ValueError: it is none; the text is the rule.
    """
    return int(_SIZE.parse(value))


def _sources(content: Mapping[str, Any], folder: Path | None) -> tuple[str, ...]:
    return tuple(_located(uri, folder) for uri in content.get("sources", ()))


def _located(uri: str, folder: Path | None) -> str:
    """Returns a URI; a path becomes one, so that nobody else needs to know where the manifest is."""
    if not uri.startswith(("/", "./", "../")):
        return uri
    return Path(os.path.abspath((folder or Path()) / uri)).as_uri()


def _artifact(entry: Mapping[str, Any], folder: Path | None) -> Artifact:
    return Artifact(
        name=entry["name"],
        format=entry.get("format", "safetensors"),
        include=tuple(entry.get("include", ())),
        exclude=tuple(entry.get("exclude", ())),
        files=tuple(
            FileEntry(file["path"], parse_size(file["size"]) if "size" in file else None, file.get("sha256"))
            for file in entry.get("files", ())
        ),
        sources=_sources(entry, folder),
        revision=entry.get("revision"),
    )


def _profile(entry: Mapping[str, Any]) -> Profile:
    tags = Tags(**entry.get("tags", {}))
    device, host = (entry.get("requires", {}).get(part, {}) for part in ("device", "host"))
    kind = device.get("kind", "cpu")
    return Profile(
        name=entry["name"],
        aliases=tuple(entry.get("aliases", ())),
        tags=tags,
        artifact=entry.get("artifact"),
        device=DeviceNeeds(
            kind=kind,
            vendor=device.get("vendor"),
            count=device.get("count", tags.tp * tags.pp if kind == "gpu" else 1),
            min_memory=parse_size(device.get("min_memory", 0)),
            arch=tuple(device.get("arch", ())),
            ids=tuple(device.get("ids", ())),
        ),
        host=HostNeeds(
            memory=parse_size(host.get("memory", 0)),
            disk=parse_size(host.get("disk", 0)),
            isa=tuple(host.get("isa", ())),
        ),
        engine_args=MappingProxyType(entry.get("engine_args", {})),
        is_fallback=entry.get("fallback", False),
        lora=MappingProxyType(entry.get("lora", {})),
    )


def _adapter(entry: Mapping[str, Any], folder: Path | None) -> AdapterEntry:
    uri = entry["uri"]
    if "://" not in uri:
        uri = os.path.abspath((folder or Path()) / os.path.expanduser(uri))
    return AdapterEntry(entry["name"], uri, entry.get("description", ""), entry.get("auto_load", True))
