"""`Int4Spec`: which linear layers of a checkpoint have int4 weights, and how it stores them, without torch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from vllm_mxext.errors import ConfigError

Int4Method = Literal["gptq", "awq", "compressed-tensors"]

INT4_METHODS: tuple[Int4Method, ...] = ("gptq", "awq", "compressed-tensors")
"""Values of `quant_method` in `quantization_config` that are read."""

LAYER_STACKS = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
)
"""Linear layers of a decoder layer that are multiplied as one, by module name."""

HEAD_MODULE = "lm_head"

_PACKED_GROUP_SIZES = (128, 64, 32)
_EVERYTHING = ".*"


@dataclass(frozen=True, slots=True)
class Int4Spec:
    """How a checkpoint stores int4 weights: value = (four bits - zero) * scale.

    Attributes:
        method: `quant_method`; decides names and packing of the tensors.
        group_size: neighbouring inputs that share a scale and a zero; None = all inputs.
        has_zeros: zeros are stored; otherwise they are 8.
        zero_offset: what is added to a stored zero.
        has_input_order: inputs are grouped by a tensor instead of by neighbourhood (GPTQ's `desc_act`).
        int4_modules: regular expressions; modules whose name begins with a match have int4 weights, ...
        plain_modules: ... unless their name begins with a match of one of these.
    """

    method: Int4Method
    group_size: int | None
    has_zeros: bool = True
    zero_offset: int = 0
    has_input_order: bool = False
    int4_modules: tuple[str, ...] = (_EVERYTHING,)
    plain_modules: tuple[str, ...] = ()

    def covers(self, module: str) -> bool:
        """Whether the linear layer `module`, for example `model.layers.0.mlp.up_proj`, has int4 weights."""
        return _matches(self.int4_modules, module) and not _matches(self.plain_modules, module)

    def num_groups(self, in_features: int) -> int:
        """Scales of one column."""
        return 1 if self.group_size is None else -(-in_features // self.group_size)

    def packed_group_size(self, in_features: int) -> int:
        """Inputs of a block of csrc/int4.h; a group of the checkpoint is one or several blocks."""
        if self.num_groups(in_features) == 1:
            return _PACKED_GROUP_SIZES[0]
        assert self.group_size is not None
        return next(size for size in _PACKED_GROUP_SIZES if self.group_size % size == 0)


def module_name(layer: int, projection: str) -> str:
    """Name of a linear layer in the checkpoint."""
    return f"model.layers.{layer}.{projection}"


def parse_int4_spec(config: Mapping[str, Any], num_layers: int) -> Int4Spec | None:
    """Reads `quantization_config` of a parsed `config.json`; None if there is none.

    Raises:
        ConfigError: the weights are quantised in a way that is not supported; the text says which and what is.
    """
    values = config.get("quantization_config")
    if not values:
        return None
    method = str(values.get("quant_method", "unknown")).lower()
    parsers = {"gptq": _parse_gptq, "awq": _parse_awq, "compressed-tensors": _parse_compressed_tensors}
    if method not in parsers:
        raise ConfigError(
            f"The checkpoint is quantised ({method}); the native engine runs int4 checkpoints of "
            f"{', '.join(INT4_METHODS)}, and bfloat16, float16 and float32 ones."
        )
    spec = parsers[method](values)
    _check_patterns(spec)
    _check_stacks(spec, num_layers)
    return spec


def _parse_gptq(values: Mapping[str, Any]) -> Int4Spec:
    _require("gptq", "bits", values.get("bits"), 4)
    form = values.get("checkpoint_format") or "gptq"
    _require("gptq", "checkpoint_format", form, "gptq", "gptq_v2")
    plain = [] if values.get("lm_head") else [_exactly(HEAD_MODULE)]
    for pattern, changes in (values.get("dynamic") or {}).items():
        if not pattern.startswith("-:"):
            raise _refusal("gptq", f"dynamic rule {pattern!r} with {changes}", "rules that leave modules out (-:)")
        plain.append(pattern.removeprefix("-:"))
    group_size = _group_size("gptq", values.get("group_size"))
    return Int4Spec(
        "gptq",
        group_size,
        zero_offset=1 if form == "gptq" else 0,
        has_input_order=bool(values.get("desc_act")) and group_size is not None,
        int4_modules=_gptq_modules(values.get("modules_in_block_to_quantize")),
        plain_modules=tuple(plain),
    )


def _gptq_modules(names: Any) -> tuple[str, ...]:
    """Patterns for GPTQ's list of module names inside a layer, which may be a list of lists."""
    if not names:
        return (_EVERYTHING,)
    flat = [name for entry in names for name in (entry if isinstance(entry, list) else [entry])]
    return (*(f".*{re.escape(name)}$" for name in flat), _exactly(HEAD_MODULE))


def _parse_awq(values: Mapping[str, Any]) -> Int4Spec:
    _require("awq", "bits", values.get("bits", values.get("w_bit")), 4)
    _require("awq", "version", str(values.get("version", "gemm")).lower(), "gemm")
    _require("awq", "zero_point", values.get("zero_point", True), True)
    names = values.get("modules_to_not_convert") or []
    return Int4Spec(
        "awq",
        _group_size("awq", values.get("group_size", values.get("q_group_size"))),
        plain_modules=(_exactly(HEAD_MODULE), *(f".*{re.escape(name)}" for name in names)),
    )


def _parse_compressed_tensors(values: Mapping[str, Any]) -> Int4Spec:
    method = "compressed-tensors"
    groups = list((values.get("config_groups") or {}).values())
    _require(method, "number of config_groups", len(groups), 1)
    group = groups[0]
    weights = group.get("weights") or {}
    _require(method, "format", group.get("format") or values.get("format"), "pack-quantized")
    _require(method, "num_bits", weights.get("num_bits"), 4)
    _require(method, "type", weights.get("type", "int"), "int")
    for name in ("input_activations", "output_activations"):
        _require(method, name, group.get(name), None)
    for name in ("kv_cache_scheme", "sparsity_config", "transform_config"):
        _require(method, name, values.get(name) or None, None)
    strategy = weights.get("strategy") or ("group" if (weights.get("group_size") or -1) > 0 else "channel")
    _require(method, "strategy", strategy, "group", "channel")
    group_size = _group_size(method, weights.get("group_size")) if strategy == "group" else None
    return Int4Spec(
        "compressed-tensors",
        group_size,
        has_zeros=not weights.get("symmetric", True),
        has_input_order=weights.get("actorder") in (True, "group", "dynamic") and group_size is not None,
        int4_modules=_target_patterns(group.get("targets") or ["Linear"]),
        plain_modules=_target_patterns(values.get("ignore") or []),
    )


def _target_patterns(targets: Iterable[str]) -> tuple[str, ...]:
    """Patterns for compressed-tensors' targets: `re:` and an expression, a class of modules, or a module's name."""
    return tuple(
        target.removeprefix("re:")
        if target.startswith("re:")
        else _EVERYTHING
        if target == "Linear"
        else _exactly(target)
        for target in targets
    )


def _group_size(method: str, value: Any) -> int | None:
    if value in (-1, None):
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1 or value % _PACKED_GROUP_SIZES[-1]:
        raise _refusal(method, f"group_size {value!r}", "multiples of 32, and -1 for whole columns")
    return value


def _require(method: str, name: str, value: Any, *supported: Any) -> None:
    if value not in supported:
        raise _refusal(method, f"{name} {value!r}", " and ".join(str(entry) for entry in supported))


def _refusal(method: str, found: str, supported: str) -> ConfigError:
    return ConfigError(
        f"The checkpoint's quantization_config ({method}) has {found}; the native engine runs {supported}: "
        "use another int4 checkpoint of the model, or a bfloat16 one with --quantization int8."
    )


def _exactly(name: str) -> str:
    return f"{re.escape(name)}$"


def _matches(patterns: Iterable[str], module: str) -> bool:
    return any(re.match(pattern, module) for pattern in patterns)


def _check_patterns(spec: Int4Spec) -> None:
    try:
        for pattern in (*spec.int4_modules, *spec.plain_modules):
            re.compile(pattern)
    except re.error as error:
        raise ConfigError(
            f"config.json: {error.pattern!r} in quantization_config is no regular expression ({error}); correct it."
        ) from error


def _check_stacks(spec: Int4Spec, num_layers: int) -> None:
    """Layers that are multiplied as one must all be int4 or all be plain."""
    for layer in range(num_layers):
        for stack in LAYER_STACKS:
            modules = [module_name(layer, projection) for projection in stack]
            if len({spec.covers(module) for module in modules}) > 1:
                raise _refusal(spec.method, f"int4 for some of {', '.join(modules)} only", "all or none of them")
