"""`read_manifest()`: a YAML file of any known form becomes a `Manifest`, or one error with a line per complaint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from vllm_mxext.config.sources import did_you_mean
from vllm_mxext.hub.manifest import document, nim, plain
from vllm_mxext.hub.manifest.building import build_model
from vllm_mxext.hub.manifest.checks import check_ids, check_models, unusual
from vllm_mxext.hub.manifest.complaints import Complaint, refuse, shown
from vllm_mxext.hub.manifest.document import Node
from vllm_mxext.hub.manifest.model import SCHEMA, Manifest
from vllm_mxext.hub.manifest.validation import validate


def read_manifest(path: Path, origin: str = "") -> Manifest:
    """Reads a manifest.

    Args:
        path: the file.
        origin: who named it, for people.

    Raises:
        ManifestError: it cannot be read, or something in it is wrong; a line `file:line: sentence` per complaint.
    """
    manifest = manifest_of(document.load(path), str(path), origin or f"file {path}", path.absolute().parent)
    return replace(manifest, path=str(path.absolute()))


def manifest_of(root: Node, name: str, origin: str, folder: Path | None) -> Manifest:
    """Returns the manifest that a document is.

    Args:
        root: the document.
        name: of its file, for messages.
        origin: where it comes from, for people.
        folder: that paths in it are relative to; None = the working folder.

    Raises:
        ManifestError: something in it is wrong.
    """
    notes: tuple[str, ...] = ()
    if "schema" not in root.fields:
        found = nim.import_nim(root) or plain.import_plain(root)
        if found is None:
            raise refuse(name, [_no_manifest(root)])
        root, notes, origin = found.root, found.notes, f"{origin}, imported from {found.form}"
    elif tagged := list(root.tags()):
        raise refuse(name, (Complaint(one.line, f"The tag {shown(one.tag)} means nothing here.") for one in tagged))
    content, has_many = root.plain(), "models" in root.fields
    complaints = validate(root, content, has_many=has_many)
    nodes = root.at(["models"]).items if has_many else [root]
    if not complaints:
        complaints = list(check_models(nodes))
    if complaints:
        raise refuse(name, complaints)
    entries = tuple(build_model(entry, folder) for entry in (content["models"] if has_many else [content]))
    complaints = list(check_ids(nodes, entries))
    if complaints:
        raise refuse(name, complaints)
    return Manifest(entries, origin, notes=(*notes, *unusual(nodes)))


def _no_manifest(root: Node) -> Complaint:
    near = next((key for key in root.fields if did_you_mean(key, ["schema"]) != "."), None)
    if near is not None:
        return Complaint(root.line_of([near]), f"Unknown key {shown(near)}; did you mean schema?")
    return Complaint(
        root.line,
        f"This is no manifest of a known form; begin it with 'schema: {SCHEMA}' (docs/hub.md), or give one of NVIDIA "
        "NIM.",
    )
