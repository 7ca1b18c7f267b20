"""`RopeSpec`: the rotary position embedding that a `config.json` asks for, without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from vllm_mxext.config.checkpoint_fields import number, optional_number, positive_int
from vllm_mxext.errors import ConfigError

RopeType = Literal["default", "linear", "dynamic", "llama3", "yarn"]


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """Rotary position embedding.

    `dynamic` frequencies grow with the running length, which keys already in a paged cache cannot follow; up to
    `ModelSpec.max_position_embeddings` they equal `default`, and that is how far and how they are served.

    Attributes:
        theta: base of the frequencies.
        rope_type: scaling variant, as in transformers' `rope_parameters` / `rope_scaling`.
        factor: context extension factor.
        original_max_position_embeddings: context length the model was trained with before scaling.
        low_freq_factor: llama3 only.
        high_freq_factor: llama3 only.
        beta_fast: yarn only.
        beta_slow: yarn only.
        attention_factor: yarn only; None = derived from `factor`.
        mscale: yarn only.
        mscale_all_dim: yarn only.
        truncate: yarn only; round the correction range to integers.
    """

    theta: float = 10_000.0
    rope_type: RopeType = "default"
    factor: float = 1.0
    original_max_position_embeddings: int | None = None
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True


def parse_rope_spec(config: Mapping[str, Any], trained_len: int) -> RopeSpec:
    """Reads `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` of a `config.json`.

    Args:
        config: contents of `config.json`.
        trained_len: its `max_position_embeddings`.

    Raises:
        ConfigError: a parameter is missing or wrong, or the variant is not supported.
    """
    raw = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if not isinstance(raw, dict) or any(isinstance(value, dict) for value in raw.values()):
        raise ConfigError("Rope parameters per layer type are not supported; all layers must share one set.")
    values = dict(raw)
    values.setdefault("rope_theta", config.get("rope_theta", 10_000.0))
    partial = values.get("partial_rotary_factor", config.get("partial_rotary_factor"))
    if partial not in (None, 1, 1.0):
        raise ConfigError(
            f"partial_rotary_factor {partial} is not supported; rotary embeddings must cover whole heads."
        )
    rope_type = values.get("rope_type") or values.get("type") or "default"
    theta = number(values, "rope_theta", 10_000.0)
    if rope_type == "default":
        return RopeSpec(theta=theta)
    if rope_type == "linear":
        return RopeSpec(theta=theta, rope_type="linear", factor=_factor(values))
    if rope_type == "dynamic":
        return RopeSpec(theta=theta, rope_type="dynamic", factor=_factor(values))
    inner = positive_int(values, "original_max_position_embeddings", trained_len)
    original = positive_int(config, "original_max_position_embeddings", inner)
    scaled: dict[str, Any] = {"theta": theta, "original_max_position_embeddings": original}
    if rope_type == "llama3":
        return RopeSpec(
            **scaled,
            rope_type="llama3",
            factor=_factor(values),
            low_freq_factor=number(values, "low_freq_factor"),
            high_freq_factor=number(values, "high_freq_factor"),
        )
    if rope_type == "yarn":
        return RopeSpec(
            **scaled,
            rope_type="yarn",
            factor=_factor(values, trained_len / original),
            beta_fast=number(values, "beta_fast", 32.0) or 32.0,
            beta_slow=number(values, "beta_slow", 1.0) or 1.0,
            attention_factor=optional_number(values, "attention_factor"),
            mscale=optional_number(values, "mscale"),
            mscale_all_dim=optional_number(values, "mscale_all_dim"),
            truncate=bool(values.get("truncate", True)),
        )
    raise ConfigError(f"Rope type {rope_type!r} is not supported; use default, linear, dynamic, llama3 or yarn.")


def _factor(values: Mapping[str, Any], default: float | None = None) -> float:
    factor = number(values, "factor", default)
    if factor <= 0:
        raise ConfigError(f"config.json: the rope scaling factor must be greater than 0, got {factor}.")
    return factor
