"""`write_manifest()`: a `Manifest` as YAML that `read_manifest()` reads back equal; what is a default is left out."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from vllm_mxext.hub.manifest.model import SCHEMA, Artifact, Manifest, ModelEntry, Profile

_HEADER = "# Manifest of the MX Hub; docs/hub.md has all keys, docs/model_manifest.schema.json is for editors.\n"


def write_manifest(manifest: Manifest) -> str:
    """Returns YAML: one model at the top level, several as a list."""
    if len(manifest.models) == 1:
        content = {"schema": SCHEMA, **model_content(manifest.models[0])}
    else:
        content = {"schema": SCHEMA, "models": [model_content(model) for model in manifest.models]}
    return _HEADER + _to_yaml(content)


def model_content(model: ModelEntry) -> dict[str, Any]:
    """Returns a model as the plain values of a manifest."""
    security = {name: getattr(model.security, name) for name in model.security.__slots__}
    return _given(
        model=_given(
            name=model.name,
            aliases=list(model.aliases),
            family=model.family,
            license=model.license,
            license_url=model.license_url,
            revision=model.revision,
            description=model.description,
            parameters=model.num_parameters,
            config=_plain(model.config),
        ),
        sources=list(model.sources),
        artifacts=[_artifact(artifact) for artifact in model.artifacts],
        profiles=[_profile(profile) for profile in model.profiles],
        adapters=[
            {
                **_given(name=adapter.name, uri=adapter.uri, description=adapter.description),
                **({} if adapter.is_loaded_at_start else {"auto_load": False}),
            }
            for adapter in model.adapters
        ],
        selection=_given(goal=model.goal),
        security=_given(**{**security, "signature": security["signature"].replace("off", "")}),
    )


def _artifact(artifact: Artifact) -> dict[str, Any]:
    files = []
    for file in artifact.files:
        facts = {"path": file.path, "size": file.size, "sha256": file.sha256}
        files.append({name: value for name, value in facts.items() if value is not None})
    return _given(
        name=artifact.name,
        format=artifact.format,
        include=list(artifact.include),
        exclude=list(artifact.exclude),
        files=files,
        sources=list(artifact.sources),
        revision=artifact.revision,
    )


def _profile(profile: Profile) -> dict[str, Any]:
    tags, device, host = profile.tags, profile.device, profile.host
    return _given(
        name=profile.name,
        aliases=list(profile.aliases),
        tags={
            "llm_engine": tags.llm_engine, "precision": tags.precision,
            **_given(tp=tags.tp if tags.tp != 1 else 0, pp=tags.pp if tags.pp != 1 else 0),
            **_given(profile=tags.profile if tags.profile != "balanced" else ""),
            **_given(feat_lora=tags.feat_lora, gpu=tags.gpu),
        },
        artifact=profile.artifact,
        requires=_given(
            device=_given(
                kind=device.kind if device.kind != "cpu" else "",
                vendor=device.vendor,
                count=device.count if device.count != (tags.tp * tags.pp if device.kind == "gpu" else 1) else 0,
                min_memory=device.min_memory,
                arch=list(device.arch),
                ids=list(device.ids),
            ),
            host=_given(memory=host.memory, disk=host.disk, isa=list(host.isa)),
        ),
        engine_args=_plain(profile.engine_args),
        fallback=profile.is_fallback,
        lora=_plain(profile.lora),
    )  # fmt: skip


def _given(**values: Any) -> dict[str, Any]:
    """Returns what says something."""
    return {name: value for name, value in values.items() if value}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, str):
        return [_plain(entry) for entry in value]
    return value


def _to_yaml(content: Any) -> str:
    import yaml  # noqa: PLC0415 - only those who write a manifest pay for it

    class Dumper(yaml.SafeDumper):
        """Quotes texts that our reader, which follows YAML 1.2, would take for numbers."""

        def ignore_aliases(self, _data: Any) -> bool:
            return True

    number = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?\Z|0[xo][0-9a-fA-F]+\Z")
    Dumper.add_implicit_resolver("tag:yaml.org,2002:number", number, list("-+.0123456789"))
    return str(yaml.dump(content, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=120))
