"""`Manifest`: models, where their files are, and the profiles in which they can be run, as plain frozen data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

SCHEMA = "mx.hub/v1"

Goal = Literal["latency", "throughput", "memory"]
DeviceKind = Literal["cpu", "gpu"]
Vendor = Literal["nvidia", "amd", "metax", "apple"]
EngineName = Literal["native", "vllm", "tensorrt_llm", "llama.cpp", "mlx", "transformers"]
ProfileKind = Literal["latency", "throughput", "balanced"]
SignatureRule = Literal["off", "warn", "require"]

_NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file that a manifest pins.

    Attributes:
        path: inside the model, with `/`.
        size: bytes; None if the manifest does not say.
        sha256: 64 hexadecimal digits; None if the manifest does not say.
    """

    path: str
    size: int | None = None
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class Artifact:
    """Files in one format that belong together.

    Attributes:
        name: what profiles call it.
        format: `safetensors`, `gguf`, `mlx`, `tensorrt_llm`, `onnx` or `pytorch`.
        include: patterns (`fnmatch` on the path) of files that belong to it; empty = all that the format needs.
        exclude: patterns of files that do not.
        files: pinned files; empty = whatever the source lists and `include` matches.
        sources: URIs in order of preference; empty = those of the model.
        revision: of the sources; None = that of the model.
    """

    name: str
    format: str = "safetensors"
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    files: tuple[FileEntry, ...] = ()
    sources: tuple[str, ...] = ()
    revision: str | None = None


@dataclass(frozen=True, slots=True)
class Tags:
    """What a profile is, in words that can be filtered by.

    Attributes:
        llm_engine: engine that runs it.
        precision: of the weights: `bf16`, `fp16`, `fp32`, `fp8`, `int8`, `int4`, `awq`, `gptq`, `q4_k_m`, ...
        tp: devices that share each layer.
        pp: groups of devices that share the layers.
        profile: what it is tuned for.
        feat_lora: whether adapters can be served with it.
        gpu: the device it was made for, for people: `H100`; empty = any.
    """

    llm_engine: EngineName = "native"
    precision: str = "bf16"
    tp: int = 1
    pp: int = 1
    profile: ProfileKind = "balanced"
    feat_lora: bool = False
    gpu: str = ""


@dataclass(frozen=True, slots=True)
class DeviceNeeds:
    """Devices that a profile needs.

    Attributes:
        kind: `gpu` also stands for Apple's.
        vendor: None = any.
        count: at least so many equal ones.
        min_memory: bytes of each.
        arch: any of these: `sm_90`, `gfx942`, `xcore1000`, `apple9`; an entry `>=sm_80` is a lower limit; empty = any.
        ids: any of these names or PCI ids (`10de:2330`); empty = any.
    """

    kind: DeviceKind = "cpu"
    vendor: Vendor | None = None
    count: int = 1
    min_memory: int = 0
    arch: tuple[str, ...] = ()
    ids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class HostNeeds:
    """What a profile needs of the machine around its devices.

    Attributes:
        memory: bytes of main memory.
        disk: free bytes where models are stored.
        isa: instruction sets that must all be there: `avx2`, `avx512_bf16`, `amx_bf16`, `neon`, ...
    """

    memory: int = 0
    disk: int = 0
    isa: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Profile:
    """One way to run a model on one kind of hardware.

    Attributes:
        name: unique within the model.
        aliases: other names.
        tags: what it is.
        artifact: name of the files it needs; None = the only artifact, or all of the model's files.
        device: devices it needs.
        host: what else it needs.
        engine_args: flags of `mxext serve` (dashes or underscores) -> values.
        is_fallback: chosen only if no other profile can run.
        lora: settings of adapters (`max_loras`, `max_lora_rank`, `max_cpu_loras`) if it serves them.
    """

    name: str
    aliases: tuple[str, ...] = ()
    tags: Tags = field(default_factory=Tags)
    artifact: str | None = None
    device: DeviceNeeds = field(default_factory=DeviceNeeds)
    host: HostNeeds = field(default_factory=HostNeeds)
    engine_args: Mapping[str, Any] = field(default_factory=lambda: _NOTHING)
    is_fallback: bool = False
    lora: Mapping[str, Any] = field(default_factory=lambda: _NOTHING)

    @property
    def id(self) -> str:
        """SHA-256 of the canonical JSON of everything but name and aliases: equal content, equal id."""
        return hashlib.sha256(_canonical(self).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class AdapterEntry:
    """A LoRA adapter that comes with a model.

    Attributes:
        name: what requests call it.
        uri: where its files are: a URI, or a path relative to the manifest.
        description: for people.
        is_loaded_at_start: served from the start.
    """

    name: str
    uri: str
    description: str = ""
    is_loaded_at_start: bool = True


@dataclass(frozen=True, slots=True)
class Security:
    """What is asked of a model's files.

    Attributes:
        signature: whether they must be signed.
        identity: who must have signed them; empty = anybody.
        identity_provider: OpenID provider that vouches for the identity.
        public_key: file of the key they are signed with, instead of an identity.
        trust_remote_code: Python files may be downloaded (this server never runs them).
        allow_pickle: files that have to be unpickled may be downloaded.
    """

    signature: SignatureRule = "off"
    identity: str = ""
    identity_provider: str = ""
    public_key: str = ""
    trust_remote_code: bool = False
    allow_pickle: bool = False


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """One model of a manifest.

    Attributes:
        name: what `--model` and `MIM_MODEL_NAME` call it.
        aliases: other names.
        family: architecture family, for people: `qwen3`.
        license: SPDX identifier or name.
        license_url: where its text is.
        revision: branch, tag or commit of the sources.
        description: one sentence for lists.
        num_parameters: of the model, in all; 0 if not known.
        config: the fields of its `config.json` that memory is estimated from; empty if not known before download.
        sources: URIs in order of preference.
        artifacts: its files, by format.
        profiles: in the order of the manifest.
        adapters: LoRA adapters that come with it.
        goal: what `default` means; None = latency.
        security: what is asked of its files.
    """

    name: str
    aliases: tuple[str, ...] = ()
    family: str = ""
    license: str = ""
    license_url: str = ""
    revision: str | None = None
    description: str = ""
    num_parameters: int = 0
    config: Mapping[str, Any] = field(default_factory=lambda: _NOTHING)
    sources: tuple[str, ...] = ()
    artifacts: tuple[Artifact, ...] = ()
    profiles: tuple[Profile, ...] = ()
    adapters: tuple[AdapterEntry, ...] = ()
    goal: Goal | None = None
    security: Security = field(default_factory=Security)


@dataclass(frozen=True, slots=True)
class Manifest:
    """Models that can be chosen from.

    Attributes:
        models: in the order of the file.
        origin: for people: `flag --manifest`, `environment MIM_MANIFEST_PATH`, `packaged`, `made from hf://...`.
        path: the file; None if it was made, not read.
        notes: what could not be imported or is unusual, and where it was looked for, a sentence each.
    """

    models: tuple[ModelEntry, ...]
    origin: str
    path: str | None = None
    notes: tuple[str, ...] = ()


def _canonical(profile: Profile) -> str:
    content = {
        "tags": _fields(profile.tags),
        "artifact": profile.artifact,
        "device": _fields(profile.device),
        "host": _fields(profile.host),
        "engine_args": {key.replace("_", "-"): value for key, value in profile.engine_args.items()},
        "fallback": profile.is_fallback,
        "lora": dict(profile.lora),
    }
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _fields(value: Any) -> dict[str, Any]:
    return {name: getattr(value, name) for name in value.__slots__}
