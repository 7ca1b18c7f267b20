"""Which tokens of one row may be sampled: top-k, min-p and top-p without sorting the vocabulary.

Equally likely tokens are ranked by id, lowest first, so every filter keeps an exact, reproducible set.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_GROUP_SIZE = 64
_MANTISSA_BITS_DROPPED = np.uint32(17)

_F32 = npt.NDArray[np.float32]
_Ids = npt.NDArray[np.int64]


def top_k_ids(values: _F32, k: int) -> _Ids:
    """The ids of the `k` largest of `values` (`[vocab_size]`, no NaN), ascending."""
    size = len(values)
    if k >= size:
        return np.arange(size)
    candidates = np.flatnonzero(values >= _top_k_bound(values, k))
    if len(candidates) == k:
        return candidates
    order = np.argsort(-values[candidates], kind="stable")[:k]
    return np.sort(candidates[order])


def _top_k_bound(values: _F32, k: int) -> np.float32:
    """A bound that at least `k` values reach.

    The k-th largest maximum of disjoint groups is such a bound and usually a tight one; it costs one pass.
    """
    num_groups = len(values) // _GROUP_SIZE
    if 2 * k <= num_groups:
        maxima = values[: num_groups * _GROUP_SIZE].reshape(_GROUP_SIZE, num_groups).max(axis=0)
        return np.float32(np.partition(maxima, num_groups - k)[num_groups - k])
    return np.float32(np.partition(values, len(values) - k)[len(values) - k])


def top_p_indices(weights: _F32, top_p: float) -> _Ids:
    """Indices of the most likely tokens whose probability together first reaches `top_p`, ascending; at least one.

    Weights are binned by their leading floating-point bits, which orders the bins; only the bin in which `top_p` is
    reached is sorted. That costs the same for peaked and for flat distributions.

    Args:
        weights: `[n]` unnormalised probabilities, not negative, some positive.
        top_p: in (0, 1).
    """
    bins = weights.view(np.uint32) >> _MANTISSA_BITS_DROPPED
    mass = np.bincount(bins, weights=weights)
    mass_from = np.cumsum(mass[::-1])[::-1]
    target = float(top_p) * mass_from[0]
    last_bin = int(np.flatnonzero(mass_from >= target)[-1])
    missing = target - (mass_from[last_bin + 1] if last_bin + 1 < len(mass) else 0.0)
    inside = np.flatnonzero(bins == last_bin)
    inside_weights = weights[inside]
    order = np.argsort(-inside_weights, kind="stable")
    reached = np.cumsum(inside_weights[order], dtype=np.float64)
    num_inside = int(np.searchsorted(reached, missing)) + 1
    is_kept = bins > last_bin
    is_kept[inside[order[:num_inside]]] = True
    return np.flatnonzero(is_kept)


def filtered_weights(
    row: _F32, *, temperature: np.float32, top_k: int, top_p: float, min_p: float
) -> tuple[_Ids, _F32]:
    """The tokens of one row that may be sampled and their unnormalised probabilities.

    Args:
        row: `[vocab_size]` finite or -inf logits, some finite.
        temperature: greater than 0.
        top_k: 0 = off.
        top_p: 1 = off; applies to what the other filters left, renormalised.
        min_p: 0 = off.

    Returns:
        Ids, ascending, and their weights (float32), both `[num_kept]`.
    """
    ids = top_k_ids(row, top_k) if top_k > 0 else None
    weights = unnormalised(row if ids is None else row[ids], row.max(), temperature)
    if min_p > 0:
        kept = np.flatnonzero(weights >= np.float32(min_p))
        ids, weights = kept if ids is None else ids[kept], weights[kept]
    if top_p < 1:
        kept = top_p_indices(weights, top_p)
        ids, weights = kept if ids is None else ids[kept], weights[kept]
    return np.arange(len(row)) if ids is None else ids, weights


def unnormalised(
    logits: _F32, maximum: np.float32 | _F32, temperature: np.float32 | _F32, out: _F32 | None = None
) -> _F32:
    """`exp((logits - maximum) / temperature)` in float32: 1 for the most likely token."""
    weights: _F32 = np.subtract(logits, maximum, out=out)
    weights /= temperature
    np.exp(weights, out=weights)
    return weights
