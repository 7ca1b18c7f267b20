"""Reads and writes TensorRT-LLM's layout: `model.lora_weights.npy` and `model.lora_config.npy`.

The config is `[1, n, 3]` int32: module id, layer, rank (and whether it is DoRA, in later versions). The weights are
`[1, n, m]`: in each row A `[r, in]`, then B `[out, r]` with the scaling in it, then zeros. Bfloat16 is stored as the
type `V2`, two bytes without a meaning.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt

from vllm_mxext.config.model_spec import ModelSpec
from vllm_mxext.lora.files import ITEM_BYTES, AdapterFiles, ModuleAdapter, ModuleKey, StoredDType
from vllm_mxext.lora.fitting import misfit, module_shape
from vllm_mxext.lora.opening import MAX_HEADER_BYTES, AdapterFolder, open_part, parsing, refusal, stored_tensor

WEIGHTS_NAME = "model.lora_weights.npy"
CONFIG_NAME = "model.lora_config.npy"

MODULE_IDS = {"q_proj": 1, "k_proj": 2, "v_proj": 3, "o_proj": 4, "gate_proj": 5, "down_proj": 6, "up_proj": 7}
"""Its numbers of linear layers (`LoraManager.LORA_MODULE_IDS`): it calls up `mlp_gate` and gate `mlp_h_to_4h`."""

# A fused layer has the rows of its parts one after the other; of gate and up, up comes first.
_PARTS = {number: (name,) for name, number in MODULE_IDS.items()} | {
    0: ("q_proj", "k_proj", "v_proj"),
    18: ("up_proj", "gate_proj"),
}
_DTYPES: dict[str, StoredDType] = {"<f4": "float32", "<f2": "float16", "|V2": "bfloat16"}


class _Array(NamedTuple):
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    offset: int


class _Row(NamedTuple):
    """One adapted layer: where its weights begin, of which type they are, and how many there are at most."""

    path: Path
    offset: int
    dtype: StoredDType
    length: int


def read_trtllm(folder: AdapterFolder, path: Path, spec: ModelSpec) -> AdapterFiles:
    """Reads what a folder in this layout holds.

    Raises:
        AdapterError: the files are broken, contradict each other or hold what is not served.
    """
    weights_path = folder.open(WEIGHTS_NAME)
    rows = _read_config(folder.open(CONFIG_NAME))
    weights = _read_header(weights_path)
    dtype = _DTYPES.get(weights.dtype.str)
    if dtype is None:
        raise refusal(f"{weights_path} is of the type {weights.dtype}; only float32, float16 and bfloat16 are read.")
    if len(weights.shape) not in (2, 3) or weights.shape[:-1] not in ((len(rows),), (1, len(rows))):
        raise refusal(
            f"{weights_path} has the shape {list(weights.shape)}, but {CONFIG_NAME} describes {len(rows)} rows."
        )
    length = weights.shape[-1]
    modules: dict[ModuleKey, ModuleAdapter] = {}
    for index, (number, layer, rank, *is_dora) in enumerate(rows.tolist()):
        if any(is_dora):
            raise refusal(
                f"{path} is a DoRA whose magnitudes have been divided by norms of the base model; use the original."
            )
        if number not in _PARTS or layer < 0 or rank < 1:
            raise misfit(path, f"row {index} is of module {number}, layer {layer} and rank {rank}")
        row = _Row(weights_path, weights.offset + index * length * ITEM_BYTES[dtype], dtype, length)
        for name, module in _modules(path, row, _PARTS[number], rank, spec):
            if modules.setdefault(ModuleKey(layer, name), module) is not module:
                raise refusal(f"{path} adapts {name} of layer {layer} twice; convert the adapter again.")
    return AdapterFiles(path=path, format="trtllm", fingerprint=folder.fingerprint(), modules=modules)


def _modules(
    path: Path, row: _Row, names: tuple[str, ...], rank: int, spec: ModelSpec
) -> Iterator[tuple[str, ModuleAdapter]]:
    num_inputs = module_shape(spec, names[0])[1]
    num_outputs = sum(module_shape(spec, name)[0] for name in names)
    if rank * (num_inputs + num_outputs) > row.length:
        raise misfit(path, f"a row of {row.length} numbers is too short for {', '.join(names)} of rank {rank}")
    a = stored_tensor(row.path, row.offset, (rank, num_inputs), row.dtype)
    offset = row.offset + a.num_bytes
    for name in names:
        b = stored_tensor(row.path, offset, (module_shape(spec, name)[0], rank), row.dtype)
        offset += b.num_bytes
        yield name, ModuleAdapter(rank=rank, scaling=1.0, a=a, b=b)


def _read_config(path: Path) -> npt.NDArray[Any]:
    header = _read_header(path)
    num_bytes = math.prod(header.shape) * header.dtype.itemsize
    is_table = len(header.shape) in (2, 3) and header.shape[-1] in (3, 4) and set(header.shape[:-2]) <= {1}
    if header.dtype.str not in ("<i4", "<i8") or not is_table or num_bytes > MAX_HEADER_BYTES:
        raise refusal(f"{path} is not a table of module, layer and rank; convert the adapter again.")
    with parsing(path):
        values = np.frombuffer(open_part(path, header.offset, num_bytes).read(), dtype=header.dtype)
        return values.reshape(header.shape[-2:])


def _read_header(path: Path) -> _Array:
    with parsing(path):
        file = open_part(path)
        stream = cast("IO[bytes]", file)
        version = np.lib.format.read_magic(stream)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"version {version} of npy")
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, is_fortran, dtype = read(stream)
        if is_fortran and len(shape) > 1:
            raise ValueError("it is stored by columns")
        return _Array(shape, dtype, file.tell())
