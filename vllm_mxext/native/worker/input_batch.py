"""`InputBatch`: one persistent row per running request, from which each step's flat inputs are gathered.

    rows          token_ids                  block_table        num_tokens  num_computed
    0  request A  [t t t t t t . . . .]      [7 3 9 . .]        6           5
    1  request B  [t t . . . . . . . .]      [4 . . . .]        2           0
    2  (free)

Rows in use are always the first ones: dropping a request moves the last row into the gap.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from vllm_mxext.native.kernels.interface import AttentionMetadata
from vllm_mxext.native.models.decoder import ForwardBatch
from vllm_mxext.native.protocol import CachedRequestData, NewRequestData, SchedulerOutput
from vllm_mxext.native.sampling.metadata import SamplingColumns, SamplingMetadata
from vllm_mxext.native.sampling.processors import LogitsProcessors
from vllm_mxext.native.worker.row_adapters import RowAdapters
from vllm_mxext.native.worker.step_buffers import StepBuffers

IntArray = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True, slots=True)
class StepInputs:
    """What one step feeds to the model and, afterwards, to the sampler.

    Attributes:
        forward: tensors of the forward pass.
        sampled_request_ids: requests that sample, in the order of the logits.
        num_positions: `[len(sampled_request_ids)]` how many positions each of them samples: one, and one per draft.
        sampled_rows: `[num_samples]` row of each sampled position.
        sampled_lengths: `[num_samples]` tokens before each sampled position, drafts included.
    """

    forward: ForwardBatch
    sampled_request_ids: list[str]
    num_positions: IntArray
    sampled_rows: IntArray
    sampled_lengths: IntArray


@dataclass(frozen=True, slots=True)
class Span:
    """Tokens to compute, of several rows.

    Attributes:
        rows: `[n]` the rows.
        counts: `[n]` tokens of each.
        ends: `[n]` int32, position behind the last of them.
    """

    rows: IntArray
    counts: IntArray
    ends: IntArray


class InputBatch:
    """State of the running requests on the runner's side.

    Args:
        max_num_seqs: rows.
        max_model_len: tokens per row.
        block_size: token positions per KV block.
        buffers: where a step's inputs are written.
        processors: plug-ins, if there are any.
        adapters: which rows have adapters; without it, none may have one.
    """

    def __init__(
        self,
        *,
        max_num_seqs: int,
        max_model_len: int,
        block_size: int,
        buffers: StepBuffers,
        processors: LogitsProcessors | None = None,
        adapters: RowAdapters | None = None,
    ) -> None:
        max_blocks = -(-max_model_len // block_size)
        self._block_size = block_size
        self._buffers = buffers
        self._processors = processors
        self._adapters = adapters
        self._token_ids = np.zeros((max_num_seqs, max_model_len), dtype=np.int32)
        self._block_table = np.zeros((max_num_seqs, max_blocks), dtype=np.int32)
        self._num_tokens = np.zeros(max_num_seqs, dtype=np.int32)
        self._num_prompt_tokens = np.zeros(max_num_seqs, dtype=np.int32)
        self._num_computed = np.zeros(max_num_seqs, dtype=np.int32)
        self._num_blocks = np.zeros(max_num_seqs, dtype=np.int32)
        self.draft_computed = np.zeros(max_num_seqs, dtype=np.int32)
        """Leading tokens of each row whose keys a draft model has; -1 = it has not looked yet."""
        self._sampling = SamplingColumns(max_num_seqs)
        self._request_ids: list[str] = []
        self._row_of: dict[str, int] = {}
        self._steady: StepInputs | None = None
        """Of the last step if all of its requests computed their newest token: the next one may differ only in where
        that stands. Forgotten when rows come or go or the buffers are written."""

    def __len__(self) -> int:
        return len(self._request_ids)

    @property
    def request_ids(self) -> Sequence[str]:
        """Requests in row order."""
        return tuple(self._request_ids)

    @property
    def num_bytes(self) -> int:
        """Bytes of token ids, block tables and step inputs."""
        return self._token_ids.nbytes + self._block_table.nbytes + self._buffers.num_bytes

    def update(self, scheduled: SchedulerOutput) -> None:
        """Brings the rows up to what the scheduler says: drops, then adds, then appends blocks."""
        self.remove(scheduled.finished_request_ids)
        for new in scheduled.new_requests:
            self.add(new)
        for cached in scheduled.cached_requests:
            self._extend(cached)

    def remove(self, request_ids: Iterable[str]) -> None:
        """Drops requests; unknown ids are ignored (their step may have failed before they got a row)."""
        for request_id in request_ids:
            row = self._row_of.pop(request_id, None)
            if row is None:
                continue
            self._steady = None
            if self._adapters is not None:
                self._adapters.drop_row(row)
            last_request_id = self._request_ids.pop()
            if last_request_id != request_id:
                self._move(len(self._request_ids), row)
                self._request_ids[row] = last_request_id
                self._row_of[last_request_id] = row

    def add(self, new: NewRequestData) -> None:
        """Gives a request the next free row."""
        assert new.request_id not in self._row_of, f"Request {new.request_id} has a row already."
        self._steady = None
        row = len(self._request_ids)
        num_tokens, num_blocks = len(new.token_ids), len(new.block_ids)
        self._token_ids[row, :num_tokens] = new.token_ids
        self._block_table[row, :num_blocks] = new.block_ids
        self._block_table[row, num_blocks:] = 0
        self._num_tokens[row] = num_tokens
        self._num_prompt_tokens[row] = new.num_prompt_tokens
        self._num_computed[row] = new.num_computed_tokens
        self._num_blocks[row] = num_blocks
        self.draft_computed[row] = -1
        if self._adapters is not None:
            self._adapters.set_row(row, new.adapter_slot, new.adapter_scale)
        prompt = new.token_ids[: new.num_prompt_tokens]
        processors = self._processors.for_request(new.params, prompt) if self._processors else None
        self._sampling.set_row(row, new.params, new.seed, new.eos_token_ids, new.rules, new.sampler_state, processors)
        self._request_ids.append(new.request_id)
        self._row_of[new.request_id] = row

    def rows_of(self, request_ids: Iterable[str]) -> IntArray:
        """Rows of these requests."""
        return np.array([self._row_of[request_id] for request_id in request_ids], dtype=np.int64)

    def num_tokens(self, rows: IntArray) -> IntArray:
        """Tokens of these rows so far, drafts not included."""
        return self._num_tokens[rows]

    def tokens(self, request_id: str) -> IntArray:
        """Tokens of a request so far; a view."""
        row = self._row_of[request_id]
        return self._token_ids[row, : self._num_tokens[row]]

    def token_ids(self, row: int, start: int, end: int) -> IntArray:
        """Tokens of a row at these positions, placed ones included; a view."""
        return self._token_ids[row, start:end]

    def block_id(self, row: int, index: int) -> int:
        """The block of a row's table at this index."""
        return int(self._block_table[row, index])

    def room(self, request_id: str) -> int:
        """Tokens by which a request may still grow: to the end of its row."""
        return int(self._token_ids.shape[1] - self._num_tokens[self._row_of[request_id]])

    def num_output_tokens(self, request_id: str) -> int:
        """Output tokens of a request so far."""
        row = self._row_of[request_id]
        return int(self._num_tokens[row] - self._num_prompt_tokens[row])

    def keep_sampler_state(self, row: int, state: float) -> None:
        """Keeps what the sampler has learnt with a row's newest token."""
        self._sampling.set_state(row, state)

    def place_tokens(self, rows: IntArray, positions: IntArray, token_ids: IntArray) -> None:
        """Writes one token per row somewhere behind its tokens, where the next ones are going to be."""
        self._token_ids[rows, positions] = token_ids

    def placed_tokens(self, inputs: StepInputs) -> IntArray:
        """What lies at the positions that a step samples: `[num_samples]` drafts, and anything behind the last ones."""
        ends = np.minimum(inputs.sampled_lengths, self._token_ids.shape[1] - 1)
        return self._token_ids[inputs.sampled_rows, ends]

    def append_sampled(self, rows: IntArray, token_ids: IntArray) -> None:
        """Appends one sampled token to each of these rows."""
        self._token_ids[rows, self._num_tokens[rows]] = token_ids
        self._num_tokens[rows] += 1

    def append_tokens(self, request_id: str, token_ids: Sequence[int]) -> None:
        """Appends tokens to a request."""
        row = self._row_of[request_id]
        first = self._num_tokens[row]
        last = first + len(token_ids)
        self._token_ids[row, first:last] = token_ids
        self._num_tokens[row] = last

    def arrange(self, scheduled: SchedulerOutput) -> SchedulerOutput:
        """Returns a step with its requests in the order in which those of one adapter are neighbours."""
        if self._adapters is None or self._adapters.is_empty:
            return scheduled
        names = list(scheduled.num_scheduled_tokens.items())
        order = self._adapters.order(self.rows_of(scheduled.num_scheduled_tokens))
        return replace(scheduled, num_scheduled_tokens=dict(names[index] for index in order.tolist()))

    def gather(self, scheduled: SchedulerOutput, drafts: Mapping[str, Sequence[int]]) -> StepInputs:
        """Flattens the scheduled tokens of all requests, and their drafts, into the step's inputs.

        Args:
            scheduled: the step, arranged; requests follow each other in the order of `num_scheduled_tokens`.
            drafts: request id -> draft tokens, at most as many as there is room for.
        """
        names = scheduled.num_scheduled_tokens
        steady = self._steady
        if steady is not None and not drafts and steady.sampled_request_ids == list(names) and max(names.values()) == 1:
            inputs = self._repeat(steady)
            if inputs is not None:
                return inputs
        row_of, num_reqs = self._row_of, len(names)
        rows = np.fromiter((row_of[name] for name in names), dtype=np.int64, count=num_reqs)
        counts = np.fromiter(names.values(), dtype=np.int32, count=num_reqs)
        for request_id, token_ids in drafts.items():
            row = row_of[request_id]
            first = self._num_tokens[row]
            self._token_ids[row, first : first + len(token_ids)] = token_ids
        if drafts:
            counts += np.fromiter((len(drafts.get(name, ())) for name in names), dtype=np.int32, count=num_reqs)
        ends = self._num_computed[rows] + counts
        num_positions = ends - self._num_tokens[rows] + 1
        samples = np.flatnonzero(num_positions > 0)
        num_positions = num_positions[samples]
        forward = self.flatten(Span(rows, counts, ends), samples, num_positions)
        if self._adapters is not None and not self._adapters.is_empty:
            forward = replace(forward, adapters=self._adapters.batch(rows, counts, samples, num_positions))
        sampled_rows = rows[samples]
        lengths = self._num_tokens[sampled_rows]
        request_ids = [self._request_ids[row] for row in sampled_rows.tolist()]
        if drafts:
            sampled_rows = np.repeat(sampled_rows, num_positions)
            lengths = np.repeat(lengths, num_positions) + _ramps(num_positions)
        inputs = StepInputs(forward, request_ids, num_positions, sampled_rows, lengths)
        if len(forward.token_ids) == len(lengths) == num_reqs:
            self._steady = inputs
        return inputs

    def _repeat(self, steady: StepInputs) -> StepInputs | None:
        """Writes what changes if all requests of a step compute one token again; None if not all of them sample it."""
        buffers, size, rows = self._buffers, self._block_size, steady.sampled_rows
        num_reqs = len(rows)
        lengths = self._num_tokens[rows]
        positions = buffers.positions.array[:num_reqs]
        positions[:] = self._num_computed[rows]
        seq_lens = buffers.seq_lens.array[:num_reqs]
        np.add(positions, 1, out=seq_lens)
        if (seq_lens != lengths).any():
            return None
        buffers.token_ids.array[:num_reqs] = self._token_ids[rows, positions]
        block_index, offset = np.divmod(positions, size)
        slots = buffers.slot_mapping.array[:num_reqs]
        np.multiply(self._block_table[rows, block_index], size, out=slots, casting="safe")
        slots += offset
        max_seq_len = int(lengths.max())
        metadata = AttentionMetadata(
            positions=buffers.positions.tensor(num_reqs),
            slot_mapping=buffers.slot_mapping.tensor(num_reqs),
            block_tables=self._gather_block_tables(rows, max_seq_len),
            query_start_loc=steady.forward.attention.query_start_loc,
            seq_lens=buffers.seq_lens.tensor(num_reqs),
            max_query_len=1,
            max_seq_len=max_seq_len,
        )
        forward = replace(steady.forward, token_ids=buffers.token_ids.tensor(num_reqs), attention=metadata)
        return replace(steady, forward=forward, sampled_lengths=lengths)

    def flatten(self, span: Span, samples: IntArray, num_positions: IntArray) -> ForwardBatch:
        """Writes tokens, positions and slots of spans of rows one behind the other.

        Args:
            span: what is computed.
            samples: `[s]` which of its rows sample.
            num_positions: `[s]` behind how many of their last tokens.
        """
        self._steady = None
        buffers, size = self._buffers, self._block_size
        rows, counts = span.rows, span.counts
        num_reqs = len(rows)
        starts = buffers.query_start_loc.array[: num_reqs + 1]
        np.cumsum(counts, out=starts[1:])
        num_tokens = int(starts[-1])
        seq_lens = buffers.seq_lens.array[:num_reqs]
        seq_lens[:] = span.ends

        token_rows = np.repeat(rows, counts)
        positions = buffers.positions.array[:num_tokens]
        np.add(buffers.token_range[:num_tokens], np.repeat(seq_lens - starts[1:], counts), out=positions)
        buffers.token_ids.array[:num_tokens] = self._token_ids[token_rows, positions]
        block_index, offset = np.divmod(positions, size)
        slots = buffers.slot_mapping.array[:num_tokens]
        np.multiply(self._block_table[token_rows, block_index], size, out=slots, casting="safe")
        slots += offset

        last = starts[samples + 1] - 1
        if len(samples) and num_positions.max() > 1:
            last = np.repeat(last - num_positions + 1, num_positions) + _ramps(num_positions)
        buffers.sample_indices.array[: len(last)] = last
        max_seq_len = int(seq_lens.max())
        metadata = AttentionMetadata(
            positions=buffers.positions.tensor(num_tokens),
            slot_mapping=buffers.slot_mapping.tensor(num_tokens),
            block_tables=self._gather_block_tables(rows, max_seq_len),
            query_start_loc=buffers.query_start_loc.tensor(num_reqs + 1),
            seq_lens=buffers.seq_lens.tensor(num_reqs),
            max_query_len=int(counts.max()),
            max_seq_len=max_seq_len,
        )
        return ForwardBatch(
            token_ids=buffers.token_ids.tensor(num_tokens),
            attention=metadata,
            sample_indices=buffers.sample_indices.tensor(len(last)),
        )

    def trim(self, request_ids: Iterable[str]) -> None:
        """Takes from rows the blocks behind those that their tokens need, as the scheduler does after drafts."""
        for request_id in request_ids:
            row = self._row_of[request_id]
            num_blocks = self._num_blocks[row]
            num_needed = min(num_blocks, -(-self._num_tokens[row] // self._block_size))
            self._block_table[row, num_needed:num_blocks] = 0
            self._num_blocks[row] = num_needed

    def sampling_metadata(self, rows: IntArray, num_tokens: IntArray) -> SamplingMetadata:
        """What the sampler needs to know to sample a position of each of these rows.

        Args:
            rows: `[n]`, a row may come several times.
            num_tokens: `[n]` tokens before the position.
        """
        return self._sampling.select(
            rows, num_tokens, self._num_prompt_tokens[rows], self._token_ids, self._num_tokens[rows]
        )

    def _extend(self, cached: CachedRequestData) -> None:
        row = self._row_of[cached.request_id]
        self._num_computed[row] = cached.num_computed_tokens
        if cached.new_block_ids:
            first = self._num_blocks[row]
            last = first + len(cached.new_block_ids)
            self._block_table[row, first:last] = cached.new_block_ids
            self._num_blocks[row] = last

    def _gather_block_tables(self, rows: IntArray, max_seq_len: int) -> torch.Tensor:
        """Writes the blocks of so many tokens of each row, without gaps; entries past a row's end are 0."""
        num_blocks = -(-max_seq_len // self._block_size)
        table = self._buffers.block_tables.array[: len(rows) * num_blocks].reshape(len(rows), num_blocks)
        np.take(self._block_table[:, :num_blocks], rows, axis=0, out=table, mode="clip")
        return self._buffers.block_tables.tensor(table.size).view(len(rows), num_blocks)

    def _move(self, source: int, target: int) -> None:
        num_tokens = self._num_tokens[source]
        self._token_ids[target, :num_tokens] = self._token_ids[source, :num_tokens]
        self._block_table[target] = self._block_table[source]
        columns = (self._num_tokens, self._num_prompt_tokens, self._num_computed, self._num_blocks, self.draft_computed)
        for column in columns:
            column[target] = column[source]
        self._sampling.move_row(source, target)
        if self._adapters is not None:
            self._adapters.move_row(source, target)


def _ramps(lengths: IntArray) -> IntArray:
    """0, 1, ... up to each of these lengths, one behind the other: [2, 3] gives [0, 1, 0, 1, 2]."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1]) - np.repeat(ends - lengths, lengths)
