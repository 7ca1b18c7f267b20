"""Imports model manifests of NVIDIA NIM: the map of profiles (1.x), the list of profiles (schema 2), the wrapped list.

Forms as in NVIDIA/k8s-nim-operator, `internal/nimparser` (v1, v2, legacy) with its test data:
    1.x:      PROFILE_ID: {model, release, tags, container_url, workspace: !workspace {components: [{dst, src: {repo_id,
              files: [!name 'FILE']}}]}}
    2:        schema_version, profile_selection_criteria, profiles: [{id, tags, workspace: {files: {PATH: {uri}}}}]
    wrapped:  model_profile, manifest: [{id, tags, ...} or {PROFILE_ID: {tags, ...}}]
Values of tags are text there: `tp: '8'`. `gpu_device` is DEVICE:VENDOR in hexadecimal.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from vllm_mxext.hub.manifest.complaints import shown
from vllm_mxext.hub.manifest.document import Node, make
from vllm_mxext.hub.manifest.imported import ENGINES, PRECISIONS, Imported, Notes, catalogue, text, whole_number

_NVIDIA_PCI = "10de"
_TAGS = frozenset(
    ("llm_engine", "backend", "model_type", "precision", "tp", "pp", "profile", "feat_lora", "feat_lora_max_rank",
     "gpu", "gpu_device", "number_of_gpus", "trtllm_buildable")
)  # fmt: skip
_PROFILE_KEYS = frozenset(("id", "model", "nim_name", "release", "tags", "container_url", "workspace"))
_ROOT_KEYS = frozenset(
    ("schema_version", "profiles", "model", "profile_selection_criteria", "model_profile", "manifest")
)
_UNNAMED = "nim-model"
_NGC_NAME = re.compile(r"ngc://[^/]+/(?P<name>[^/:?]+/[^/:?]+):")
_FILE_QUERY = re.compile(r"\?file=(?P<path>[^?#]+)\Z")


class _File(NamedTuple):
    """A file of a profile: where it goes, and where it comes from; the place is empty if it is not said."""

    path: Node
    place: str
    name: str
    entry: Node


def import_nim(root: Node) -> Imported | None:
    """Returns a manifest of NIM in our form; None if the file is none."""
    notes = Notes()
    default = text(root.at(["model"])) if "model" in root.fields else ""
    if "profiles" in root.fields and ("schema_version" in root.fields or _is_listed(root.fields["profiles"])):
        form, profiles = "NVIDIA NIM's list of profiles", _listed(root.fields["profiles"], notes)
    elif "manifest" in root.fields and "model_profile" in root.fields:
        default = text(root.fields["model_profile"])
        form, profiles = "NVIDIA NIM's wrapped list of profiles", _listed(root.fields["manifest"], notes)
    elif root.fields and all(_is_profile(node) for node in root.fields.values()):
        form = "NVIDIA NIM's map of profiles"
        profiles = (_Entry(key, root.line_of([key]), node) for key, node in root.fields.items())
    else:
        return None
    if form != "NVIDIA NIM's map of profiles":
        for key in set(root.fields) - _ROOT_KEYS:
            notes.add_key("key", key)
    models: dict[str, _Model] = {}
    for entry in profiles:
        name = _model_name(entry.node) or default or _UNNAMED
        _add(entry, models.setdefault(name, _Model(make(name, entry.line))), notes)
    for name in [name for name, model in models.items() if not model.profiles]:
        del models[name]
        notes.add(f"The model {shown(name)} has no profile that can be imported.")
    return Imported(catalogue([model.node() for model in models.values()], root.line), form, notes.sentences())


@dataclass(slots=True)
class _Model:
    """A model as it grows; content -> what has it, so that equal things are there once."""

    name: Node
    profiles: dict[str, dict[str, Any]] = field(default_factory=dict)
    artifacts: dict[str, dict[str, Any]] = field(default_factory=dict)

    def node(self) -> Node:
        """Returns it in our form."""
        profiles = [make(profile, profile["name"].line) for profile in self.profiles.values()]
        artifacts = [make(artifact, artifact["name"].line) for artifact in self.artifacts.values()]
        model = {"model": {"name": self.name}, "artifacts": artifacts, "profiles": profiles}
        return make(model, self.name.line)

    def artifact(self, content: dict[str, Any], name: str, line: int) -> str:
        """Returns the name of an artifact with this content, which is added if there is none yet."""
        key = repr(make(content, line).plain())
        if key not in self.artifacts:
            taken = {artifact["name"].value for artifact in self.artifacts.values()}
            free = name if name not in taken else f"{name}-{len(taken)}"
            self.artifacts[key] = {"name": make(free, line), **content}
        return str(self.artifacts[key]["name"].value)


class _Entry(NamedTuple):
    id: str
    line: int
    node: Node


def _is_profile(node: Node) -> bool:
    return bool({"tags", "workspace", "container_url"} & set(node.fields))


def _is_listed(node: Node) -> bool:
    return bool(node.items) and all("id" in item.fields and "name" not in item.fields for item in node.items)


def _listed(node: Node, notes: Notes) -> Iterator[_Entry]:
    for item in node.items:
        fields = item.fields
        if "id" in fields:
            yield _Entry(text(fields["id"]), item.line, item)
        elif len(fields) == 1 and (only := next(iter(fields.values()))).fields:
            yield _Entry(next(iter(fields)), item.line, only)
        else:
            notes.add(f"Line {item.line}: an entry without an id is not imported.")


def _model_name(node: Node) -> str:
    """Returns `model`, or ORG/NAME of the container or of the place of its files, `ngc://nim/ORG/NAME:TAG?file=`."""
    given = text(node.fields.get("model"))
    if given:
        return given
    parts = text(node.fields.get("container_url")).partition(":")[0].split("/")
    if len(parts) >= 3:
        return "/".join(parts[-2:])
    files = node.at(["workspace", "files"]).fields.values()
    matches = (_NGC_NAME.match(text(file.fields.get("uri"))) for file in files)
    return next((match["name"] for match in matches if match), "")


def _add(entry: _Entry, model: _Model, notes: Notes) -> None:
    fields = entry.node.fields
    tags = fields["tags"].fields if "tags" in fields else {}
    for key in set(fields) - _PROFILE_KEYS:
        notes.add_key("key", key)
    for key in set(tags) - _TAGS:
        notes.add_key("tag", key)
    engine_name = (text(tags.get("llm_engine")) or text(tags.get("backend")) or text(tags.get("model_type"))).lower()
    engine = ENGINES.get(engine_name)
    if engine is None:
        what = f"the engine {shown(engine_name)}" if engine_name else "an engine that is not named"
        notes.add(f"Line {entry.line}: the profile {shown(entry.id)} needs {what}, which is not known; left out.")
        return
    profile = _profile(tags, engine, notes)
    is_built = engine == "tensorrt_llm" and text(tags.get("trtllm_buildable")) != "true"
    artifact = _artifact(entry, "tensorrt_llm" if is_built else "safetensors", notes)
    name = _profile_name(profile["tags"], text(tags.get("trtllm_buildable")) == "true")
    if artifact is not None:
        profile["artifact"] = model.artifact(artifact, name, entry.line)
    key = repr(profile)
    aliases = [make(_name(entry.id), entry.line)] if entry.id else []
    if key in model.profiles:
        other = model.profiles[key]
        other["aliases"] += aliases
        notes.add(f"Line {entry.line}: the profile {shown(entry.id)} is the same as {shown(other['name'].value)}.")
        return
    if name in {other["name"].value for other in model.profiles.values()}:
        name = _name(f"{name}-{entry.id[:8]}")
    model.profiles[key] = {"name": make(name, entry.line), "aliases": aliases, **profile}


def _profile_name(tags: dict[str, Any], is_buildable: bool) -> str:
    """Returns a name as NIM's commands print it."""
    words = [tags["llm_engine"], "trtllm_buildable" if is_buildable else "", tags["gpu"].lower(), tags["precision"]]
    words += [f"tp{tags['tp']}", f"pp{tags['pp']}", tags["profile"] if tags["profile"] != "balanced" else ""]
    return _name("-".join(word for word in (*words, "lora" if tags["feat_lora"] else "") if word))


def _profile(tags: dict[str, Node], engine: str, notes: Notes) -> dict[str, Any]:
    def number(tag: str) -> int:
        return whole_number(tags.get(tag), lambda: notes.add(f"Line {tags[tag].line}: the tag {tag} is no number."))

    precision = text(tags.get("precision")).lower()
    precision = PRECISIONS.get(precision, precision) or "bf16"
    tp, pp, kind = number("tp"), number("pp"), text(tags.get("profile")).lower()
    has_lora = text(tags.get("feat_lora")).lower() == "true"
    if kind not in ("latency", "throughput", "balanced"):
        if kind:
            notes.add(f"Line {tags['profile'].line}: the tag profile {shown(kind)} is not known; taken as balanced.")
        kind = ""
    gpu = text(tags.get("gpu"))
    device: dict[str, Any] = {"kind": "gpu", "vendor": "nvidia"}
    device["count"] = max(number("number_of_gpus") if "number_of_gpus" in tags else 1, tp * pp)
    if "gpu_device" in tags:
        device["ids"] = [_pci_id(text(tags["gpu_device"]))]
    profile: dict[str, Any] = {
        "tags": {
            "llm_engine": engine, "precision": precision, "tp": tp, "pp": pp, "profile": kind or "balanced",
            "feat_lora": has_lora, "gpu": gpu,
        },
        "requires": {"device": device},
    }  # fmt: skip
    if has_lora and "feat_lora_max_rank" in tags:
        profile["lora"] = {"max_lora_rank": number("feat_lora_max_rank")}
    return profile


def _name(words: str) -> str:
    return re.sub(r"[^A-Za-z0-9._:+-]+", "-", words)


def _pci_id(given: str) -> str:
    device, _, vendor = given.lower().partition(":")
    return f"{vendor or _NVIDIA_PCI}:{device}"


def _artifact(entry: _Entry, kind: str, notes: Notes) -> dict[str, Any] | None:
    files = list(_files(entry.node.fields.get("workspace"), notes))
    if not files:
        return None
    places = list(dict.fromkeys(file.place for file in files if file.place))
    moved = [file for file in files if file.name != file.path.value]
    if len(places) > 1 or moved:
        notes.add(
            f"Line {entry.line}: the files of the profile {shown(entry.id)} come from several places or change "
            "their names; it can be planned with, but not downloaded."
        )
    listed = [{"path": file.path, **_facts(file, notes)} for file in files if file.path.value]
    return {"format": kind, "sources": places, "files": [make(file, file["path"].line) for file in listed]}


def _files(workspace: Node | None, notes: Notes) -> Iterator[_File]:
    fields = workspace.fields if workspace is not None else {}
    for path, entry in (fields["files"].fields if "files" in fields else {}).items():
        uri = text(entry.fields.get("uri")) or text(entry)
        match = _FILE_QUERY.search(uri)
        place, name = (uri[: match.start()], match["path"]) if match else uri.rpartition("/")[::2]
        yield _File(Node(path, fields["files"].line_of([path])), place, name, entry)
    for component in fields["components"].items if "components" in fields else []:
        source, folder = component.fields.get("src"), text(component.fields.get("dst")).strip("/")
        place = text(source.fields.get("repo_id")) if source is not None else ""
        place = f"ngc://{place}" if place and "://" not in place else place
        listed = source.fields["files"] if source is not None and "files" in source.fields else None
        for file in listed.items if listed is not None else []:
            name = text(file) or next(iter(file.fields), "")
            yield _File(Node(f"{folder}/{name}" if folder else name, file.line), place, name, file)
        if place and (listed is None or not listed.items):  # all files of it are meant
            yield _File(Node("", component.line), place, "", component)
    for key in set(fields) - {"files", "components"}:
        notes.add_key("workspace key", key)


def _facts(file: _File, notes: Notes) -> dict[str, Any]:
    """Returns size and digest of a file if they are there in a form that we can check."""
    facts: dict[str, Any] = {}
    for key, node in file.entry.fields.items():
        if key == "size" and isinstance(node.value, int):
            facts["size"] = node
        elif key in ("sha256", "checksum") and re.fullmatch(r"(sha256:)?[0-9a-f]{64}", text(node)):
            facts["sha256"] = make(text(node).removeprefix("sha256:"), node.line)
        elif key not in ("uri", file.name):
            notes.add_key("key of files,", key)
    return facts
