"""What JSON Schema cannot say of a manifest: names that must differ or exist, flags, sizes, parallelism, addresses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any
from urllib.parse import urlsplit

from vllm_mxext.config.flags import Flag
from vllm_mxext.config.options import all_flags
from vllm_mxext.config.sources import did_you_mean
from vllm_mxext.hub.injection import allowed_fields, reads_file
from vllm_mxext.hub.manifest.building import parse_size
from vllm_mxext.hub.manifest.complaints import Complaint, shown
from vllm_mxext.hub.manifest.document import Node
from vllm_mxext.hub.manifest.model import ModelEntry


def check_models(models: list[Node]) -> Iterator[Complaint]:
    """Yields what is wrong with models that the schema has let through, one by one and together."""
    taken: dict[str, str] = {}
    for model in models:
        about = model.fields["model"]
        yield from _check_names(about, taken, "model")
        yield from _check_model(model)


def check_ids(models: list[Node], entries: Sequence[ModelEntry]) -> Iterator[Complaint]:
    """Yields a complaint for each profile that is another one under a second name.

    Args:
        models: the file.
        entries: what it has become, in the same order.
    """
    for model, entry in zip(models, entries, strict=True):
        names: dict[str, str] = {}
        for node, profile in zip(model.at(["profiles"]).items, entry.profiles, strict=False):
            same = names.setdefault(profile.id, profile.name)
            if same != profile.name:
                yield Complaint(
                    node.line,
                    f"The profiles {shown(same)} and {shown(profile.name)} differ in nothing but their names; remove "
                    "one, or make its name an alias of the other.",
                )


def unusual(models: list[Node]) -> Iterator[str]:
    """Yields a sentence for each thing that is allowed but may be a mistake."""
    for model in models:
        holders = [model, *model.at(["artifacts"]).items]
        for uri in (uri for holder in holders for uri in holder.at(["sources"]).items):
            scheme = str(uri.value).partition(":")[0]
            if "://" in str(uri.value) and scheme not in _schemes():
                known = ", ".join(_schemes())
                yield f"Line {uri.line}: the scheme {shown(scheme)} is none of {known}; it needs a plug-in."


def _check_model(model: Node) -> Iterator[Complaint]:
    yield from (complaint for node in _sizes(model) for complaint in _check_size(node))
    artifacts: dict[str, str] = {}
    for artifact in model.at(["artifacts"]).items:
        yield from _check_names(artifact, artifacts, "artifact")
        yield from _check_paths(artifact)
    for holder in (model, *model.at(["artifacts"]).items):
        for uri in holder.at(["sources"]).items:
            yield from _check_uri(uri)
    names: dict[str, str] = {}
    for profile in model.at(["profiles"]).items:
        yield from _check_names(profile, names, "profile")
        yield from _check_profile(profile, list(artifacts.values()))
    adapters: dict[str, str] = {}
    for adapter in model.at(["adapters"]).items:
        yield from _check_names(adapter, adapters, "adapter")


def _check_names(holder: Node, taken: dict[str, str], kind: str) -> Iterator[Complaint]:
    fields = holder.fields
    for node in (fields["name"], *(fields["aliases"].items if "aliases" in fields else ())):
        key = str(node.value).casefold()
        if key in taken:
            where = "" if taken[key] == fields["name"].value else f" already, by {shown(taken[key])}"
            yield Complaint(node.line, f"The name {shown(node.value)} of {_a(kind)} is taken{where}; choose another.")
        taken.setdefault(key, fields["name"].value)


def _check_size(node: Node) -> Iterator[Complaint]:
    try:
        parse_size(node.value)
    except ValueError as error:
        yield Complaint(node.line, f"A size {error}, got {shown(node.value)}.")


def _a(kind: str) -> str:
    return f"an {kind}" if kind[0] == "a" else f"a {kind}"


def _check_paths(artifact: Node) -> Iterator[Complaint]:
    seen: set[str] = set()
    for file in artifact.at(["files"]).items:
        path = file.fields["path"]
        if str(path.value).casefold() in seen:
            yield Complaint(path.line, f"The file {shown(path.value)} is listed twice; remove one.")
        seen.add(str(path.value).casefold())


def _check_uri(uri: Node) -> Iterator[Complaint]:
    try:
        parts = urlsplit(str(uri.value))
        has_secret = parts.password is not None or (parts.username is not None and parts.scheme in ("http", "https"))
    except ValueError:
        yield Complaint(uri.line, "A source is not a valid URI; write it as hf://ORG/NAME.")
        return
    if has_secret:
        yield Complaint(uri.line, "A source has credentials in it; give them by environment variables (docs/hub.md).")


def _check_profile(profile: Node, artifacts: list[str]) -> Iterator[Complaint]:
    fields = profile.fields
    name = shown(fields["name"].value)
    if "artifact" in fields and fields["artifact"].value not in artifacts:
        wanted = str(fields["artifact"].value)
        yield Complaint(
            profile.line_of(["artifact"]),
            f"The profile {name} needs an unknown artifact {shown(wanted)}{did_you_mean(wanted, artifacts)}",
        )
    tags, device = _plain(profile, "tags"), _plain(profile, "requires", "device")
    engine, num_devices = tags.get("llm_engine", "native"), tags.get("tp", 1) * tags.get("pp", 1)
    if device.get("kind", "cpu") == "gpu" and device.get("count", num_devices) < num_devices:
        yield Complaint(
            profile.line_of(["requires", "device", "count"]),
            f"The profile {name} needs tp x pp = {num_devices} devices, but asks for {device['count']}; set count to "
            f"{num_devices} or leave it out.",
        )
    if engine == "native":
        if num_devices > 1:
            yield Complaint(
                profile.line_of(["tags"]),
                f"The profile {name} has tp x pp = {num_devices}, but the native engine runs on one device.",
            )
        yield from _check_flags(profile, name)


def _check_flags(profile: Node, name: str) -> Iterator[Complaint]:
    flags, settable = _flags(), _settable_flags()
    seen: set[str] = set()
    given = profile.fields.get("engine_args")
    for key, node in ({} if given is None else given.fields).items():
        line, flag_name = profile.line_of(["engine_args", key]), key.replace("_", "-")
        if flag_name in seen:
            yield Complaint(line, f"The profile {name} sets the flag {shown(flag_name)} twice; remove one.")
        elif flag_name in settable:
            try:
                settable[flag_name].facts.kind.parse(node.plain())
                if reads_file(flag_name, node.plain()):
                    what = f"The profile {name} sets {flag_name} to a file"
                    yield Complaint(line, f"{what}, which only those who start the server may.")
            except ValueError as error:
                yield Complaint(line, f"The flag {flag_name} of the profile {name} {error}, got {shown(node.plain())}.")
        elif flag_name in flags:
            yield Complaint(line, f"The profile {name} sets {flag_name}, which only those who start the server may.")
        else:
            yield Complaint(
                line, f"The profile {name} has an unknown flag {shown(flag_name)}{did_you_mean(flag_name, settable)}"
            )
        seen.add(flag_name)


@cache
def _schemes() -> tuple[str, ...]:
    from vllm_mxext.hub.sources.opening import schemes  # noqa: PLC0415 - only files with addresses need it

    return schemes()


@cache
def _flags() -> Mapping[str, Flag]:
    return {flag.name: flag for flag in all_flags()}


@cache
def _settable_flags() -> Mapping[str, Flag]:
    allowed = allowed_fields()
    return {name: flag for name, flag in _flags().items() if flag.field in allowed}


def _plain(node: Node, *path: str) -> Mapping[str, Any]:
    for part in path:
        if part not in node.fields:
            return {}
        node = node.fields[part]
    return {key: value.plain() for key, value in node.fields.items()}


def _sizes(model: Node) -> Iterator[Node]:
    for artifact in model.at(["artifacts"]).items:
        yield from (file.fields["size"] for file in artifact.at(["files"]).items if "size" in file.fields)
    for profile in model.at(["profiles"]).items:
        for path in (("device", "min_memory"), ("host", "memory"), ("host", "disk")):
            holder = profile.fields.get("requires", profile).fields.get(path[0])
            if holder is not None and path[1] in holder.fields:
                yield holder.fields[path[1]]
