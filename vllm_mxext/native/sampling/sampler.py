"""Sampling one token per row of logits: `Sampler`.

Order per row: raw log probabilities -> controls, masks, `min_tokens`, plug-ins and penalties (`penalties.py`) ->
temperature -> filters -> inverse cumulative distribution at a uniform number drawn from (seed, position).
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from vllm_mxext.native.protocol import TokenLogprobs
from vllm_mxext.native.sampling import penalties
from vllm_mxext.native.sampling.extra_filters import ExtraFilters
from vllm_mxext.native.sampling.filters import filtered_weights, unnormalised
from vllm_mxext.native.sampling.logprobs import token_logprobs
from vllm_mxext.native.sampling.metadata import FAILED_TOKEN_ID, SamplerOutput, SamplingMetadata
from vllm_mxext.native.sampling.noise import uniforms

_BLOCK_SIZE = 512
_MAX_GROUP_ELEMENTS = 1 << 17

_F32 = npt.NDArray[np.float32]
_F64 = npt.NDArray[np.float64]
_Ids = npt.NDArray[np.int64]


class RowSampling(Protocol):
    """Draws the tokens of rows of logits on the host: greedily, or with temperature, top-k, min-p and top-p."""

    def __call__(self, logits: _F32, rows: _Ids, metadata: SamplingMetadata, uniform: _F64, token_ids: _Ids) -> None:
        """Writes the tokens of `rows` into `token_ids: [n]`; `FAILED_TOKEN_ID` where logits are not usable."""
        ...


class Sampler:
    """Samples one token per row.

    A row's token and log probabilities are bit for bit the same whatever the other rows are: everything is computed
    with reductions over single rows. The most likely tokens of rows on an accelerator are found there when no row needs
    anything else.

    Args:
        row_sampling: does the common work; None does it with numpy, on one core.
    """

    def __init__(self, row_sampling: RowSampling | None = None) -> None:
        self._row_sampling = row_sampling
        self._scratch = np.zeros((0, 0), dtype=np.float32)
        self._every_row = np.arange(0)
        self._viewed: tuple[torch.Tensor, _F32] | None = None
        """The last logits that lay on the host, and numpy's view of them."""

    def sample(self, logits: torch.Tensor, metadata: SamplingMetadata) -> SamplerOutput:
        """Samples every row.

        Args:
            logits: `[n, vocab_size]` float32 on any device; rows with penalties or suppressed ids are changed in place.
            metadata: one entry per row.
        """
        changed = penalties.changed_rows(metadata)
        asked = metadata.logprob_rows
        if logits.device.type != "cpu" and metadata.is_greedy and not changed and not asked:
            return SamplerOutput(_argmax_on_device(logits))
        rows = self._on_host(logits)
        raw = {row: rows[row].copy() if row in changed else rows[row] for row in asked}
        errors = penalties.apply(rows, metadata)
        states: dict[int, float] = {}
        if metadata.is_greedy and self._row_sampling is None:
            token_ids = _argmax(rows)
        else:
            token_ids = self._sample_mixed(rows, metadata, states)
        return SamplerOutput(token_ids, _report(raw, token_ids, metadata), states, errors)

    def _on_host(self, logits: torch.Tensor) -> _F32:
        """The logits as numpy sees them: the same memory, if they lie on the host."""
        if self._viewed is not None and logits is self._viewed[0]:
            return self._viewed[1]
        rows: _F32 = logits.to(device="cpu", dtype=torch.float32).numpy()
        if logits.device.type == "cpu" and logits.dtype == torch.float32:
            self._viewed = (logits, rows)
        return rows

    def _sample_mixed(self, rows: _F32, metadata: SamplingMetadata, states: dict[int, float]) -> _Ids:
        token_ids = np.empty(len(rows), dtype=np.int64)
        noise = np.zeros(len(rows)) if metadata.is_greedy else uniforms(metadata.seed, metadata.position)
        special = {i: controls.filters for i, controls in metadata.controls.items() if controls.filters is not None}
        for i, filters in special.items():
            token_ids[i] = _sample_extra(rows[i], filters, metadata, i, noise[i], states)
        if len(self._every_row) != len(rows):
            self._every_row = np.arange(len(rows))
        usual = np.delete(self._every_row, list(special)) if special else self._every_row
        if self._row_sampling is not None:
            self._row_sampling(rows, usual, metadata, noise, token_ids)
        else:
            self._sample_plain(rows, usual, metadata, noise, token_ids)
        return token_ids

    def _sample_plain(self, rows: _F32, usual: _Ids, metadata: SamplingMetadata, noise: _F64, token_ids: _Ids) -> None:
        """What `RowSampling` does, with numpy."""
        is_greedy = metadata.temperature[usual] == 0
        for i in usual[is_greedy].tolist():
            token_ids[i : i + 1] = _argmax(rows[i : i + 1])
        drawn = usual[~is_greedy]
        is_filtered = (metadata.top_k[drawn] > 0) | (metadata.top_p[drawn] < 1)
        for i in drawn[is_filtered].tolist():
            token_ids[i] = _sample_filtered(rows[i], metadata, i, noise[i])
        dense = drawn[~is_filtered]
        group_size = max(1, _MAX_GROUP_ELEMENTS // rows.shape[1])
        for start in range(0, len(dense), group_size):
            group = dense[start : start + group_size]
            token_ids[group] = self._sample_dense(rows, metadata, group, noise[group])

    def _sample_dense(self, rows: _F32, metadata: SamplingMetadata, group: _Ids, noise: _F64) -> _Ids:
        """Samples rows without top-k and top-p, a few at a time so that they stay in the processor's cache."""
        vocab_size = rows.shape[1]
        padded_size = -(-vocab_size // _BLOCK_SIZE) * _BLOCK_SIZE
        if self._scratch.shape[0] < len(group) or self._scratch.shape[1] != padded_size:
            self._scratch = np.zeros((len(group), padded_size), dtype=np.float32)
        padded = self._scratch[: len(group)]
        logits = rows[group[0] : group[0] + 1] if len(group) == 1 else rows[group]
        maximum = logits.max(axis=1, keepdims=True)
        failed = ~np.isfinite(maximum[:, 0])
        maximum[failed] = 0
        weights = padded[:, :vocab_size]
        padded[:, vocab_size:] = 0
        with np.errstate(over="ignore", invalid="ignore"):
            unnormalised(logits, maximum, metadata.temperature[group, None], out=weights)
        weights[failed] = 1
        min_p = metadata.min_p[group, None]
        if min_p.any():
            weights[weights < min_p] = 0
        token_ids = _inverse_cdf(padded, noise)
        token_ids[failed] = FAILED_TOKEN_ID
        return token_ids


def _argmax_on_device(logits: torch.Tensor) -> _Ids:
    values, token_ids = logits.max(dim=1)
    return np.asarray(torch.where(torch.isfinite(values), token_ids, FAILED_TOKEN_ID).cpu().numpy(), dtype=np.int64)


def _argmax(rows: _F32) -> _Ids:
    """The most likely id of each row, the lowest of equals."""
    token_ids = np.asarray(rows.argmax(axis=1), dtype=np.int64)
    failed = ~np.isfinite(rows[np.arange(len(rows)), token_ids])
    token_ids[failed] = FAILED_TOKEN_ID
    return token_ids


def _sample_filtered(row: _F32, metadata: SamplingMetadata, i: int, uniform: float) -> int:
    if not np.isfinite(row.max()):
        return FAILED_TOKEN_ID
    ids, weights = filtered_weights(
        row,
        temperature=metadata.temperature[i],
        top_k=int(metadata.top_k[i]),
        top_p=float(metadata.top_p[i]),
        min_p=float(metadata.min_p[i]),
    )
    cumulative = np.cumsum(weights, dtype=np.float64)
    total = cumulative[-1]
    target = min(uniform * total, np.nextafter(total, 0))
    return int(ids[np.searchsorted(cumulative, target, side="right")])


def _sample_extra(
    row: _F32, filters: ExtraFilters, metadata: SamplingMetadata, i: int, uniform: float, states: dict[int, float]
) -> int:
    """Samples a row with one of llama.cpp's samplers, and notes what Mirostat knows then.

    Of several rows of one request, each goes on from what the row before it has left.
    """
    if not np.isfinite(row.max()):
        return FAILED_TOKEN_ID
    is_next = i > 0 and metadata.request_row[i] == metadata.request_row[i - 1]
    state = states.get(i - 1) if is_next else metadata.states.get(i)
    other_uniform = uniforms(metadata.seed[i : i + 1], metadata.position[i : i + 1], is_second=True)[0]
    token_id, state = filters.sample(row, float(uniform), float(other_uniform), state)
    if state is not None:
        states[i] = state
    return token_id


def _inverse_cdf(weights: _F32, uniform: _F64) -> _Ids:
    """Index in each row of `weights` at which the cumulative distribution passes `uniform`.

    Two levels: first the block of `_BLOCK_SIZE` tokens, then the token within it.

    Args:
        weights: `[n, num_blocks * _BLOCK_SIZE]`, not negative, every row with a positive sum.
        uniform: `[n]` in [0, 1).
    """
    each = np.arange(len(weights))
    blocks = weights.reshape(len(weights), -1, _BLOCK_SIZE)
    ends = np.cumsum(blocks.sum(axis=2), axis=1, dtype=np.float64)
    target = np.minimum(uniform * ends[:, -1], np.nextafter(ends[:, -1], 0))
    block = (ends <= target[:, None]).sum(axis=1)
    start = np.where(block > 0, ends[each, block - 1], 0.0)
    share = (target - start) / (ends[each, block] - start)
    inner = np.cumsum(blocks[each, block], axis=1, dtype=np.float64)
    inner_target = np.minimum(share * inner[:, -1], np.nextafter(inner[:, -1], 0))
    result: _Ids = block * _BLOCK_SIZE + (inner <= inner_target[:, None]).sum(axis=1)
    return result


def _report(raw: dict[int, _F32], token_ids: _Ids, metadata: SamplingMetadata) -> dict[int, TokenLogprobs]:
    logprobs: dict[int, TokenLogprobs] = {}
    for row, logits in raw.items():
        if token_ids[row] != FAILED_TOKEN_ID:
            controls = metadata.controls.get(row)
            other_ids = controls.logprob_ids if controls else ()
            logprobs[row] = token_logprobs(logits, int(token_ids[row]), int(metadata.num_logprobs[row]), other_ids)
    return logprobs
