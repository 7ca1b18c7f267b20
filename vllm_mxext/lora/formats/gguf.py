"""Reads adapters of llama.cpp (GGUF, `general.type` = `adapter`).

llama.cpp rotates neighbouring elements where transformers rotates halves of a head, so its converter reorders the rows
of q and k of Llama and Mistral models; here the order is undone. A of the embedding is stored transposed.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy.typing as npt

from vllm_mxext.config.model_spec import ModelSpec
from vllm_mxext.lora.files import EMBEDDING, HEAD, AdapterFiles, ModuleAdapter, ModuleKey, StoredTensor
from vllm_mxext.lora.fitting import misfit
from vllm_mxext.lora.formats.gguf_file import GgufFile, read_gguf
from vllm_mxext.lora.opening import AdapterFolder, derived, number, printable, refusal, transposed

ENDING = ".gguf"

_ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
_REORDERED = "llama"
_NAME = re.compile(
    r"(?:blk\.(?P<layer>\d{1,6})\.(?P<linear>attn_q|attn_k|attn_v|attn_output|ffn_gate|ffn_up|ffn_down)"
    r"|(?P<ends>token_embd|output))\.weight\.lora_(?P<side>[ab])"
)
_MODULES = {
    "attn_q": "q_proj",
    "attn_k": "k_proj",
    "attn_v": "v_proj",
    "attn_output": "o_proj",
    "ffn_gate": "gate_proj",
    "ffn_up": "up_proj",
    "ffn_down": "down_proj",
    "token_embd": EMBEDDING,
    "output": HEAD,
}


def read_gguf_adapter(folder: AdapterFolder, path: Path, spec: ModelSpec) -> AdapterFiles:
    """Reads what a GGUF file holds.

    Raises:
        AdapterError: it is broken, a whole model, or holds what is not served.
    """
    file = read_gguf(folder.open_only(ENDING))
    made_for = _text(file, "general.base_model.0.name") or None
    _check_kind(path, file, spec, made_for)
    alpha = number(path, "adapter.lora.alpha", file.values.get("adapter.lora.alpha", 0.0))
    pairs: dict[ModuleKey, dict[str, StoredTensor]] = {}
    for name, tensor in file.tensors.items():
        match = _NAME.fullmatch(name)
        if not match:
            raise refusal(
                f"{path} holds {printable(name)}, a part that this model does not have or that is not served."
            )
        layer = None if match["ends"] else int(match["layer"])
        pairs.setdefault(ModuleKey(layer, _MODULES[match["ends"] or match["linear"]]), {})[match["side"]] = tensor
    return AdapterFiles(
        path=path,
        format="gguf",
        fingerprint=folder.fingerprint(),
        modules={key: _module(path, key, sides, alpha, spec) for key, sides in pairs.items()},
        base_model_name=made_for,
    )


def _check_kind(path: Path, file: GgufFile, spec: ModelSpec, made_for: str | None) -> None:
    kind = _text(file, "general.type")
    if kind != "adapter":
        raise refusal(f"{path} is a GGUF file of the type {kind or 'model'!r}, not an adapter; give an adapter.")
    adapter_type = _text(file, "adapter.type")
    if adapter_type != "lora":
        raise refusal(f"{path} is an adapter of the type {adapter_type!r}; only lora is served.")
    if "adapter.alora.invocation_tokens" in file.values:
        raise refusal(
            f"{path} is an activated LoRA (aLoRA), which starts in the middle of a prompt; that is not served."
        )
    architecture = _text(file, "general.architecture")
    if architecture != _ARCHITECTURES[spec.architecture]:
        raise misfit(path, f"it is for the architecture {architecture!r}", made_for)


def _module(path: Path, key: ModuleKey, sides: dict[str, StoredTensor], alpha: float, spec: ModelSpec) -> ModuleAdapter:
    if len(sides) < 2:
        raise refusal(
            f"{path} holds only lora_{next(iter(sides))} of {key.name} (layer {key.layer}); convert it again."
        )
    a, b = sides["a"], sides["b"]
    if key.name == EMBEDDING:
        a = transposed(a)
    rank = b.shape[1] if len(b.shape) == 2 else 0
    if rank < 1:
        raise refusal(f"{path} holds {key.name} (layer {key.layer}) without a rank; convert it again.")
    num_heads = {"q_proj": spec.num_heads, "k_proj": spec.num_kv_heads}.get(key.name)
    if num_heads and _ARCHITECTURES[spec.architecture] == _REORDERED and b.shape[0] % (2 * num_heads) == 0:
        b = _in_original_order(b, num_heads)
    return ModuleAdapter(rank=rank, scaling=alpha / rank if alpha else 1.0, a=a, b=b)


def _in_original_order(b: StoredTensor, num_heads: int) -> StoredTensor:
    """Undoes `LlamaModel.permute` of llama.cpp's converter."""

    def undo(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return values.reshape(num_heads, -1, 2, values.shape[1]).swapaxes(1, 2)

    return derived(b, b.shape, undo)


def _text(file: GgufFile, name: str) -> str:
    value = file.values.get(name, "")
    return printable(value) if isinstance(value, str) else ""
