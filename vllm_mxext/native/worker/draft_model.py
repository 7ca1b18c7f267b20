"""`DraftModel`: a smaller model that writes draft tokens, over the block tables of the model they are for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from vllm_mxext.native.sampling.metadata import NO_LOGPROBS
from vllm_mxext.native.sampling.sampler import Sampler
from vllm_mxext.native.worker.input_batch import InputBatch, Span
from vllm_mxext.native.worker.loaded_model import LoadedModel

_IntArray = npt.NDArray[np.integer[Any]]

_CATCH_UP_TOKENS = 512
"""Tokens per step at most that a draft model computes to know a request: nobody waits long for a long prompt."""

_USUAL_TOKENS = 16
"""Tokens that a request may have gained since its last drafts without its next ones costing noticeably more."""


@dataclass(frozen=True, slots=True)
class _Writers:
    """Requests that a draft is being written for, all arrays one entry each.

    Attributes:
        request_ids: whose.
        rows: their rows.
        lengths: their tokens.
        limits: drafts at most.
    """

    request_ids: list[str]
    rows: _IntArray
    lengths: _IntArray
    limits: _IntArray

    def select(self, chosen: _IntArray) -> _Writers:
        names = [self.request_ids[index] for index in chosen.tolist()]
        return _Writers(names, self.rows[chosen], self.lengths[chosen], self.limits[chosen])


class DraftModel:
    """Writes drafts token by token, drawing each with the noise of its position, as the model will.

    Its keys and values lie in blocks of the same numbers as the model's, so the request's block table serves both. It
    computes only what it has not seen: the prompt when a request first asks, later what was sampled since. A block of
    another request is used if it still holds the same tokens.

    Args:
        model: the smaller model.
        sampler: draws its tokens.
        num_blocks: blocks of its cache: as many as the model has.
        block_size: token positions per block.
        max_model_len: tokens it can see.
    """

    def __init__(
        self, model: LoadedModel, sampler: Sampler, *, num_blocks: int, block_size: int, max_model_len: int
    ) -> None:
        self._model = model
        self._block_size = block_size
        self._max_model_len = max_model_len
        self._sampler = sampler
        self._block_keys = [0] * num_blocks
        """What each full block holds, as a hash of all tokens up to its end; 0 for anything else."""
        self.is_catching_up = False

    def propose(self, batch: InputBatch, num_drafts: Mapping[str, int]) -> dict[str, list[int]]:
        """See `Proposer`; requests whose tokens the draft model is still catching up with get none."""
        self.is_catching_up = False
        request_ids = list(num_drafts)
        rows = batch.rows_of(request_ids)
        limits = np.fromiter(num_drafts.values(), dtype=np.int64, count=len(rows))
        writers = _Writers(request_ids, rows, batch.num_tokens(rows), limits)
        fitting = np.flatnonzero(writers.lengths + limits <= self._max_model_len)
        drafts: dict[str, list[int]] = {}
        if not len(fitting):
            return drafts
        writers, logits = self._catch_up(batch, writers.select(fitting))
        num_written = 0
        while len(writers.rows):
            token_ids = self._draw(batch, writers, logits, num_written)
            usable = np.flatnonzero(token_ids >= 0)
            writers, token_ids = writers.select(usable), token_ids[usable]
            batch.place_tokens(writers.rows, writers.lengths + num_written, token_ids)
            for request_id, token_id in zip(writers.request_ids, token_ids.tolist(), strict=True):
                drafts.setdefault(request_id, []).append(token_id)
            num_written += 1
            writers = writers.select(np.flatnonzero(writers.limits > num_written))
            if len(writers.rows):
                ends = writers.lengths + num_written
                logits = self._compute(
                    batch, Span(writers.rows, np.ones_like(ends), ends), writers.lengths + num_written
                )
        return drafts

    def _catch_up(self, batch: InputBatch, writers: _Writers) -> tuple[_Writers, torch.Tensor]:
        """Computes tokens that the draft model has not seen; returns who has none left, and their logits."""
        known = [self._num_known(batch, row, length) for row, length in zip(writers.rows, writers.lengths, strict=True)]
        starts = np.array(known, dtype=np.int64)
        missing = writers.lengths - starts
        self.is_catching_up = bool(missing.max() > _USUAL_TOKENS)
        order = np.argsort(missing, kind="stable")
        room = min(_CATCH_UP_TOKENS, len(self._model.buffers.residual))
        ends_of_work = np.minimum(np.cumsum(missing[order]), room)
        counts = np.diff(ends_of_work, prepend=0)
        order, counts = order[counts > 0], counts[counts > 0]
        span = Span(writers.rows[order], counts, starts[order] + counts)
        logits = self._compute(batch, span, writers.lengths[order])
        return writers.select(order[span.ends == writers.lengths[order]]), logits

    def _compute(self, batch: InputBatch, span: Span, lengths: _IntArray) -> torch.Tensor:
        """Runs the model over tokens of some rows; the logits are of those that reach their length."""
        samples = np.flatnonzero(span.ends == lengths)
        forward = batch.flatten(span, samples, np.ones_like(samples))
        logits = self._model.forward(forward)
        if logits.is_cuda and not len(samples):
            torch.cuda.current_stream(logits.device).synchronize()  # the host's buffers are filled anew
        batch.draft_computed[span.rows] = span.ends
        for row, count, end in zip(span.rows.tolist(), span.counts.tolist(), span.ends.tolist(), strict=True):
            self._note(batch, row, end - count, end)
        return logits

    def _draw(self, batch: InputBatch, writers: _Writers, logits: torch.Tensor, num_written: int) -> _IntArray:
        metadata = batch.sampling_metadata(writers.rows, writers.lengths + num_written)
        metadata = replace(metadata, num_logprobs=np.full_like(metadata.num_logprobs, NO_LOGPROBS))
        return self._sampler.sample(logits, metadata).token_ids

    def _num_known(self, batch: InputBatch, row: int, num_tokens: int) -> int:
        """Leading tokens of a row whose keys are in the cache, at most all but the last."""
        computed = int(batch.draft_computed[row])
        if computed >= 0:
            return min(computed, num_tokens - 1)
        size, key, num_known = self._block_size, 0, 0
        while num_known + size < num_tokens:
            key = self._key_after(key, batch.token_ids(row, num_known, num_known + size))
            if self._block_keys[batch.block_id(row, num_known // size)] != key:
                break
            num_known += size
        return num_known

    def _note(self, batch: InputBatch, row: int, start: int, end: int) -> None:
        """Remembers what blocks hold after tokens from `start` to `end` of a row were written."""
        size = self._block_size
        for index in range(start // size, -(-end // size)):
            block_id, first = batch.block_id(row, index), index * size
            before = self._block_keys[batch.block_id(row, index - 1)] if index else 0
            is_known = first + size <= end and (index == 0 or before != 0)
            self._block_keys[block_id] = (
                self._key_after(before, batch.token_ids(row, first, first + size)) if is_known else 0
            )

    def _key_after(self, key: int, token_ids: _IntArray) -> int:
        return hash((key, token_ids.tobytes())) or 1
