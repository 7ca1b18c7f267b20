"""Imports plain lists of models: name, place, precision and engine each, as small deployments keep them.

Forms: a list of mappings (also below `models:`), or a mapping of names to mappings or places:
    - {name: llama, path: /models/llama, precision: fp16, engine: native, tp: 1}
    llama: /models/llama
"""

from __future__ import annotations

from typing import Any

from vllm_mxext.hub.manifest.complaints import shown
from vllm_mxext.hub.manifest.document import Node, make
from vllm_mxext.hub.manifest.imported import ENGINES, PRECISIONS, Imported, Notes, catalogue, text, whole_number

_PLACES = ("uri", "url", "path", "source", "repo", "repo_id", "model_path", "hf_repo")
_PRECISIONS = ("precision", "dtype", "quantization")
_ENGINES = ("engine", "llm_engine", "backend")
_SIZES = ("tp", "tensor_parallel_size", "tensor_parallel")
_COPIED = ("license", "license_url", "revision", "description", "family", "parameters")
_NAMES = ("name", "model_name", "id", "model")
_KNOWN = frozenset(
    (*_PLACES, *_PRECISIONS, *_ENGINES, *_SIZES, *_COPIED, *_NAMES, "aliases", "max_model_len", "device")
)


def import_plain(root: Node) -> Imported | None:
    """Returns a plain list of models in our form; None if the file is none."""
    entries = _entries(root)
    if entries is None:
        return None
    notes = Notes()
    models = [model for name, node in entries if (model := _model(name, node, notes)) is not None]
    return Imported(catalogue(models, root.line), "a plain list of models", notes.sentences())


def _entries(root: Node) -> list[tuple[str, Node]] | None:
    """Returns names with their nodes; None if this is not a list of models."""
    listed = root.fields.get("models", root) if set(root.fields) <= {"models", "version"} else root
    if listed.items and all(_is_entry(node) and _first(node, _NAMES) for node in listed.items):
        return [(_first(node, _NAMES), node) for node in listed.items]
    fields = listed.fields
    if fields and all(_is_entry(node) or _is_place(node) for node in fields.values()):
        return list(fields.items())
    return None


def _is_entry(node: Node) -> bool:
    return bool(_first(node, _PLACES))


def _is_place(node: Node) -> bool:
    return isinstance(node.value, str) and ("://" in node.value or node.value.startswith(("/", "./", "../")))


def _first(node: Node, keys: tuple[str, ...]) -> str:
    return next((found for key in keys if (found := text(node.fields.get(key)))), "")


def _model(name: str, node: Node, notes: Notes) -> Node | None:
    fields = node.fields
    for key in set(fields) - _KNOWN:
        notes.add_key("key", key)
    given_engine = _first(node, _ENGINES).lower() or "native"
    engine = ENGINES.get(given_engine)
    if engine is None:
        notes.add(f"Line {node.line}: the model {shown(name)} needs an unknown engine {shown(given_engine)}; left out.")
        return None
    place = text(node) or _first(node, _PLACES)
    if not ("://" in place or place.startswith(("/", "./", "../"))):
        place = f"hf://{place}" if "repo" in fields or "repo_id" in fields or "hf_repo" in fields else f"./{place}"
    about = {key: fields[key] for key in (*_COPIED, "aliases") if key in fields}
    model: dict[str, Any] = {"model": {"name": name, **about}, "sources": [place]}
    model["profiles"] = [_profile(node, engine, notes)]
    return make(model, node.line)


def _profile(node: Node, engine: str, notes: Notes) -> dict[str, Any]:
    precision = _first(node, _PRECISIONS).lower()
    precision = PRECISIONS.get(precision, precision) or "bf16"
    key = next((key for key in _SIZES if key in node.fields), "")
    tp = whole_number(node.fields.get(key), lambda: notes.add(f"Line {node.line}: {key} is no number; taken as 1."))
    on_gpu = text(node.fields.get("device")).lower() in ("cuda", "gpu") or engine in ("vllm", "tensorrt_llm")
    profile: dict[str, Any] = {
        "name": f"{engine}-{'gpu' if on_gpu else 'cpu'}-{precision}" + (f"-tp{tp}" if tp > 1 else ""),
        "tags": {"llm_engine": engine, "precision": precision, "tp": tp},
        "requires": {"device": {"kind": "gpu" if on_gpu else "cpu"}},
        "engine_args": {},
    }
    if on_gpu and engine == "native":
        profile["engine_args"]["device"] = "cuda"
    if precision == "int8" and engine == "native":
        profile["engine_args"]["quantization"] = "int8"
    if "max_model_len" in node.fields:
        profile["engine_args"]["max-model-len"] = node.fields["max_model_len"]
    return profile
