"""Shapes that a model's modules have, and whether an adapter fits them and the limit of ranks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from vllm_mxext.config.model_spec import ModelSpec
from vllm_mxext.errors import AdapterError
from vllm_mxext.lora.files import EMBEDDING, HEAD, LAYER_MODULES, AdapterFiles, ModuleAdapter, ModuleKey, StoredTensor
from vllm_mxext.lora.opening import refusal

_QKV = ("q_proj", "k_proj", "v_proj")
_MLP = ("gate_proj", "up_proj", "down_proj")


def module_shape(spec: ModelSpec, name: str) -> tuple[int, int]:
    """Outputs and inputs of a module; of the embedding, hidden size and vocabulary."""
    hidden, queries = spec.hidden_size, spec.num_heads * spec.head_dim
    keys = spec.num_kv_heads * spec.head_dim
    return {
        "q_proj": (queries, hidden),
        "k_proj": (keys, hidden),
        "v_proj": (keys, hidden),
        "o_proj": (hidden, queries),
        "gate_proj": (spec.intermediate_size, hidden),
        "up_proj": (spec.intermediate_size, hidden),
        "down_proj": (hidden, spec.intermediate_size),
        EMBEDDING: (hidden, spec.vocab_size),
        HEAD: (spec.vocab_size, hidden),
    }[name]


def check_rows(path: Path, name: str, tensor: StoredTensor, num_rows: int) -> None:
    """Refuses a matrix of several modules that has other rows than they have together.

    Raises:
        AdapterError: so it is.
    """
    if len(tensor.shape) != 2 or tensor.shape[0] != num_rows:
        raise misfit(path, f"its {name} is {_sizes(tensor.shape)} and should have {num_rows} rows")


def describe(key: ModuleKey) -> str:
    """A module by words, for messages."""
    return key.name if key.layer is None else f"{key.name} of layer {key.layer}"


def check_fit(adapter: AdapterFiles, spec: ModelSpec, max_rank: int) -> None:
    """Refuses an adapter that does not fit.

    Raises:
        AdapterError: it changes nothing, has a rank over the limit or a part that this model has no place for.
    """
    if not (adapter.modules or adapter.saved or adapter.base_biases):
        raise refusal(f"The adapter {adapter.path} holds no weights; save it again.")
    if adapter.rank > max_rank:
        raise refusal(
            f"The adapter {adapter.path} has rank {adapter.rank}, and at most {max_rank} is served; start the server "
            f"with --max-lora-rank {adapter.rank}."
        )
    for text in _misfits(adapter, spec):
        raise misfit(adapter.path, text, adapter.base_model_name)


def misfit(path: Path, text: str, base_model_name: str | None = None) -> AdapterError:
    """The error that says that an adapter is for another model, and for which if it says so."""
    made_for = f"it says that it was made for {base_model_name}" if base_model_name else "serve its own base model"
    return refusal(f"The adapter {path} does not fit this model: {text}; {made_for}.")


def _misfits(adapter: AdapterFiles, spec: ModelSpec) -> Iterator[str]:
    for key, module in adapter.modules.items():
        yield from _place_misfits(key, spec)
        yield from _module_misfits(key, module, spec)
    for key, bias in adapter.base_biases.items():
        yield from _place_misfits(key, spec)
        yield from _base_bias_misfits(key, bias, spec)
    for name, weight in adapter.saved.items():
        expected = (spec.vocab_size, spec.hidden_size)
        if weight.shape != expected:
            yield f"its {name} is {_sizes(weight.shape)}, the model's {_sizes(expected)}"


def _place_misfits(key: ModuleKey, spec: ModelSpec) -> Iterator[str]:
    if key.layer is None:
        if key.name not in (EMBEDDING, HEAD):
            yield f"it changes {key.name}, which belongs to a layer"
    elif key.name not in LAYER_MODULES:
        yield f"it changes {key.name}, which the model's layers do not have"
    elif key.layer >= spec.num_layers:
        yield f"it changes layer {key.layer}, and the last layer is {spec.num_layers - 1}"


def _module_misfits(key: ModuleKey, module: ModuleAdapter, spec: ModelSpec) -> Iterator[str]:
    num_outputs, num_inputs = module_shape(spec, key.name)
    expected = {
        "A": (module.a, (module.rank, num_inputs)),
        "B": (module.b, (num_outputs, module.rank)),
        "bias of B": (module.b_bias, (num_outputs,)),
        "magnitude": (module.magnitude, (num_outputs,)),
    }
    for part, (tensor, shape) in expected.items():
        if tensor is not None and tensor.shape != shape:
            yield f"{part} of {describe(key)} is {_sizes(tensor.shape)} instead of {_sizes(shape)}"
    if module.base_bias is not None:
        yield from _base_bias_misfits(key, module.base_bias, spec)


def _base_bias_misfits(key: ModuleKey, bias: StoredTensor, spec: ModelSpec) -> Iterator[str]:
    has_bias = spec.has_o_bias if key.name == "o_proj" else key.name in _MLP and spec.has_mlp_bias
    if not (has_bias or (key.name in _QKV and spec.has_qkv_bias)):
        yield f"it replaces the bias of {describe(key)}, which has none"
    elif bias.shape != module_shape(spec, key.name)[:1]:
        yield f"the bias of {describe(key)} has {_sizes(bias.shape)} elements"


def _sizes(shape: tuple[int, ...]) -> str:
    return " x ".join(str(size) for size in shape) or "a single number"
