"""llama.cpp's further samplers on one row: dynamic temperature, top-n-sigma, typical, XTC, and Mirostat 1 and 2.

They follow `src/llama-sampling.cpp` of llama.cpp, in double precision. Two things differ: temperature comes before the
filters, as everywhere in this sampler, so the entropy of the dynamic temperature is that of all tokens; and it never
falls below `MIN_TEMPERATURE`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vllm_mxext.native.sampling.filters import top_k_ids, top_p_indices
from vllm_mxext.sampling_params import MIN_TEMPERATURE, SamplingParams

_F32 = npt.NDArray[np.float32]
_F64 = npt.NDArray[np.float64]
_Ids = npt.NDArray[np.int64]

_MIROSTAT_NUM_RATIOS = 99
"""Ratios of neighbouring probabilities from which Mirostat 1 estimates the exponent; llama.cpp's m is one more."""


@dataclass(frozen=True, slots=True)
class ExtraFilters:
    """Parameters of one row, named as in `SamplingParams`."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    top_n_sigma: float
    typical_p: float
    xtc_probability: float
    xtc_threshold: float
    dynatemp_range: float
    dynatemp_exponent: float
    mirostat: int
    mirostat_tau: float
    mirostat_eta: float

    def sample(self, row: _F32, uniform: float, other_uniform: float, state: float | None) -> tuple[int, float | None]:
        """Chooses a token.

        Args:
            row: `[vocab_size]` finite or -inf logits, some finite.
            uniform: in [0, 1); decides the token.
            other_uniform: in [0, 1); decides whether XTC applies.
            state: what Mirostat has learnt so far; None at the beginning of the output.

        Returns:
            The token, and what Mirostat knows with it (None without Mirostat).
        """
        ids = np.flatnonzero(row > -np.inf)
        logits = row[ids].astype(np.float64)
        temperature = self.temperature
        if self.dynatemp_range > 0:
            temperature = dynamic_temperature(logits, temperature, self.dynatemp_range, self.dynatemp_exponent)
        logits = (logits - logits.max()) / temperature
        if self.mirostat:
            target = 2 * self.mirostat_tau if state is None else state
            kept = mirostat_1(logits, target, len(row)) if self.mirostat == 1 else mirostat_2(logits, target)
        else:
            kept = self._filter(logits, other_uniform)
        weights = np.exp(logits[kept])
        cumulative = np.cumsum(weights)
        total = cumulative[-1]
        place = int(np.searchsorted(cumulative, min(uniform * total, np.nextafter(total, 0)), side="right"))
        if self.mirostat:
            surprise = -math.log2(weights[place] / total)
            state = target - self.mirostat_eta * (surprise - self.mirostat_tau)
        return int(ids[kept[place]]), state

    def _filter(self, logits: _F64, other_uniform: float) -> _Ids:
        kept = np.arange(len(logits))
        if self.top_n_sigma > 0:
            kept = kept[top_n_sigma(logits, self.top_n_sigma)]
        if self.typical_p < 1:
            kept = kept[typical(logits[kept], self.typical_p)]
        if self.min_p > 0:
            kept = kept[logits[kept] >= logits[kept].max() + math.log(self.min_p)]
        if self.top_k > 0:
            kept = kept[top_k_ids(logits[kept].astype(np.float32), self.top_k)]
        if self.top_p < 1:
            kept = kept[top_p_indices(np.exp(logits[kept] - logits[kept].max()).astype(np.float32), self.top_p)]
        if other_uniform < self.xtc_probability and self.xtc_threshold <= 0.5:
            kept = kept[xtc(logits[kept], self.xtc_threshold)]
        return kept


def extra_filters(params: SamplingParams) -> ExtraFilters | None:
    """Returns the parameters of a request that uses one of these samplers; None for others."""
    is_used = (
        params.top_n_sigma > 0
        or params.typical_p < 1
        or (params.xtc_probability > 0 and params.xtc_threshold <= 0.5)
        or params.dynatemp_range > 0
        or params.mirostat
    )
    if params.is_greedy or not is_used:
        return None
    return ExtraFilters(**{field: getattr(params, field) for field in ExtraFilters.__dataclass_fields__})


def dynamic_temperature(logits: _F64, temperature: float, spread: float, exponent: float) -> float:
    """The temperature between `temperature - spread` and `temperature + spread` that the entropy of a row calls for."""
    if len(logits) <= 1:
        return temperature
    coldest, hottest = max(0.0, temperature - spread), temperature + spread
    share = entropy(log_probabilities(logits)) / math.log(len(logits))
    return float(max(coldest + (hottest - coldest) * max(share, 0.0) ** exponent, MIN_TEMPERATURE))


def top_n_sigma(logits: _F64, n: float) -> _Ids:
    """Indices of the logits within `n` standard deviations of the largest."""
    return np.flatnonzero(logits >= logits.max() - n * logits.std())


def typical(logits: _F64, mass: float) -> _Ids:
    """Indices, ascending, of the tokens whose information is closest to the entropy, until they exceed `mass`."""
    log_p = log_probabilities(logits)
    order = np.argsort(np.abs(-log_p - entropy(log_p)), kind="stable")
    reached = np.cumsum(np.exp(log_p[order]))
    return np.sort(order[: int(np.searchsorted(reached, mass, side="right")) + 1])


def xtc(logits: _F64, threshold: float) -> _Ids:
    """Indices, ascending, without those that reach `threshold`, of which the least likely one stays."""
    log_p = log_probabilities(logits)
    order = np.argsort(-log_p, kind="stable")
    num_above = int(np.count_nonzero(np.exp(log_p) >= threshold))
    return np.sort(order[max(num_above - 1, 0) :])


def mirostat_1(logits: _F64, target: float, vocab_size: int) -> _Ids:
    """Indices, ascending, of the k most likely tokens, k being estimated from the target surprise.

    Mirostat of Basu et al., 2020: the exponent of Zipf's law is fitted to the likeliest tokens.
    """
    order = np.argsort(-logits, kind="stable")
    if len(order) == 1:
        return order
    ranked = logits[order[: _MIROSTAT_NUM_RATIOS + 1]]
    steps = np.arange(1, len(ranked))
    log_ratios = np.log((steps + 1) / steps)
    exponent = float((log_ratios * (ranked[:-1] - ranked[1:])).sum() / np.square(log_ratios).sum())
    return np.sort(order[: _mirostat_1_k(exponent, target, vocab_size, len(order))])


def _mirostat_1_k(exponent: float, target: float, vocab_size: int, most: int) -> int:
    epsilon = exponent - 1
    log_size = math.log(vocab_size)
    share = 1 / log_size if abs(epsilon) < 1e-9 else epsilon / -math.expm1(-epsilon * log_size)
    log_base = math.log(share) + target * math.log(2)
    if exponent * math.log(most) <= log_base:  # also for an exponent of 0, by which nothing can be divided
        return most
    return max(int(math.exp(log_base / exponent)), 1) if exponent > 0 else 1


def mirostat_2(logits: _F64, target: float) -> _Ids:
    """Indices of the tokens whose surprise in bits is at most `target`; at least the most likely one."""
    log_p = log_probabilities(logits)
    kept = np.flatnonzero(log_p >= -target * math.log(2))
    return kept if len(kept) else np.array([int(log_p.argmax())])


def log_probabilities(logits: _F64) -> _F64:
    """Natural logarithms of the probabilities."""
    shifted: _F64 = logits - logits.max()
    return shifted - math.log(np.exp(shifted).sum())


def entropy(log_p: _F64) -> float:
    """Entropy in nats."""
    return float(-(np.exp(log_p) * log_p).sum())
