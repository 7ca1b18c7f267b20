"""Writes an adapter in the layout of PEFT or of TensorRT-LLM, its values as they are stored."""

from __future__ import annotations

import json
import math
import shutil
import struct
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from vllm_mxext.errors import AdapterError
from vllm_mxext.lora.files import EMBEDDING, AdapterFiles, ModuleAdapter, ModuleKey, StoredDType, StoredTensor
from vllm_mxext.lora.fitting import describe
from vllm_mxext.lora.formats import peft, trtllm
from vllm_mxext.lora.formats.safetensors import DTYPE_NAMES
from vllm_mxext.lora.opening import refusal

WritableFormat = Literal["huggingface", "trtllm"]

_SAFETENSORS_DTYPES = {dtype: name for name, dtype in DTYPE_NAMES.items()}
_NPY_TYPES: dict[StoredDType, str] = {"float32": "<f4", "float16": "<f2", "bfloat16": "|V2"}


def write_adapter(adapter: AdapterFiles, folder: Path, form: WritableFormat) -> None:
    """Writes an adapter into a new folder.

    Raises:
        AdapterError: the layout has no place for a part of it, or the folder exists or cannot be written.
    """
    if form == "trtllm":
        _refuse_what_trtllm_lacks(adapter)
    try:
        folder.mkdir(parents=True)
    except FileExistsError as error:
        raise refusal(f"{folder} exists already; name a folder that does not.") from error
    except OSError as error:
        raise refusal(f"{folder} cannot be made ({error}); name another folder.") from error
    try:
        (_write_trtllm if form == "trtllm" else _write_peft)(adapter, folder)
    except (OSError, AdapterError) as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise refusal(f"{folder} could not be written: {error}") from error


def _write_peft(adapter: AdapterFiles, folder: Path) -> None:
    tensors: dict[str, StoredTensor] = {}
    for key, module in adapter.modules.items():
        name = f"base_model.model.{_module_name(key)}"
        names = (
            ("lora_embedding_A", "lora_embedding_B") if key.name == EMBEDDING else ("lora_A.weight", "lora_B.weight")
        )
        parts = {
            names[0]: module.a,
            names[1]: module.b,
            "lora_B.bias": module.b_bias,
            "lora_magnitude_vector": module.magnitude,
            "base_layer.bias": module.base_bias,
        }
        tensors |= {f"{name}.{part}": tensor for part, tensor in parts.items() if tensor is not None}
    for key, bias in adapter.base_biases.items():
        tensors[f"base_model.model.{_module_name(key)}.bias"] = bias
    for name, weight in adapter.saved.items():
        tensors[f"base_model.model.{_module_name(ModuleKey(None, name))}.weight"] = weight
    config = json.dumps(_peft_config(adapter), indent=2)
    _write_safetensors(folder / peft.SAFETENSORS_NAME, tensors)
    (folder / peft.CONFIG_NAME).write_text(config + "\n", encoding="utf-8")


def _peft_config(adapter: AdapterFiles) -> dict[str, Any]:
    modules = adapter.modules
    alphas = {key: module.scaling * module.rank for key, module in modules.items()}
    rank, alpha = _most_common(module.rank for module in modules.values()), _most_common(alphas.values())
    has_magnitudes = {module.magnitude is not None for module in modules.values()}
    if len(has_magnitudes) > 1:
        raise refusal(f"{adapter.path} is a DoRA in some modules only, which PEFT cannot store.")
    has_base_bias = any(module.base_bias is not None for module in modules.values())
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": adapter.base_model_name,
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {_module_name(key): one.rank for key, one in modules.items() if one.rank != rank},
        "alpha_pattern": {_module_name(key): one for key, one in alphas.items() if one != alpha},
        "target_modules": sorted({key.name for key in modules}),
        "modules_to_save": sorted(adapter.saved) or None,
        "bias": "all" if adapter.base_biases else "lora_only" if has_base_bias else "none",
        "lora_bias": any(module.b_bias is not None for module in modules.values()),
        "use_dora": True in has_magnitudes,
        "use_rslora": False,
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "inference_mode": True,
    }


def _most_common(values: Any) -> Any:
    ((value, _count),) = Counter(values).most_common(1) or [(1, 0)]
    return value


def _module_name(key: ModuleKey) -> str:
    """A module's name in the base model of transformers."""
    if key.layer is None:
        return f"model.{key.name}" if key.name == EMBEDDING else key.name
    block = "mlp" if key.name in ("gate_proj", "up_proj", "down_proj") else "self_attn"
    return f"model.layers.{key.layer}.{block}.{key.name}"


def _write_safetensors(path: Path, tensors: Mapping[str, StoredTensor]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.num_bytes
        dtype = _SAFETENSORS_DTYPES[tensor.dtype]
        header[name] = {"dtype": dtype, "shape": tensor.shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors.values():
            file.write(tensor.read().tobytes())


def _refuse_what_trtllm_lacks(adapter: AdapterFiles) -> None:
    lacking = [f"a replaced {name}" for name in adapter.saved]
    lacking += [f"a bias of {describe(key)}" for key in adapter.base_biases]
    for key, module in adapter.modules.items():
        if key.layer is None:
            lacking.append(f"an adapted {key.name}")
        if module.magnitude is not None:
            lacking.append("DoRA, whose magnitudes TensorRT-LLM wants divided by norms of the base model")
        if module.b_bias is not None or module.base_bias is not None:
            lacking.append(f"a bias of {describe(key)}")
    if lacking:
        raise refusal(f"{adapter.path} has {lacking[0]}, for which the layout of TensorRT-LLM has no place.")
    if not adapter.modules:
        raise refusal(f"{adapter.path} adapts nothing; there is nothing to write.")


def _write_trtllm(adapter: AdapterFiles, folder: Path) -> None:
    modules = adapter.modules
    dtypes = {tensor.dtype for module in modules.values() for tensor in (module.a, module.b)}
    dtype: StoredDType = dtypes.pop() if len(dtypes) == 1 else "float32"
    length = max(math.prod(module.a.shape) + math.prod(module.b.shape) for module in modules.values())
    rows = [(trtllm.MODULE_IDS[key.name], key.layer, module.rank) for key, module in modules.items()]
    np.save(folder / trtllm.CONFIG_NAME, np.array([rows], dtype=np.int32))
    with (folder / trtllm.WEIGHTS_NAME).open("wb") as file:
        header = {"descr": _NPY_TYPES[dtype], "fortran_order": False, "shape": (1, len(rows), length)}
        np.lib.format.write_array_header_1_0(file, header)
        for module in modules.values():
            content = _flat(module.a, dtype).tobytes() + _scaled(adapter, module, dtype).tobytes()
            row_bytes = length * np.dtype(_NPY_TYPES[dtype]).itemsize
            file.write(content.ljust(row_bytes, b"\0"))


def _flat(tensor: StoredTensor, dtype: StoredDType) -> npt.NDArray[Any]:
    return tensor.read() if tensor.dtype == dtype else tensor.read_float32()


def _scaled(adapter: AdapterFiles, module: ModuleAdapter, dtype: StoredDType) -> npt.NDArray[Any]:
    """B with the scaling in it, which has no other place in the layout."""
    if module.scaling == 1:
        return _flat(module.b, dtype)
    values = module.b.read_float32() * np.float32(module.scaling)
    if dtype == "float32":
        return values
    if dtype == "bfloat16":
        bits = values.view(np.uint32)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    if np.abs(values).max(initial=0) > np.finfo(np.float16).max:
        raise refusal(f"{adapter.path} has values that float16 cannot hold with their scaling; save it as bfloat16.")
    return values.astype(np.float16)
