"""`InputBatch`: one persistent row per running request, from which each step's flat inputs are gathered.

    rows          token_ids                  block_table        num_tokens  num_computed
    0  request A  [t t t t t t . . . .]      [7 3 9 . .]        6           5
    1  request B  [t t . . . . . . . .]      [4 . . . .]        2           0
    2  (free)

Rows in use are always the first ones: dropping a request moves the last row into the gap.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vllm_mxext.native.kernels.interface import AttentionMetadata
from vllm_mxext.native.models.decoder import ForwardBatch
from vllm_mxext.native.protocol import CachedRequestData, NewRequestData, SchedulerOutput
from vllm_mxext.native.sampling.metadata import SamplingColumns, SamplingMetadata
from vllm_mxext.native.sampling.processors import LogitsProcessors
from vllm_mxext.native.worker.step_buffers import StepBuffers

IntArray = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True, slots=True)
class StepInputs:
    """What one step feeds to the model and, afterwards, to the sampler.

    Attributes:
        forward: tensors of the forward pass.
        sampled_rows: `[num_samples]` rows that sample, in the order of the logits.
        sampled_request_ids: their requests.
    """

    forward: ForwardBatch
    sampled_rows: IntArray
    sampled_request_ids: list[str]


class InputBatch:
    """State of the running requests on the runner's side.

    Args:
        max_num_seqs: rows.
        max_model_len: tokens per row.
        block_size: token positions per KV block.
        buffers: where a step's inputs are written.
        processors: plug-ins, if there are any.
    """

    def __init__(
        self,
        *,
        max_num_seqs: int,
        max_model_len: int,
        block_size: int,
        buffers: StepBuffers,
        processors: LogitsProcessors | None = None,
    ) -> None:
        max_blocks = -(-max_model_len // block_size)
        self._block_size = block_size
        self._buffers = buffers
        self._processors = processors
        self._token_ids = np.zeros((max_num_seqs, max_model_len), dtype=np.int32)
        self._block_table = np.zeros((max_num_seqs, max_blocks), dtype=np.int32)
        self._num_tokens = np.zeros(max_num_seqs, dtype=np.int32)
        self._num_prompt_tokens = np.zeros(max_num_seqs, dtype=np.int32)
        self._num_computed = np.zeros(max_num_seqs, dtype=np.int32)
        self._num_blocks = np.zeros(max_num_seqs, dtype=np.int32)
        self._sampling = SamplingColumns(max_num_seqs)
        self._request_ids: list[str] = []
        self._row_of: dict[str, int] = {}

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
            last_request_id = self._request_ids.pop()
            if last_request_id != request_id:
                self._move(len(self._request_ids), row)
                self._request_ids[row] = last_request_id
                self._row_of[last_request_id] = row

    def add(self, new: NewRequestData) -> None:
        """Gives a request the next free row."""
        assert new.request_id not in self._row_of, f"Request {new.request_id} has a row already."
        row = len(self._request_ids)
        num_tokens, num_blocks = len(new.token_ids), len(new.block_ids)
        self._token_ids[row, :num_tokens] = new.token_ids
        self._block_table[row, :num_blocks] = new.block_ids
        self._num_tokens[row] = num_tokens
        self._num_prompt_tokens[row] = new.num_prompt_tokens
        self._num_computed[row] = new.num_computed_tokens
        self._num_blocks[row] = num_blocks
        prompt = new.token_ids[: new.num_prompt_tokens]
        processors = self._processors.for_request(new.params, prompt) if self._processors else None
        self._sampling.set_row(row, new.params, new.seed, new.eos_token_ids, new.rules, new.sampler_state, processors)
        self._request_ids.append(new.request_id)
        self._row_of[new.request_id] = row

    def append_sampled(self, rows: IntArray, token_ids: IntArray) -> None:
        """Appends one sampled token to each of these rows."""
        self._token_ids[rows, self._num_tokens[rows]] = token_ids
        self._num_tokens[rows] += 1

    def keep_sampler_state(self, row: int, state: float) -> None:
        """Keeps what the sampler has learnt with a row's newest token."""
        self._sampling.set_state(row, state)

    def append_forced(self, request_id: str, token_ids: Sequence[int]) -> None:
        """Appends tokens that were not sampled, as far as the row has room."""
        row = self._row_of[request_id]
        first = self._num_tokens[row]
        self._token_ids[row, first : first + len(token_ids)] = token_ids
        self._num_tokens[row] += len(token_ids)

    def room(self, request_id: str) -> int:
        """Tokens by which a request may still grow: to the end of its row."""
        return int(self._token_ids.shape[1] - self._num_tokens[self._row_of[request_id]])

    def num_output_tokens(self, request_id: str) -> int:
        """Output tokens of a request so far."""
        row = self._row_of[request_id]
        return int(self._num_tokens[row] - self._num_prompt_tokens[row])

    def gather(self, num_scheduled_tokens: dict[str, int]) -> StepInputs:
        """Flattens the scheduled tokens of all requests into the step's inputs.

        Args:
            num_scheduled_tokens: request id -> tokens to compute; requests follow each other in this order.
        """
        buffers, size = self._buffers, self._block_size
        num_reqs = len(num_scheduled_tokens)
        row_of = self._row_of
        rows = np.fromiter((row_of[name] for name in num_scheduled_tokens), dtype=np.int64, count=num_reqs)
        counts = np.fromiter(num_scheduled_tokens.values(), dtype=np.int32, count=num_reqs)
        starts = buffers.query_start_loc.array[: num_reqs + 1]
        np.cumsum(counts, out=starts[1:])
        num_tokens = int(starts[-1])
        seq_lens = buffers.seq_lens.array[:num_reqs]
        np.add(self._num_computed[rows], counts, out=seq_lens)

        token_rows = np.repeat(rows, counts)
        positions = buffers.positions.array[:num_tokens]
        np.add(buffers.token_range[:num_tokens], np.repeat(seq_lens - starts[1:], counts), out=positions)
        buffers.token_ids.array[:num_tokens] = self._token_ids[token_rows, positions]
        block_index, offset = np.divmod(positions, size)
        slots = buffers.slot_mapping.array[:num_tokens]
        np.multiply(self._block_table[token_rows, block_index], size, out=slots, casting="safe")
        slots += offset

        samples = np.flatnonzero(seq_lens == self._num_tokens[rows])
        buffers.sample_indices.array[: len(samples)] = starts[samples + 1] - 1
        max_seq_len = int(seq_lens.max())
        num_blocks = -(-max_seq_len // size)
        self._gather_block_tables(rows, num_blocks)
        metadata = AttentionMetadata(
            positions=buffers.positions.tensor(num_tokens),
            slot_mapping=buffers.slot_mapping.tensor(num_tokens),
            block_tables=buffers.block_tables.tensor(num_reqs * num_blocks).view(num_reqs, num_blocks),
            query_start_loc=buffers.query_start_loc.tensor(num_reqs + 1),
            seq_lens=buffers.seq_lens.tensor(num_reqs),
            max_query_len=int(counts.max()),
            max_seq_len=max_seq_len,
        )
        forward = ForwardBatch(
            token_ids=buffers.token_ids.tensor(num_tokens),
            attention=metadata,
            sample_indices=buffers.sample_indices.tensor(len(samples)),
        )
        sampled_rows = rows[samples]
        return StepInputs(forward, sampled_rows, [self._request_ids[row] for row in sampled_rows.tolist()])

    def sampling_metadata(self, rows: IntArray) -> SamplingMetadata:
        """What the sampler needs to know of these rows."""
        return self._sampling.select(rows, self._num_tokens[rows], self._num_prompt_tokens[rows], self._token_ids)

    def _extend(self, cached: CachedRequestData) -> None:
        row = self._row_of[cached.request_id]
        self._num_computed[row] = cached.num_computed_tokens
        if cached.new_block_ids:
            first = self._num_blocks[row]
            last = first + len(cached.new_block_ids)
            self._block_table[row, first:last] = cached.new_block_ids
            self._num_blocks[row] = last

    def _gather_block_tables(self, rows: IntArray, num_blocks: int) -> None:
        """Writes `[len(rows), num_blocks]` without gaps; entries past a request's end become 0."""
        table = self._buffers.block_tables.array[: len(rows) * num_blocks].reshape(len(rows), num_blocks)
        np.take(self._block_table[:, :num_blocks], rows, axis=0, out=table)
        table[np.arange(num_blocks) >= self._num_blocks[rows, None]] = 0

    def _move(self, source: int, target: int) -> None:
        num_tokens, num_blocks = self._num_tokens[source], self._num_blocks[source]
        self._token_ids[target, :num_tokens] = self._token_ids[source, :num_tokens]
        self._block_table[target, :num_blocks] = self._block_table[source, :num_blocks]
        for column in (self._num_tokens, self._num_prompt_tokens, self._num_computed, self._num_blocks):
            column[target] = column[source]
        self._sampling.move_row(source, target)
