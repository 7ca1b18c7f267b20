"""Sampling noise as a pure function of (seed, position): a counter-based generator without state.

Philox4x32-10 of Salmon, Moraes, Dror and Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

_NUM_ROUNDS = 10
_MULTIPLIER_0, _MULTIPLIER_1 = 0xD2511F53, 0xCD9E8D57
_WEYL_0, _WEYL_1 = 0x9E3779B9, 0xBB67AE85
_MASK_32 = 0xFFFFFFFF
_MAX_SCALAR_ROWS = 8

_Word: TypeAlias = Any
"""An integer, or `[n]` uint64: numpy's types do not know that both go through the same operators."""


def philox4x32(
    counter: tuple[_Word, _Word, _Word, _Word], key: tuple[_Word, _Word]
) -> tuple[_Word, _Word, _Word, _Word]:
    """Philox4x32-10 of one counter (integers) or of many at once (`[n]` uint64 arrays).

    Args:
        counter: four 32-bit words, least significant first.
        key: two 32-bit words, least significant first.

    Returns:
        Four random 32-bit words.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_NUM_ROUNDS):
        product_0, product_1 = c0 * _MULTIPLIER_0, c2 * _MULTIPLIER_1
        c0, c1, c2, c3 = (
            (product_1 >> 32) ^ c1 ^ k0,
            product_1 & _MASK_32,
            (product_0 >> 32) ^ c3 ^ k1,
            product_0 & _MASK_32,
        )
        k0, k1 = (k0 + _WEYL_0) & _MASK_32, (k1 + _WEYL_1) & _MASK_32
    return c0, c1, c2, c3


def uniforms(
    seed: npt.NDArray[np.uint64], position: npt.NDArray[np.int64], *, is_second: bool = False
) -> npt.NDArray[np.float64]:
    """One number in [0, 1) per row with 53 random bits.

    Args:
        seed: `[n]` the rows' 64-bit seeds.
        position: `[n]` the rows' token positions, at least 0.
        is_second: return another number than otherwise, independent of it.
    """
    if len(seed) <= _MAX_SCALAR_ROWS:  # numpy's calls cost more than the arithmetic of a few rows
        rows = zip(seed.tolist(), position.tolist(), strict=True)
        bits = np.array([_random_bits(one_seed, index, 0, is_second) for one_seed, index in rows], dtype=np.uint64)
    else:
        bits = _random_bits(seed, position.astype(np.uint64), np.zeros_like(seed), is_second)
    numbers: npt.NDArray[np.float64] = bits.astype(np.float64) * 2.0**-53
    return numbers


def _random_bits(seed: _Word, index: _Word, zero: _Word, is_second: bool) -> _Word:
    """53 random bits."""
    words = philox4x32((index & _MASK_32, index >> 32, zero, zero), (seed & _MASK_32, seed >> 32))
    word_0, word_1 = words[2:] if is_second else words[:2]
    return ((word_0 >> 5) << 26) | (word_1 >> 6)
