"""The rotary embedding table: cosines and sines per position for every scaling variant.

Frequencies follow transformers 5.23 `modeling_rope_utils.py` step by step in float32, so that angles are bit-identical.
"""

from __future__ import annotations

import math

import torch

from vllm_mxext.config.model_spec import RopeSpec


def cos_sin_table(rope: RopeSpec, head_dim: int, max_positions: int, device: torch.device) -> torch.Tensor:
    """Makes the table `[max_positions, head_dim]` float32; row p is cos, then sin, of p's `head_dim / 2` angles."""
    inv_freq, attention_factor = inverse_frequencies(rope, head_dim)
    angles = torch.arange(max_positions, dtype=torch.float32)[:, None] * inv_freq
    table = torch.cat((angles.cos(), angles.sin()), dim=1)
    return (table * attention_factor).to(device).contiguous()


def inverse_frequencies(rope: RopeSpec, head_dim: int) -> tuple[torch.Tensor, float]:
    """Inverse frequencies `[head_dim / 2]` float32 and the factor on cosines and sines.

    `dynamic` gives the frequencies it has up to the trained length, which is as far as it is served.
    """
    powers = rope.theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    if rope.rope_type == "linear":
        return 1.0 / powers / rope.factor, 1.0
    if rope.rope_type == "llama3":
        return _llama3(rope, 1.0 / powers), 1.0
    if rope.rope_type == "yarn":
        return _yarn(rope, powers, head_dim), _yarn_attention_factor(rope)
    return 1.0 / powers, 1.0


def _llama3(rope: RopeSpec, inv_freq: torch.Tensor) -> torch.Tensor:
    """Long wavelengths are divided by the factor, short ones kept, those between interpolated (Llama 3.1)."""
    original_len = _original_len(rope)
    wavelength = 2 * math.pi / inv_freq
    is_long = wavelength > original_len / rope.low_freq_factor
    is_short = wavelength < original_len / rope.high_freq_factor
    scaled = torch.where(is_long, inv_freq / rope.factor, inv_freq)
    smooth = (original_len / wavelength - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    between = (1 - smooth) * scaled / rope.factor + smooth * scaled
    return torch.where(~is_short & ~is_long, between, scaled)


def _yarn(rope: RopeSpec, powers: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Ramp between kept and interpolated frequencies (YaRN, arXiv 2309.00071, section 3.2)."""

    def correction_dim(num_rotations: float) -> float:
        turns = _original_len(rope) / (num_rotations * 2 * math.pi)
        return (head_dim * math.log(turns)) / (2 * math.log(rope.theta))

    low, high = correction_dim(rope.beta_fast), correction_dim(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001  # no division by zero
    ramp = torch.clamp((torch.arange(head_dim // 2, dtype=torch.float32) - low) / (high - low), 0, 1)
    kept = 1 - ramp
    return (1.0 / (rope.factor * powers)) * (1 - kept) + (1.0 / powers) * kept


def _yarn_attention_factor(rope: RopeSpec) -> float:
    if rope.attention_factor is not None:
        return rope.attention_factor

    def mscale(weight: float) -> float:
        return 1.0 if rope.factor <= 1 else 0.1 * weight * math.log(rope.factor) + 1.0

    if rope.mscale and rope.mscale_all_dim:
        return mscale(rope.mscale) / mscale(rope.mscale_all_dim)
    return mscale(1.0)


def _original_len(rope: RopeSpec) -> int:
    if rope.original_max_position_embeddings is None:
        raise ValueError(f"{rope.rope_type} rope needs original_max_position_embeddings")
    return rope.original_max_position_embeddings
