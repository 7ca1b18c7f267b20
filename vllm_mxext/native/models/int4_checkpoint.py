"""Reading int4 weights from checkpoints: tensors, packing and zeros of GPTQ, AWQ and compressed-tensors.

In all three, eight weights share an int32 word, and a weight is (four bits - zero) * scale:

    GPTQ                 qweight [K/8, N] words of inputs    qzeros [G, N/8] words of columns       scales [G, N]
    AWQ (gemm)           qweight [K, N/8] words of columns   qzeros [G, N/8] words of columns       scales [G, N]
    compressed-tensors   weight_packed [N, K/8] of inputs    weight_zero_point [N/8, G] of columns  weight_scale [N, G]

The format `gptq` stores zeros less one, `gptq_v2` as they are. AWQ's words of columns are interleaved. Sources:
AutoGPTQ 0.7 (`qlinear_cuda_old.py`, and exllama's kernels for the overflow of a zero of 16 to 0), AutoAWQ 0.2
(`modules/linear/gemm.py`), compressed-tensors (`compressors/pack_quantized`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from vllm_mxext.config.int4_spec import Int4Spec
from vllm_mxext.errors import ConfigError
from vllm_mxext.native.kernels.int4_weight import AWQ_COLUMNS, WORD_NIBBLES, Int4Weight, unpack_nibbles
from vllm_mxext.native.models.checkpoint import Shape, WeightSource

_SYMMETRIC_ZERO = 8
_WEIGHT = ".weight"


def int4_tensors(spec: Int4Spec, plain: Mapping[str, Shape], embedding: str) -> dict[str, Shape]:
    """Name and shape of every tensor, with int4 tensors in place of the weights that are int4.

    Args:
        spec: what is int4.
        plain: the tensors of the same model without quantization.
        embedding: name of the token embedding, which is never int4.
    """
    shapes: dict[str, Shape] = {}
    for name, shape in plain.items():
        module = name.removesuffix(_WEIGHT)
        if len(shape) == 2 and name != embedding and spec.covers(module):
            shapes |= {f"{module}.{part}": size for part, size in _parts(spec, *shape).items()}
        else:
            shapes[name] = shape
    return shapes


def ignored_suffixes(spec: Int4Spec) -> tuple[str, ...]:
    """Tensors that tools write and nobody needs."""
    if spec.method == "gptq":
        # Old tools write a bias of zeros for every layer; without desc_act, g_idx counts the groups.
        return (".bias",) if spec.has_input_order else (".bias", ".g_idx")
    return (".weight_shape",) if spec.method == "compressed-tensors" else ()


def read_int4(source: WeightSource, spec: Int4Spec, modules: Sequence[str], shapes: Sequence[Shape]) -> Int4Weight:
    """Reads layers stacked along their outputs.

    Args:
        source: the checkpoint.
        spec: how it stores them.
        modules: their names.
        shapes: `(out_features, in_features)` of each.

    Raises:
        ConfigError: a tensor cannot be read, or the layers group their inputs in ways that cannot be stacked.
    """
    in_features = shapes[0][1]
    layers = [_read_layer(source, spec, module, shape) for module, shape in zip(modules, shapes, strict=True)]
    words = _joined([layer.words for layer in layers], 0 if spec.method == "compressed-tensors" else 1)
    return Int4Weight(
        words=words.t() if spec.method == "compressed-tensors" else words,
        is_packed_by_inputs=spec.method != "awq",
        scales=_joined([layer.scales for layer in layers], 1).contiguous(),
        zeros=_joined([layer.zeros for layer in layers], 1).contiguous(),
        input_order=_common_order(spec, modules, layers, in_features),
        scale_depth=spec.group_size or in_features,
        group_size=spec.packed_group_size(in_features),
        in_features=in_features,
        out_features=sum(shape[0] for shape in shapes),
    )


@dataclass(frozen=True, slots=True)
class _Layer:
    """Tensors of one layer; scales and zeros are `[groups, N]`."""

    words: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor
    group_index: torch.Tensor | None


def _parts(spec: Int4Spec, out_features: int, in_features: int) -> dict[str, Shape]:
    """Shapes of a layer's tensors by the last part of their name."""
    groups = spec.num_groups(in_features)
    input_words, column_words = -(-in_features // WORD_NIBBLES), -(-out_features // WORD_NIBBLES)
    if spec.method == "compressed-tensors":
        parts: dict[str, Shape] = {"weight_packed": (out_features, input_words), "weight_scale": (out_features, groups)}
        if spec.has_zeros:
            parts["weight_zero_point"] = (column_words, groups)
    else:
        is_awq = spec.method == "awq"
        parts = {
            "qweight": (in_features, column_words) if is_awq else (input_words, out_features),
            "qzeros": (groups, column_words),
            "scales": (groups, out_features),
        }
    if spec.has_input_order:
        parts["weight_g_idx" if spec.method == "compressed-tensors" else "g_idx"] = (in_features,)
    return parts


def _read_layer(source: WeightSource, spec: Int4Spec, module: str, shape: Shape) -> _Layer:
    tensors = {}
    for part, size in _parts(spec, *shape).items():
        dtype = torch.float16 if part in ("scales", "weight_scale") else torch.int32
        tensors[part] = torch.empty(size, dtype=dtype)
        source.read(f"{module}.{part}", tensors[part])
    if spec.method == "compressed-tensors":
        scales = tensors["weight_scale"].t()
        zeros = torch.full(scales.shape, _SYMMETRIC_ZERO, dtype=torch.uint8)
        if spec.has_zeros:
            zeros = unpack_nibbles(tensors["weight_zero_point"].t(), range(WORD_NIBBLES))[:, : shape[0]]
        return _Layer(tensors["weight_packed"], scales, zeros, tensors.get("weight_g_idx"))
    places = AWQ_COLUMNS if spec.method == "awq" else range(WORD_NIBBLES)
    zeros = unpack_nibbles(tensors["qzeros"], places)[:, : shape[0]] + spec.zero_offset & 15
    return _Layer(tensors["qweight"], tensors["scales"], zeros, tensors.get("g_idx"))


def _joined(tensors: Sequence[torch.Tensor], dim: int) -> torch.Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors), dim)


def _common_order(
    spec: Int4Spec, modules: Sequence[str], layers: Sequence[_Layer], in_features: int
) -> torch.Tensor | None:
    """The order that brings the inputs of a group together."""
    index = layers[0].group_index
    if index is None:
        return None
    assert spec.group_size is not None
    if any(not torch.equal(layer.group_index, index) for layer in layers[1:] if layer.group_index is not None):
        raise ConfigError(
            f"{', '.join(modules)} group their inputs differently (g_idx), but are multiplied as one; "
            "use a checkpoint that was quantised without desc_act."
        )
    order = index.argsort(stable=True)
    if not torch.equal(index[order].long(), torch.arange(in_features) // spec.group_size):
        raise ConfigError(
            f"The groups of {modules[0]} (g_idx) are not of {spec.group_size} inputs each; "
            "download the checkpoint again, or use one that was quantised without desc_act."
        )
    return order.int()
