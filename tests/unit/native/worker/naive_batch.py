"""A plain token-by-token builder of a step's inputs, the oracle of `InputBatch`."""

from __future__ import annotations

from dataclasses import dataclass, field

from vllm_mxext.native.protocol import SchedulerOutput


@dataclass
class NaiveRequest:
    """What a runner knows of one request."""

    token_ids: list[int]
    num_prompt_tokens: int
    block_ids: list[int]
    num_computed_tokens: int


@dataclass
class NaiveInputs:
    """One step's inputs as lists."""

    token_ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    slot_mapping: list[int] = field(default_factory=list)
    query_start_loc: list[int] = field(default_factory=lambda: [0])
    seq_lens: list[int] = field(default_factory=list)
    block_tables: list[list[int]] = field(default_factory=list)
    sample_indices: list[int] = field(default_factory=list)
    sampled_request_ids: list[str] = field(default_factory=list)
    sampled_lengths: list[int] = field(default_factory=list)


class NaiveBatch:
    """Requests by id."""

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self.requests: dict[str, NaiveRequest] = {}

    def update(self, scheduled: SchedulerOutput) -> None:
        for request_id in scheduled.finished_request_ids:
            self.requests.pop(request_id, None)
        for new in scheduled.new_requests:
            self.requests[new.request_id] = NaiveRequest(
                list(new.token_ids), new.num_prompt_tokens, list(new.block_ids), new.num_computed_tokens
            )
        for cached in scheduled.cached_requests:
            request = self.requests[cached.request_id]
            request.block_ids += cached.new_block_ids
            request.num_computed_tokens = cached.num_computed_tokens

    def keep(self, request_id: str, sampled: list[int], drafts: list[int]) -> list[int]:
        """Appends sampled tokens up to the first that is not its draft, and cuts the block table."""
        request = self.requests[request_id]
        kept = []
        for position, token_id in enumerate(sampled):
            kept.append(token_id)
            if position == len(drafts) or drafts[position] != token_id:
                break
        request.token_ids += kept
        return kept

    def trim(self, request_id: str) -> None:
        request = self.requests[request_id]
        del request.block_ids[-(-len(request.token_ids) // self._block_size) :]

    def gather(self, num_scheduled_tokens: dict[str, int], drafts: dict[str, list[int]]) -> NaiveInputs:
        inputs = NaiveInputs()
        for request_id, num_tokens in num_scheduled_tokens.items():
            request = self.requests[request_id]
            drafted = drafts.get(request_id, [])
            token_ids = request.token_ids + drafted
            end = request.num_computed_tokens + num_tokens + len(drafted)
            for position in range(request.num_computed_tokens, end):
                block_id = request.block_ids[position // self._block_size]
                inputs.token_ids.append(token_ids[position])
                inputs.positions.append(position)
                inputs.slot_mapping.append(block_id * self._block_size + position % self._block_size)
            inputs.query_start_loc.append(len(inputs.token_ids))
            inputs.seq_lens.append(end)
            inputs.block_tables.append(request.block_ids)
            if end == len(token_ids):
                inputs.sampled_request_ids.append(request_id)
                for position in range(len(drafted) + 1):
                    inputs.sample_indices.append(len(inputs.token_ids) - 1 - len(drafted) + position)
                    inputs.sampled_lengths.append(len(request.token_ids) + position)
        width = -(-max(inputs.seq_lens) // self._block_size)
        inputs.block_tables = [(table + [0] * width)[:width] for table in inputs.block_tables]
        return inputs
