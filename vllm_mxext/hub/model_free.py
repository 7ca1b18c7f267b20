"""A manifest's entry for a model that no manifest has, made of `config.json`, headers and the list of its files."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any
from uuid import uuid4

from vllm_mxext.errors import ChecksumError, ManifestError
from vllm_mxext.hub.file_choice import choose_files
from vllm_mxext.hub.manifest.document import Node, parse
from vllm_mxext.hub.manifest.model import Artifact, FileEntry, Manifest, ModelEntry, Profile
from vllm_mxext.hub.manifest.reading import read_manifest
from vllm_mxext.hub.manifest.writing import write_manifest
from vllm_mxext.hub.model_profiles import (
    gpu_profiles,
    llama_cpp_profiles,
    mlx_profile,
    native_profiles,
    native_refusal,
)
from vllm_mxext.hub.remote_reading import TensorFacts, missing, read_headers, read_json, read_range
from vllm_mxext.hub.sources.files import FileSource
from vllm_mxext.hub.sources.interface import Listing, RemoteFile, Source
from vllm_mxext.hub.store.names import model_folder
from vllm_mxext.logger import init_logger

logger = init_logger(__name__)

_CACHE = "manifests"
_INDEX = "model.safetensors.index.json"
_MAX_CARD_BYTES = 64 * 2**10
_FRONT_MATTER = re.compile(rb"\A---[ \t]*\r?\n(.*?)\r?\n---[ \t]*\r?\n", re.DOTALL)
_QUANT_OF_FILE = re.compile(
    r"[-._](?P<kind>(?:UD-)?I?Q\d[A-Z0-9_]*|TQ\d_\d|BF16|F16|F32|MXFP4)(?:-\d{5}-of-\d{5})?\.gguf\Z", re.IGNORECASE
)
_DTYPES = {"BF16": "bf16", "F16": "fp16", "F32": "fp32", "F8_E4M3": "fp8", "F8_E5M2": "fp8", "I8": "int8"}
_DTYPE_FLAGS = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
_PACKED = re.compile(r"\.(qweight|weight_packed|\w*_blocks)\Z")
_BESIDE_PACKED = re.compile(r"\.(scales|qzeros|g_idx|weight_scale\w*|weight_zero_point|weight_shape|\w*_scales)\Z")


def entry_from_source(uri: str, source: Source, *, num_connections: int = 8) -> ModelEntry:
    """Returns an entry for what a source has; reads `config.json`, the model card and headers, but no weights.

    Args:
        uri: as the user gave it.
        source: what it stands for.
        num_connections: requests at once.

    Raises:
        DownloadError: it cannot be read, or has no model.
        ChecksumError: a file is broken.
    """
    listing = source.list_files()
    files = {file.path: file for file in listing.files}
    config = read_json(source, files["config.json"]) if "config.json" in files else {}
    tensors, weights = _weights(source, files, num_connections)
    if not config and not any(path.endswith(".gguf") for path in files):
        raise missing(source, "config.json", ", so this is no model in Hugging Face's layout; check the address.")
    precision = _precision(config, tensors)
    if config.get("dtype") is None and config.get("torch_dtype") is None and precision in _DTYPE_FLAGS:
        config = {**config, "dtype": _DTYPE_FLAGS[precision]}
    num_parameters = _num_parameters(tensors, config)
    artifacts = tuple(_artifacts(source, listing, config, weights))
    if not artifacts:
        raise missing(source, "weights", ": no safetensors, GGUF or PyTorch files; check the address.")
    license_name, license_url = _license(source, files)
    refusal = native_refusal(config) if any(one.format == "safetensors" for one in artifacts) else None
    return ModelEntry(
        name=model_name(uri),
        family=str(config.get("model_type", ""))[:200],
        revision=listing.revision or None,
        description=" ".join((refusal or "").split())[:2000],
        num_parameters=num_parameters,
        config=MappingProxyType(config),
        sources=(uri,),
        artifacts=artifacts,
        profiles=tuple(_profiles(artifacts, config, precision, num_parameters, can_run_natively=refusal is None)),
        license=license_name,
        license_url=license_url,
    )


def entry_from_folder(folder: Path) -> ModelEntry:
    """Returns an entry for the files of a folder.

    Raises:
        DownloadError: it cannot be read, or has no model.
        ChecksumError: a file is broken.
    """
    source = FileSource(folder.absolute().as_uri(), None)
    entry = entry_from_source(source.uri, source, num_connections=1)
    return replace(entry, name=folder.resolve().name)


def cached_entry(folder: Path, uri: str, revision: str | None) -> ModelEntry | None:
    """Returns the entry that `keep_entry()` has stored; None without one, or if it can be read no more.

    Args:
        folder: of the store.
        uri: of the source.
        revision: that was asked for.
    """
    path = _cache_path(folder, uri, revision)
    if not os.path.isfile(path):
        return None
    try:
        return read_manifest(path).models[0]
    except ManifestError as error:
        logger.warning("A stored description is made again: %s", error)
        return None


def keep_entry(folder: Path, uri: str, revision: str | None, entry: ModelEntry) -> None:
    """Stores an entry for starts without a network; a folder that cannot be written is no hindrance."""
    path = _cache_path(folder, uri, revision)
    part = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(write_manifest(Manifest((entry,), "")), encoding="utf-8")
        os.replace(part, path)
    except OSError as error:
        with suppress(OSError):
            part.unlink()
        logger.warning("The description of %s is not kept in '%s': %s.", uri, path.parent, error.strerror)


def _cache_path(folder: Path, uri: str, revision: str | None) -> Path:
    digest = hashlib.sha256(f"{uri}\n{revision or ''}".encode(errors="surrogatepass")).hexdigest()[:16]
    return folder / _CACHE / f"{model_folder(model_name(uri))}-{digest}.yaml"


def model_name(uri: str) -> str:
    """Returns ORG/NAME of Hugging Face as such, of other sources with the scheme in front: names are folders."""
    scheme, separator, rest = uri.partition("://")
    if not separator:
        scheme, rest = "hf", uri
    rest = rest.partition("?")[0].partition("#")[0]
    words = [re.sub(r"[^A-Za-z0-9._:+@-]+|\.\.+", "-", part).lstrip(".-_:+@") for part in rest.split("/")]
    name = "/".join(word for word in ([] if scheme == "hf" else [scheme]) + words if word)
    return name[:200].rstrip("/") or "model"


def _weights(
    source: Source, files: Mapping[str, RemoteFile], num_connections: int
) -> tuple[tuple[TensorFacts, ...], frozenset[str]]:
    """Returns the tensors of the safetensors files that are the model, and these files."""
    paths = sorted(path for path in files if path.endswith(".safetensors") and "/" not in path)
    whole = [path for path in paths if not path.startswith("consolidated")]
    paths = whole or paths
    if _INDEX in files:
        index = read_json(source, files[_INDEX]).get("weight_map")
        if not isinstance(index, dict) or not all(isinstance(path, str) for path in index.values()):
            raise ChecksumError(f"{_INDEX} of {source.uri} has no weight_map; the source is broken.")
        paths = sorted(set(index.values()))
        absent = [path for path in paths if path not in files]
        if absent:
            raise missing(source, absent[0][:200], f", which {_INDEX} names; the upload is not complete.")
    elif "model.safetensors" in files:
        paths = ["model.safetensors"]
    return read_headers(source, [files[path] for path in paths], num_connections=num_connections), frozenset(paths)


def _precision(config: Mapping[str, Any], tensors: Sequence[TensorFacts]) -> str:
    """Returns what the weights are: what `config.json` says of quantisation, else the type of most bytes."""
    bits = _mlx_bits(config)
    if bits:
        return f"int{bits}"
    quantization = config.get("quantization_config")
    if isinstance(quantization, Mapping):
        return _quantized(quantization)
    sizes: Counter[str] = Counter()
    for tensor in tensors:
        sizes[tensor.dtype] += tensor.num_bits
    names = [_DTYPES[dtype] for dtype, _ in sizes.most_common() if dtype in _DTYPES]
    given = str(config.get("dtype") or config.get("torch_dtype") or "")
    return next(iter(names), {flag: name for name, flag in _DTYPE_FLAGS.items()}.get(given, "bf16"))


def _mlx_bits(config: Mapping[str, Any]) -> int:
    """Returns the bits of MLX's own quantisation; 0 without."""
    quantization = config.get("quantization")
    bits = quantization.get("bits") if isinstance(quantization, Mapping) else None
    return bits if isinstance(bits, int) and 1 <= bits <= 16 else 0


def _quantized(quantization: Mapping[str, Any]) -> str:
    method = str(quantization.get("quant_method", "")).lower()
    if method == "compressed-tensors":
        groups = quantization.get("config_groups")
        group = next(iter(groups.values()), None) if isinstance(groups, Mapping) else None
        weights = group.get("weights") if isinstance(group, Mapping) else None
        if isinstance(weights, Mapping) and isinstance(weights.get("num_bits"), int):
            return f"{'fp' if weights.get('type') == 'float' else 'int'}{weights['num_bits']}"
    if method == "bitsandbytes":
        return "int4" if quantization.get("load_in_4bit") else "int8"
    word = re.sub(r"[^a-z0-9_.+-]", "", method)[:40].lstrip("_.+-")
    return {"fbgemm_fp8": "fp8"}.get(word, word) or "int8"


def _num_parameters(tensors: Sequence[TensorFacts], config: Mapping[str, Any]) -> int:
    """Returns the model's parameters: packed ones count singly, scales beside them not at all."""
    quantization = config.get("quantization_config")
    bits = quantization.get("bits") if isinstance(quantization, Mapping) else None
    bits = _mlx_bits(config) or (bits if bits in (2, 3, 4, 8) else 4)
    total = 0
    for tensor in tensors:
        if tensor.dtype == "U32" or (_PACKED.search(tensor.name) and tensor.dtype in ("I32", "U8")):
            total += tensor.num_bits // bits
        elif not _BESIDE_PACKED.search(tensor.name):
            total += tensor.num_elements
    return total


def _artifacts(
    source: Source, listing: Listing, config: Mapping[str, Any], weights: frozenset[str]
) -> Iterator[Artifact]:
    """Yields what the source has, by format, each file pinned as the source lists it."""
    if weights:
        form = "mlx" if _mlx_bits(config) else "safetensors"
        others = {file.path for file in listing.files if file.path.endswith(".safetensors")} - weights
        kept = tuple(file for file in listing.files if file.path not in others)
        yield _pinned(source, Artifact(form, form), Listing(listing.revision, kept))
    quants: dict[str, list[RemoteFile]] = {}
    for file in listing.files:
        match = _QUANT_OF_FILE.search(file.path)
        if match is not None and "mmproj" not in file.path.lower():
            quants.setdefault(match["kind"].lower(), []).append(file)
    for kind, files in sorted(quants.items()):
        artifact = Artifact(f"gguf-{kind}", "gguf", include=tuple(file.path for file in files))
        yield _pinned(source, artifact, Listing(listing.revision, tuple(files)))
    if not weights and any(re.fullmatch(r"pytorch_model.*\.bin", file.path) for file in listing.files):
        yield Artifact("pytorch", "pytorch")


def _pinned(source: Source, artifact: Artifact, listing: Listing) -> Artifact:
    chosen = choose_files(source.uri, artifact, listing, allows_pickle=False, allows_code=False)
    files = tuple(FileEntry(file.path, file.size, file.sha256) for file in chosen)
    return Artifact(artifact.name, artifact.format, files=files)


def _profiles(
    artifacts: Sequence[Artifact],
    config: Mapping[str, Any],
    precision: str,
    num_parameters: int,
    *,
    can_run_natively: bool,
) -> Iterator[Profile]:
    for artifact in artifacts:
        if artifact.format == "gguf":
            yield from llama_cpp_profiles(artifact.name, artifact.name.removeprefix("gguf-"))
        elif artifact.format == "mlx":
            yield mlx_profile(artifact.name, precision)
        else:
            if can_run_natively and artifact.format == "safetensors":
                yield from native_profiles(artifact.name, precision)
            yield from gpu_profiles(artifact, precision, config, num_parameters)


def _license(source: Source, files: Mapping[str, RemoteFile]) -> tuple[str, str]:
    """Returns the licence that the model card names and where its text is, each empty if it does not say."""
    if "README.md" not in files:
        return "", ""
    match = _FRONT_MATTER.match(read_range(source, files["README.md"], 0, _MAX_CARD_BYTES))
    if match is None:
        return "", ""
    try:
        fields: Mapping[str, Node] = parse(match[1], "README.md").fields
    except ManifestError:
        return "", ""
    words = {name: fields[name].value for name in ("license", "license_name", "license_link") if name in fields}
    texts = {name: " ".join(value.split())[:500] for name, value in words.items() if isinstance(value, str)}
    name, link = texts.get("license", ""), texts.get("license_link", "")
    return texts.get("license_name", name) if name == "other" else name, link if "://" in link else ""
