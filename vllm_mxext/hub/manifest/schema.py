"""The rules of `mx.hub/v1` as JSON Schema (draft 2020-12), as far as it can say them; `checks.py` has the rest.

`x-rule` is how a message ends that a pattern or limit causes. Words come from the types of `model.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, get_args

from vllm_mxext.hub.manifest.model import (
    SCHEMA,
    DeviceKind,
    EngineName,
    Goal,
    ProfileKind,
    SignatureRule,
    Vendor,
)

ARTIFACT_FORMATS = ("safetensors", "gguf", "mlx", "tensorrt_llm", "onnx", "pytorch")

SCHEMA_URL = "https://json-schema.org/draft/2020-12/schema"

_Schema = dict[str, Any]


def model_schema() -> _Schema:
    """Returns the schema of a file that holds one model."""
    return {"$schema": SCHEMA_URL, "$ref": "#/$defs/file_of_one", "$defs": dict(_DEFINITIONS)}


def catalogue_schema() -> _Schema:
    """Returns the schema of a file that holds a list of models."""
    return {"$schema": SCHEMA_URL, "$ref": "#/$defs/file_of_many", "$defs": dict(_DEFINITIONS)}


def published_schema() -> _Schema:
    """Returns the schema of both kinds of files, for editors and other programs."""
    return {
        "$schema": SCHEMA_URL,
        "title": f"Manifest of the MX Hub, {SCHEMA}",
        "description": "One model at the top level, or a list of them in `models`.",
        "if": {"required": ["models"]},
        "then": {"$ref": "#/$defs/file_of_many"},
        "else": {"$ref": "#/$defs/file_of_one"},
        "$defs": dict(_DEFINITIONS),
    }


def known_keys(path: tuple[str | int, ...], schema: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the keys that a mapping in the file may have.

    Args:
        path: of the mapping.
        schema: of the file.
    """
    rules = _resolved(schema)
    for part in path:
        if isinstance(part, int):
            rules = _resolved(rules.get("items", {}))
        else:
            rules = _resolved(rules.get("properties", {}).get(part, {}))
    return tuple(rules.get("properties", ()))


def _resolved(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    while "$ref" in schema:
        schema = _DEFINITIONS[schema["$ref"].rpartition("/")[2]]
    return schema


def _mapping(description: str, properties: _Schema, required: tuple[str, ...] = ()) -> _Schema:
    schema = {"description": description, "type": "object", "properties": properties, "additionalProperties": False}
    return {**schema, "required": list(required)} if required else schema


def _text(description: str, **rules: Any) -> _Schema:
    return {"description": description, "type": "string", "maxLength": 2000, **rules}


def _words(description: str, words: Any, default: str | None = None) -> _Schema:
    schema = {"description": description, "enum": list(get_args(words) or words)}
    return schema if default is None else {**schema, "default": default}


def _switch(description: str, *, default: bool = False) -> _Schema:
    return {"description": description, "type": "boolean", "default": default}


def _integer(description: str, minimum: int, maximum: int) -> _Schema:
    return {"description": description, "type": "integer", "minimum": minimum, "maximum": maximum}


def _list(description: str, items: _Schema, max_items: int = 1000) -> _Schema:
    return {"description": description, "type": "array", "items": items, "maxItems": max_items}


def _ref(name: str) -> _Schema:
    return {"$ref": f"#/$defs/{name}"}


_NAME = r"^(?!.*(\.\.|//))[A-Za-z0-9][A-Za-z0-9._:+@/-]{0,199}(?<!/)$"
_PROFILE_NAME = r"^(?!default$)[A-Za-z0-9][A-Za-z0-9._:+-]{0,199}$"
_PATH = r"^(?![A-Za-z]:)(?!/)(?!(.*/)?\.{1,2}(/|$))[^\\\x00-\x1f\x7f]{1,1000}(?<!/)$"
_URI = r"^([a-z][a-z0-9+.-]*://?|/|\.{1,2}/)[^\s\x00-\x1f]+$"
_SIZE = r"^\s*[0-9][0-9_]*(\.[0-9]+)?\s*([kKmMgGtT]|[kKmMgGtT]?[iI]?[bB])?\s*$"

_LEAVES: _Schema = {
    "name": _text(
        "What `--model` calls it, such as ORG/NAME.",
        pattern=_NAME,
        **{"x-rule": "must be letters, digits and . _ : + @ - / without spaces, such as ORG/NAME"},
    ),
    "profile_name": _text(
        "Name of a profile, an artifact or an adapter, or an alias; `default` is the best profile.",
        pattern=_PROFILE_NAME,
        **{"x-rule": "must be letters, digits and . _ : + - without spaces, and not 'default'"},
    ),
    "path": _text(
        "A file inside the model.",
        pattern=_PATH,
        **{"x-rule": "must be a path inside the model: with /, not absolute, without '..' and backslashes"},
    ),
    "uri": _text(
        "Where files are: hf://ORG/NAME, modelscope://, s3://, gs://, https://, file://, oci://, ngc://, or a path "
        "that begins with / or ./ as seen from the manifest.",
        pattern=_URI,
        **{"x-rule": "must be a URI such as hf://ORG/NAME, or a path that begins with / or ./"},
    ),
    "size": {
        "description": "Bytes: a number, or text such as 24GiB, 512MiB, 80GB.",
        "type": ["integer", "string"],
        "minimum": 0,
        "maximum": 2**60,
        "maxLength": 40,
        "pattern": _SIZE,
        "x-rule": "must be a size such as 24GiB, 512MiB or 1000000",
    },
    "sha256": _text(
        "Digest of a file.", pattern="^[0-9a-f]{64}$", **{"x-rule": "must be 64 hexadecimal digits in small letters"}
    ),
    "revision": _text(
        "Branch, tag or commit.",
        pattern=r"^[^\s\x00-\x1f\x7f]{1,250}$",
        **{"x-rule": "must be the name of a branch, tag or commit"},
    ),
    "word": _text("A word.", pattern=r"^[^\s\x00-\x1f\x7f]{1,200}$", **{"x-rule": "must be a word without spaces"}),
    "pattern": _text(
        "Pattern of paths: * and ? stand for any characters.",
        pattern=r"^[^\x00-\x1f\x7f]{1,500}$",
        **{"x-rule": "must be a pattern such as *.safetensors"},
    ),
    "precision": _text(
        "Of the weights: bf16, fp16, fp32, fp8, int8, int4, awq, gptq, q4_k_m, ...",
        pattern=r"^[a-z0-9][a-z0-9_.+-]{0,39}$",
        **{"x-rule": "must be a word in small letters such as bf16, int8 or q4_k_m"},
    ),
}

_PARTS: _Schema = {
    "file": _mapping(
        "A file that is pinned.",
        {"path": _ref("path"), "size": _ref("size"), "sha256": _ref("sha256")},
        required=("path",),
    ),
    "artifact": _mapping(
        "Files in one format that belong together.",
        {
            "name": _ref("profile_name"),
            "format": _words("What the files are.", ARTIFACT_FORMATS, "safetensors"),
            "include": _list("Files that belong to it; default: all that the format needs.", _ref("pattern")),
            "exclude": _list("Files that do not.", _ref("pattern")),
            "files": _list("Files that are pinned; default: what the source lists.", _ref("file"), 20_000),
            "sources": _list("In order of preference; default: those of the model.", _ref("uri"), 50),
            "revision": _ref("revision"),
        },
        required=("name",),
    ),
    "tags": _mapping(
        "What a profile is.",
        {
            "llm_engine": _words("The engine that runs it.", EngineName, "native"),
            "precision": _ref("precision"),
            "tp": _integer("Devices that share each layer.", 1, 1024),
            "pp": _integer("Groups of devices that share the layers.", 1, 1024),
            "profile": _words("What it is tuned for.", ProfileKind, "balanced"),
            "feat_lora": _switch("Whether LoRA adapters can be served with it."),
            "gpu": _text("The device it was made for, for people, such as H100."),
        },
    ),
    "device": _mapping(
        "Devices that a profile needs.",
        {
            "kind": _words("gpu also stands for Apple's.", DeviceKind, "cpu"),
            "vendor": _words("Who made them; default: anybody.", Vendor),
            "count": _integer("At least so many equal ones; default: tp x pp.", 1, 1024),
            "min_memory": _ref("size"),
            "arch": _list("Any of these: sm_90, gfx942, xcore1000, apple9; >=sm_80 is a lower limit.", _ref("word")),
            "ids": _list(
                "Any of these names, or PCI ids VENDOR:DEVICE such as 10de:2330.",
                _text("A name or PCI id.", minLength=1),
            ),
        },
    ),
    "host": _mapping(
        "What a profile needs of the machine around its devices.",
        {
            "memory": _ref("size"),
            "disk": _ref("size"),
            "isa": _list("Instruction sets, all of them: avx2, avx512_bf16, amx_bf16, neon, ...", _ref("word")),
        },
    ),
    "lora": _mapping(
        "Settings of adapters.",
        {
            "max_loras": _integer("Adapters that running requests use at once.", 1, 100_000),
            "max_lora_rank": _integer("Largest rank.", 1, 100_000),
            "max_cpu_loras": _integer("Adapters in main memory.", 1, 1_000_000),
        },
    ),
    "profile": _mapping(
        "One way to run the model on one kind of hardware; its id is the SHA-256 of all but name and aliases.",
        {
            "name": _ref("profile_name"),
            "aliases": _list("Other names.", _ref("profile_name"), 50),
            "tags": _ref("tags"),
            "artifact": _ref("profile_name"),
            "requires": _mapping("What it needs.", {"device": _ref("device"), "host": _ref("host")}),
            "engine_args": {
                "description": "Flags of `mxext serve` (of another engine's own) and their values.",
                "type": "object",
                "maxProperties": 200,
            },
            "fallback": _switch("Chosen only if no other profile can run."),
            "lora": _ref("lora"),
        },
        required=("name",),
    ),
    "adapter": _mapping(
        "A LoRA adapter that comes with the model.",
        {
            "name": _ref("name"),
            "uri": _text("A URI, or a path as seen from the manifest.", minLength=1),
            "description": _text("For people."),
            "auto_load": _switch("Served from the start.", default=True),
        },
        required=("name", "uri"),
    ),
    "security": _mapping(
        "What is asked of the model's files.",
        {
            "signature": _words("Whether they must be signed (OpenSSF model signing).", SignatureRule, "off"),
            "identity": _text("Who must have signed them; default: anybody."),
            "identity_provider": _text("OpenID provider that vouches for the identity."),
            "public_key": _text("File of the key they are signed with, instead of an identity."),
            "trust_remote_code": _switch("Python files may be downloaded."),
            "allow_pickle": _switch("Files that have to be unpickled may be downloaded."),
        },
    ),
    "description": _mapping(
        "What the model is.",
        {
            "name": _ref("name"),
            "aliases": _list("Other names.", _ref("name"), 50),
            "family": _text("Architecture family, for people: qwen3."),
            "license": _text("SPDX identifier or name."),
            "license_url": _text("Where its text is."),
            "revision": _ref("revision"),
            "description": _text("One sentence for lists."),
            "parameters": _integer("Of the model, in all.", 0, 10**15),
            "config": {"description": "Fields of its config.json that memory is estimated from.", "type": "object"},
        },
        required=("name",),
    ),
}

_MODEL_KEYS: _Schema = {
    "model": _ref("description"),
    "sources": _list("In order of preference.", _ref("uri"), 50),
    "artifacts": _list("Its files, by format.", _ref("artifact")),
    "profiles": _list("Ways to run it, in the order of the list where nothing else decides.", _ref("profile")),
    "adapters": _list("LoRA adapters that come with it.", _ref("adapter")),
    "selection": _mapping(
        "How `default` is chosen.", {"goal": _words("What is best; default: latency.", Goal, "latency")}
    ),
    "security": _ref("security"),
}
_SCHEMA_KEY: _Schema = {"schema": {"description": "This form.", "const": SCHEMA}}
_EXTENSIONS: _Schema = {"patternProperties": {"^x-": {"description": "Not read: a place for YAML anchors."}}}

_DEFINITIONS: Mapping[str, Any] = MappingProxyType(
    {
        **_LEAVES,
        **_PARTS,
        "model": _mapping("A model.", _MODEL_KEYS, required=("model",)),
        "file_of_one": {
            **_mapping("A file with one model.", {**_SCHEMA_KEY, **_MODEL_KEYS}, required=("schema", "model")),
            **_EXTENSIONS,
        },
        "file_of_many": {
            **_mapping(
                "A file with several models.",
                {**_SCHEMA_KEY, "models": _list("Models.", _ref("model"))},
                required=("schema", "models"),
            ),
            **_EXTENSIONS,
        },
    }
)
