"""Reads `.nemo` archives of NeMo: a tar of `model_config.yaml` and `model_weights.ckpt`, an archive of `torch.save`.

NeMo adapts the fused layers of Megatron: the rows of `linear_qkv` are grouped by key head (its query heads, the key
head, the value head), those of `linear_fc1` are the gate's, then the other's. The parts share A.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import numpy.typing as npt
import yaml

from vllm_mxext.config.model_spec import ModelSpec
from vllm_mxext.lora.files import AdapterFiles, ModuleAdapter, ModuleKey, StoredTensor
from vllm_mxext.lora.fitting import check_rows, module_shape
from vllm_mxext.lora.formats.torch_zip import read_torch_zip
from vllm_mxext.lora.opening import AdapterFolder, derived, number, open_part, parsing, printable, refusal, rows_of

ENDING = ".nemo"

_CONFIG, _WEIGHTS = "model_config.yaml", "model_weights.ckpt"
_GZIP_MAGIC = b"\x1f\x8b"
_MAX_MEMBERS = 1000
_MAX_CONFIG_BYTES = 128 * 2**10
_MAX_DEPTH = 50
_NAME = re.compile(
    r"model\.(?:module\.)?(?:decoder\.|language_model\.encoder\.)?layers\.(?P<layer>\d{1,6})\."
    r"(?:self_attention|mlp)\.adapter_layer\.(?P<adapter>lora_[\w.]+)\.linear_(?P<side>in|out)\.weight"
)
_QKV, _GATE_UP = "lora_kqv_adapter", "lora_hto4h_adapter"
_SINGLE = {
    "lora_unfused_kqv_adapter.q_adapter": "q_proj",
    "lora_unfused_kqv_adapter.k_adapter": "k_proj",
    "lora_unfused_kqv_adapter.v_adapter": "v_proj",
    "lora_dense_attention_adapter": "o_proj",
    "lora_unfused_hto4h_adapter.gate_adapter": "gate_proj",
    "lora_unfused_hto4h_adapter.up_adapter": "up_proj",
    "lora_4htoh_adapter": "down_proj",
}


def read_nemo(folder: AdapterFolder, path: Path, spec: ModelSpec, allows_pickle: bool) -> AdapterFiles:
    """Reads what an archive of NeMo holds.

    Raises:
        AdapterError: it is broken or not a LoRA, or must not be unpickled.
    """
    if not allows_pickle:
        raise refusal(
            f"{path} has to be unpickled; convert the adapter to safetensors, or start the server with "
            "--lora-allow-pickle."
        )
    archive = folder.open_only(ENDING)
    members = _members(archive)
    alpha = _alpha(archive, members)
    start, size = members[_WEIGHTS]
    modules: dict[ModuleKey, ModuleAdapter] = {}
    for (layer, name), sides in _pairs(archive, read_torch_zip(archive, start, size)).items():
        if len(sides) < 2:
            raise refusal(f"{path} holds only linear_{next(iter(sides))} of {name} in layer {layer}; save it again.")
        a, b = sides["in"], sides["out"]
        rank = a.shape[0] if a.shape else 0
        if rank < 1:
            raise refusal(f"{path} holds a {name} of rank 0 in layer {layer}; save it again.")
        for part, rows in _parts(archive, name, b, spec):
            key = ModuleKey(layer, part)
            if key in modules:
                raise refusal(f"{path} adapts {part} of layer {layer} twice; save it again.")
            modules[key] = ModuleAdapter(rank=rank, scaling=1.0 if alpha is None else alpha / rank, a=a, b=rows)
    return AdapterFiles(path=path, format="nemo", fingerprint=folder.fingerprint(), modules=modules)


def _members(path: Path) -> dict[str, tuple[int, int]]:
    """Where the two files of the archive begin, and their sizes."""
    found: dict[str, tuple[int, int]] = {}
    if open_part(path).read(len(_GZIP_MAGIC)) == _GZIP_MAGIC:
        raise refusal(f"{path} is compressed; unpack it with `gzip -d` and serve the archive without compression.")
    with parsing(path), tarfile.open(fileobj=cast("IO[bytes]", open_part(path)), mode="r:") as archive:
        for count, member in enumerate(archive):
            parts = Path(member.name).parts
            if not (member.isreg() or member.isdir()) or member.issparse():
                raise refusal(f"{path} holds {printable(member.name)!r}, which is a link or a device; pack it again.")
            if member.name.startswith("/") or ".." in parts or count >= _MAX_MEMBERS:
                raise refusal(f"{path} holds {printable(member.name)!r}, a name outside of the archive; pack it again.")
            if member.isreg() and parts:
                found["/".join(parts)] = (member.offset_data, member.size)
    if any(name.endswith(f"/{_WEIGHTS}") for name in found):
        raise refusal(f"{path} was saved in parts for several GPUs; merge them with NeMo first.")
    missing = next((name for name in (_CONFIG, _WEIGHTS) if name not in found), None)
    if missing:
        raise refusal(f"{path} holds no {missing}; it is not an adapter of NeMo.")
    return found


def _alpha(path: Path, members: Mapping[str, tuple[int, int]]) -> float | None:
    start, size = members[_CONFIG]
    if size > _MAX_CONFIG_BYTES:
        raise refusal(f"{path}: {_CONFIG} is larger than {_MAX_CONFIG_BYTES} bytes; it is not an adapter of NeMo.")
    with parsing(path):
        text = open_part(path, start, size).read()
        _refuse_tricks(path, text)
        peft: dict[str, Any] = yaml.safe_load(text).get("peft") or {}
        scheme, lora = peft.get("peft_scheme", "lora"), peft.get("lora_tuning") or {}
    if scheme != "lora":
        raise refusal(f"{path} is of the kind {printable(str(scheme))}; only lora is served.")
    if lora.get("weight_tying"):
        raise refusal(f"{path} shares its weights between layers (weight_tying), which is not served.")
    alpha = lora.get("alpha")
    return None if alpha is None else number(path, "alpha", alpha)


def _refuse_tricks(path: Path, text: bytes) -> None:
    """Refuses what takes the parser very long: merged mappings and deep nesting."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _MAX_DEPTH or getattr(event, "value", None) == "<<":
            raise refusal(f"{path}: {_CONFIG} is nested or merged as NeMo never writes it; save it again.")


def _pairs(path: Path, stored: Mapping[str, StoredTensor]) -> dict[tuple[int, str], dict[str, StoredTensor]]:
    pairs: dict[tuple[int, str], dict[str, StoredTensor]] = {}
    for name, tensor in stored.items():
        match = _NAME.fullmatch(name)
        if not match or (match["adapter"] not in (_QKV, _GATE_UP) and match["adapter"] not in _SINGLE):
            raise refusal(
                f"{path} holds {printable(name)}, a part that this model does not have or that is not served."
            )
        pairs.setdefault((int(match["layer"]), match["adapter"]), {})[match["side"]] = tensor
    return pairs


def _parts(path: Path, name: str, b: StoredTensor, spec: ModelSpec) -> Iterator[tuple[str, StoredTensor]]:
    if name in _SINGLE:
        yield _SINGLE[name], b
    elif name == _GATE_UP:
        check_rows(path, name, b, 2 * spec.intermediate_size)
        yield "gate_proj", rows_of(b, 0, spec.intermediate_size)
        yield "up_proj", rows_of(b, spec.intermediate_size, 2 * spec.intermediate_size)
    else:
        places = _grouped_rows(spec)
        check_rows(path, name, b, sum(rows.size for rows in places.values()))
        for part, rows in places.items():
            yield part, _picked(b, rows)


def _picked(tensor: StoredTensor, rows: npt.NDArray[np.int64]) -> StoredTensor:
    return derived(tensor, (rows.size, *tensor.shape[1:]), lambda values: values[rows])


def _grouped_rows(spec: ModelSpec) -> dict[str, npt.NDArray[np.int64]]:
    """Rows of `linear_qkv` that belong to each projection."""
    num_queries = spec.num_heads // spec.num_kv_heads
    num_rows = sum(module_shape(spec, name)[0] for name in ("q_proj", "k_proj", "v_proj"))
    groups = np.arange(num_rows).reshape(spec.num_kv_heads, num_queries + 2, spec.head_dim)
    return {
        "q_proj": groups[:, :num_queries].reshape(-1),
        "k_proj": groups[:, num_queries].reshape(-1),
        "v_proj": groups[:, num_queries + 1].reshape(-1),
    }
