"""Reads adapters of PEFT: `adapter_config.json` with `adapter_model.safetensors` or `adapter_model.bin`.

The tensors rule: modules are changed if the file holds weights for them, whatever `target_modules` says. The config
says how strongly, and of which rank they must be.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from vllm_mxext.config.model_spec import ModelSpec
from vllm_mxext.lora.files import EMBEDDING, HEAD, AdapterFiles, ModuleAdapter, ModuleKey, StoredTensor
from vllm_mxext.lora.fitting import describe
from vllm_mxext.lora.formats.peft_config import PeftConfig, read_peft_config
from vllm_mxext.lora.formats.safetensors import read_safetensors
from vllm_mxext.lora.formats.torch_zip import read_torch_zip
from vllm_mxext.lora.opening import AdapterFolder, printable, refusal, transposed

CONFIG_NAME = "adapter_config.json"
SAFETENSORS_NAME = "adapter_model.safetensors"
BIN_NAME = "adapter_model.bin"

_MODULE = re.compile(
    r"(?:(?:base_model|model|language_model|module|_orig_mod)\.)*"
    r"(?:layers\.(?P<layer>\d{1,6})\.(?:self_attn\.(?P<attention>[qkvo]_proj)|mlp\.(?P<mlp>(?:gate|up|down)_proj))"
    rf"|(?P<ends>{EMBEDDING}|{HEAD}))\."
)
_NAME = r"(?:\.(?P<adapter>[^.]+))?"
_PARTS = {
    "a": re.compile(rf"lora_A{_NAME}\.weight"),
    "b": re.compile(rf"lora_B{_NAME}\.weight"),
    "b_bias": re.compile(rf"lora_B{_NAME}\.bias"),
    "embedding_a": re.compile(rf"lora_embedding_A{_NAME}"),
    "embedding_b": re.compile(rf"lora_embedding_B{_NAME}"),
    "magnitude": re.compile(r"lora_magnitude_vector(?:\.(?P<adapter>(?!weight$)[^.]+))?(?:\.weight)?"),
    "base_bias": re.compile(r"(?:base_layer\.)?bias"),
    "base_weight": re.compile(r"base_layer\.weight|original_module\.weight"),
    "saved": re.compile(rf"(?:modules_to_save{_NAME}\.)?weight"),
}


class _Part(NamedTuple):
    key: ModuleKey
    module_name: str  # as PEFT knows the module
    kind: str
    adapter: str | None


class _Tensors(NamedTuple):
    parts: Mapping[ModuleKey, Mapping[str, StoredTensor]]
    names: Mapping[ModuleKey, str]


def read_peft(folder: AdapterFolder, path: Path, spec: ModelSpec, allows_pickle: bool) -> AdapterFiles:
    """Reads what a folder of PEFT holds.

    Raises:
        AdapterError: the files are broken, contradict each other or describe what is not served.
    """
    config = read_peft_config(folder.open(CONFIG_NAME))
    if (path / SAFETENSORS_NAME).exists():
        stored = read_safetensors(folder.open(SAFETENSORS_NAME))
    elif not (path / BIN_NAME).exists():
        raise refusal(f"{path} has {CONFIG_NAME}, but neither {SAFETENSORS_NAME} nor {BIN_NAME}; copy the weights too.")
    elif not allows_pickle:
        raise refusal(
            f"{path / BIN_NAME} has to be unpickled; save the adapter as safetensors, or start the server with "
            "--lora-allow-pickle."
        )
    else:
        stored = read_torch_zip(folder.open(BIN_NAME))
    tensors = _sorted(path, stored, config)
    modules = {key: _module(path, key, tensors, config) for key, parts in tensors.parts.items() if _is_low_rank(parts)}
    saved = {key.name: parts["saved"] for key, parts in tensors.parts.items() if "saved" in parts}
    both = next((key.name for key in modules if key.name in saved), None)
    if both:
        raise refusal(f"{path} both replaces {both} and adds to it; save one of the two.")
    if spec.has_tied_embeddings:
        _tie(modules, saved, config)
    return AdapterFiles(
        path=path,
        format="huggingface",
        fingerprint=folder.fingerprint(),
        modules=modules,
        saved=saved,
        base_biases={
            key: parts["base_bias"]
            for key, parts in tensors.parts.items()
            if "base_bias" in parts and key not in modules
        },
        base_model_name=config.base_model_name,
    )


def _sorted(path: Path, stored: Mapping[str, StoredTensor], config: PeftConfig) -> _Tensors:
    parts: dict[ModuleKey, dict[str, StoredTensor]] = {}
    names: dict[ModuleKey, str] = {}
    adapters = set()
    for name, tensor in stored.items():
        part = _part(path, name, config)
        if part.kind == "base_weight":
            continue  # the base's own weight, which PEFT stores beside an adapted or replaced embedding
        if part.kind in parts.setdefault(part.key, {}):
            raise refusal(f"{path} holds {part.kind} of {describe(part.key)} more than once; save the adapter again.")
        parts[part.key][part.kind] = tensor
        names[part.key] = part.module_name
        adapters.add(part.adapter)
    if len(adapters - {None}) > 1:
        found = ", ".join(sorted(printable(adapter) for adapter in adapters if adapter))
        raise refusal(f"{path} holds several adapters ({found}) in one file; save each in a folder of its own.")
    return _Tensors(parts, names)


def _part(path: Path, name: str, config: PeftConfig) -> _Part:
    module = _MODULE.match(name)
    for kind, pattern in _PARTS.items():
        match = pattern.fullmatch(name, module.end()) if module else None
        if not module or not match:
            continue
        layer, ends = module["layer"], module["ends"]
        key = ModuleKey(None, ends) if ends else ModuleKey(int(layer), module["attention"] or module["mlp"])
        if kind in ("saved", "base_weight") and not ends:
            break
        adapter = match["adapter"] if "adapter" in pattern.groupindex else None
        return _Part(key, module.group()[:-1].removeprefix("base_model.model."), kind, adapter)
    made_for = f"; it says that it was made for {config.base_model_name}" if config.base_model_name else ""
    shown = printable(name)
    if "lora_" not in name:
        raise refusal(f"{path} replaces {shown}, and only {EMBEDDING} and {HEAD} can be replaced by an adapter.")
    raise refusal(f"{path} holds {shown}, a part that this model does not have or that is not served{made_for}.")


def _is_low_rank(parts: Mapping[str, StoredTensor]) -> bool:
    return bool(parts.keys() - {"saved", "base_bias"})


def _module(path: Path, key: ModuleKey, tensors: _Tensors, config: PeftConfig) -> ModuleAdapter:
    parts, name = tensors.parts[key], tensors.names[key]
    prefix = "embedding_" if key.name == EMBEDDING else ""
    a, b = parts.get(prefix + "a"), parts.get(prefix + "b")
    known = {prefix + "a", prefix + "b", "saved"} | (set() if prefix else {"b_bias", "magnitude", "base_bias"})
    unknown = next((kind for kind in parts if kind not in known), None)
    if unknown:
        raise refusal(f"{path} holds {unknown} for {describe(key)}, which is not served.")
    if a is None or b is None:
        here, missing = ("A", "B") if b is None else ("B", "A")
        raise refusal(f"{path} holds {here} of {describe(key)} without its {missing}; save the adapter again.")
    if (config.use_dora and not prefix) != ("magnitude" in parts):
        told, found = ("with", "holds no") if config.use_dora else ("without", "holds a")
        raise refusal(f"{path} is described {told} DoRA, but {found} magnitude of {describe(key)}; save it again.")
    if config.use_dora and prefix:
        raise refusal(f"{path} changes {EMBEDDING} with DoRA, which is served for linear layers only.")
    rank = config.rank_of(name)
    if (a.shape[:1], b.shape[1:]) != ((rank,), (rank,)):
        raise refusal(
            f"{path} gives {describe(key)} rank {rank} in {CONFIG_NAME}, but its A is {list(a.shape)} and its B "
            f"{list(b.shape)}; the two files do not belong together."
        )
    return ModuleAdapter(
        rank=rank,
        scaling=config.scaling_of(name, rank),
        a=a,
        b=b,
        b_bias=parts.get("b_bias"),
        magnitude=parts.get("magnitude"),
        base_bias=parts.get("base_bias"),
    )


def _tie(modules: dict[ModuleKey, ModuleAdapter], saved: dict[str, StoredTensor], config: PeftConfig) -> None:
    """Gives the head of a model with tied embeddings what PEFT gives it.

    Only `ensure_weight_tying` gives it a part in what is done to the embedding; otherwise the head stays the base's.
    An embedding that was saved without being asked for (its vocabulary had been resized) is loaded into the weight
    that both share.
    """
    embedding, head = ModuleKey(None, EMBEDDING), ModuleKey(None, HEAD)
    if embedding in modules and head not in modules and HEAD not in saved and config.ties_weights:
        adapter = modules[embedding]
        modules[head] = ModuleAdapter(
            rank=adapter.rank,
            scaling=config.scaling_of(HEAD, adapter.rank),
            a=transposed(adapter.b),
            b=transposed(adapter.a),
        )
    was_asked_for = any(name.split(".")[-1] == EMBEDDING for name in config.modules_to_save)
    if EMBEDDING in saved and HEAD not in saved and head not in modules and (config.ties_weights or not was_asked_for):
        saved[HEAD] = saved[EMBEDDING]
