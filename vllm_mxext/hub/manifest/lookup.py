"""Which manifest counts, and which of its models a name means."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from vllm_mxext.config.hub import HubConfig
from vllm_mxext.config.sources import did_you_mean
from vllm_mxext.hub.manifest.model import Manifest, ModelEntry
from vllm_mxext.hub.manifest.reading import read_manifest

FILE_NAME = "model_manifest.yaml"
PACKAGED_PATH = Path(__file__).parents[1] / FILE_NAME
PACKAGED_ORIGIN = "the packaged manifest"

_ROOT = Path("/")


def find_manifest(config: HubConfig, environ: Mapping[str, str] = os.environ, root: Path = _ROOT) -> Manifest:
    """Returns the first manifest of: the one asked for, /mim/config, /etc/mim/config, the user's, the packaged one.

    Its `origin` says which it is, its last note where it was looked for before.

    Args:
        config: names the one asked for.
        environ: where the user's configuration folder is found.
        root: of the file system (tests).

    Raises:
        ManifestError: it cannot be read or is wrong; the next place is not tried then.
    """
    if config.manifest is not None:
        return read_manifest(config.manifest, f"file {config.manifest} ({config.manifest_origin or 'asked for'})")
    looked_at = []
    for path, origin in _places(environ, root):
        if os.path.isfile(path):  # no error if HOME is somebody else's, as it may be in containers
            manifest = read_manifest(path, origin)
            break
        looked_at.append(str(path))
    else:
        manifest = packaged_manifest()
    if not looked_at:
        return manifest
    return replace(manifest, notes=(*manifest.notes, f"There is no manifest at {', '.join(looked_at)}."))


def packaged_manifest() -> Manifest:
    """Returns the manifest that comes with the package."""
    return read_manifest(PACKAGED_PATH, PACKAGED_ORIGIN)


def find_model(manifest: Manifest, name: str) -> ModelEntry | None:
    """Returns the model that a name or alias means, in this manifest or else in the packaged one; None if in neither.

    Letters of another case count as the same.
    """
    found = _find(manifest, name)
    if found is None and not is_packaged(manifest):
        found = _find(packaged_manifest(), name)
    return found


def origin_of(manifest: Manifest, entry: ModelEntry) -> str:
    """Returns for people where a model that `find_model()` found is described."""
    if entry in manifest.models or is_packaged(manifest):
        return manifest.origin
    return f"{PACKAGED_ORIGIN}, because {manifest.origin} does not name the model"


def unknown_model(manifest: Manifest, name: str) -> str:
    """Returns the sentence about a name that `find_model()` does not find."""
    if name.startswith(("/", "./", "../", "~")):
        return f"There is no model '{name}': nothing is at this path; give the folder of a checkpoint."
    manifests = [manifest] if is_packaged(manifest) else [manifest, packaged_manifest()]
    names = {
        name.casefold(): name for one in manifests for entry in one.models for name in (entry.name, *entry.aliases)
    }
    nearest = names.get(did_you_mean(name.casefold(), names).removeprefix("; did you mean ").removesuffix("?"))
    places = manifest.origin if len(manifests) == 1 else f"{manifest.origin} or {PACKAGED_ORIGIN}"
    hint = f"did you mean {nearest}?" if nearest else "name one of them, a folder, or a URI such as hf://ORG/NAME."
    return f"There is no model '{name}' in {places}; {hint}"


def is_packaged(manifest: Manifest) -> bool:
    """Whether a manifest is the one that comes with the package."""
    return manifest.path is not None and Path(manifest.path) == PACKAGED_PATH


def _places(environ: Mapping[str, str], root: Path) -> Iterator[tuple[Path, str]]:
    for folder in ("mim/config", "etc/mim/config"):
        path = root / folder / FILE_NAME
        yield path, f"file {path}"
    base = environ.get("XDG_CONFIG_HOME", "")
    if not os.path.isabs(base):  # the specification says to ignore these
        base = os.path.join(environ.get("HOME", "") or os.path.expanduser("~"), ".config")
    if os.path.isabs(base):
        path = Path(base) / "vllm_mxext" / FILE_NAME
        yield path, f"the user's file {path}"


def _find(manifest: Manifest, name: str) -> ModelEntry | None:
    for wanted, matches in ((name, str), (name.casefold(), str.casefold)):
        for entry in manifest.models:
            if wanted in (matches(one) for one in (entry.name, *entry.aliases)):
                return entry
    return None
