"""The persistent batch against a naive builder, over random histories."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DataObject

from tests.unit.native.worker.naive_batch import NaiveBatch
from vllm_mxext.native.protocol import CachedRequestData, NewRequestData, SchedulerOutput
from vllm_mxext.native.worker.input_batch import InputBatch, StepInputs
from vllm_mxext.native.worker.runs import agreeing, split_runs
from vllm_mxext.native.worker.step_buffers import StepBuffers
from vllm_mxext.sampling_params import SamplingParams

MAX_NUM_SEQS = 5
MAX_MODEL_LEN = 40
BLOCK_SIZE = 4
BUDGET = 64
MAX_NUM_DRAFTS = 3
MAX_NUM_SAMPLES = MAX_NUM_SEQS * (1 + MAX_NUM_DRAFTS)
CPU = torch.device("cpu")


def make_batch() -> InputBatch:
    buffers = StepBuffers(BUDGET, MAX_NUM_SEQS, MAX_NUM_SAMPLES, MAX_MODEL_LEN // BLOCK_SIZE, CPU)
    return InputBatch(max_num_seqs=MAX_NUM_SEQS, max_model_len=MAX_MODEL_LEN, block_size=BLOCK_SIZE, buffers=buffers)


def new_request(
    request_id: str, token_ids: list[int], *, block_ids: list[int], num_computed: int = 0, **params: Any
) -> NewRequestData:
    return NewRequestData(
        request_id=request_id,
        token_ids=token_ids,
        num_prompt_tokens=len(token_ids),
        params=SamplingParams(**params),
        seed=7,
        eos_token_ids=[],
        block_ids=block_ids,
        num_computed_tokens=num_computed,
    )


class History:
    """Plays the scheduler: random requests come, are computed in random pieces, and go."""

    def __init__(self, data: DataObject) -> None:
        self._data = data
        self._next_id = 0
        self._next_block = 1
        self._is_steady = False
        self.naive = NaiveBatch(BLOCK_SIZE)

    def step(self) -> SchedulerOutput:
        requests = self.naive.requests
        # Nobody comes or goes, everybody computes one token.
        is_steady = self._is_steady = bool(requests) and self._data.draw(st.booleans(), label="steady")
        finished = [name for name in requests if not is_steady and self._data.draw(st.booleans(), label="finishes")]
        full = [name for name, request in requests.items() if len(request.token_ids) >= MAX_MODEL_LEN]
        finished = [name for name in requests if name in finished or name in full]
        left = [name for name in requests if name not in finished]
        scheduled: dict[str, int] = {}
        running = [name for name in left if is_steady or self._data.draw(st.booleans(), label="runs")]
        cached = [self._cached(name, scheduled) for name in running]
        num_new = 0 if is_steady else self._data.draw(st.integers(0, MAX_NUM_SEQS - len(left)), label="new")
        new = [self._new(scheduled) for _ in range(num_new)]
        order = list(scheduled) if is_steady else self._data.draw(st.permutations(list(scheduled)), label="order")
        room = {each.request_id: self._room(each, scheduled) for each in cached}
        return SchedulerOutput(
            new_requests=new,
            cached_requests=cached,
            num_scheduled_tokens={name: scheduled[name] for name in order},
            total_num_scheduled_tokens=sum(scheduled.values()) + sum(room.values()),
            num_draft_tokens={name: count for name, count in room.items() if count},
            finished_request_ids=finished,
        )

    def _cached(self, request_id: str, scheduled: dict[str, int]) -> CachedRequestData:
        request = self.naive.requests[request_id]
        num_computed = request.num_computed_tokens
        scheduled[request_id] = self._draw_num_tokens(len(request.token_ids) - num_computed)
        missing = -(-(num_computed + scheduled[request_id]) // BLOCK_SIZE) - len(request.block_ids)
        return CachedRequestData(request_id, self._blocks(missing), num_computed)

    def _room(self, cached: CachedRequestData, scheduled: dict[str, int]) -> int:
        """Room for drafts of a request that samples, with blocks for them."""
        request = self.naive.requests[cached.request_id]
        end = cached.num_computed_tokens + scheduled[cached.request_id]
        if self._is_steady or end < len(request.token_ids):
            return 0
        limit = min(MAX_NUM_DRAFTS, MAX_MODEL_LEN - end - 1)
        room = self._data.draw(st.integers(0, max(limit, 0)), label="room for drafts")
        num_blocks = len(request.block_ids) + len(cached.new_block_ids)
        cached.new_block_ids.extend(self._blocks(-(-(end + room) // BLOCK_SIZE) - num_blocks))
        return room

    def drafts(self, scheduled: SchedulerOutput) -> dict[str, list[int]]:
        counts = {
            name: self._data.draw(st.integers(0, room), label="drafts")
            for name, room in scheduled.num_draft_tokens.items()
        }
        return {name: [self._draw_token() for _ in range(count)] for name, count in counts.items() if count}

    def sampled(self, count: int) -> list[int]:
        return [self._draw_token() for _ in range(count)]

    def _draw_token(self) -> int:
        return self._data.draw(st.integers(0, 1), label="token")

    def _new(self, scheduled: dict[str, int]) -> NewRequestData:
        request_id = f"r{self._next_id}"
        self._next_id += 1
        token_ids = self._data.draw(st.lists(st.integers(0, 999), min_size=1, max_size=MAX_MODEL_LEN - 1))
        num_hit_blocks = self._data.draw(st.integers(0, (len(token_ids) - 1) // BLOCK_SIZE), label="hit blocks")
        num_computed = num_hit_blocks * BLOCK_SIZE
        scheduled[request_id] = self._draw_num_tokens(len(token_ids) - num_computed)
        blocks = self._blocks(-(-(num_computed + scheduled[request_id]) // BLOCK_SIZE))
        return new_request(request_id, token_ids, block_ids=blocks, num_computed=num_computed)

    def _draw_num_tokens(self, num_missing: int) -> int:
        limit = 1 if self._is_steady else min(num_missing, BUDGET // MAX_NUM_SEQS)
        return self._data.draw(st.sampled_from([1, limit]) | st.integers(1, limit), label="scheduled tokens")

    def _blocks(self, count: int) -> list[int]:
        first = self._next_block
        self._next_block += max(count, 0)
        return list(range(first, self._next_block))


def check_equal(
    inputs: StepInputs, naive: NaiveBatch, scheduled: SchedulerOutput, drafts: dict[str, list[int]]
) -> None:
    expected = naive.gather(scheduled.num_scheduled_tokens, drafts)
    forward, metadata = inputs.forward, inputs.forward.attention
    assert forward.token_ids.tolist() == expected.token_ids
    assert metadata.positions.tolist() == expected.positions
    assert metadata.slot_mapping.tolist() == expected.slot_mapping
    assert metadata.query_start_loc.tolist() == expected.query_start_loc
    assert metadata.seq_lens.tolist() == expected.seq_lens
    assert metadata.block_tables.tolist() == expected.block_tables
    assert metadata.block_tables.is_contiguous()
    counts = [count + len(drafts.get(name, ())) for name, count in scheduled.num_scheduled_tokens.items()]
    assert metadata.max_query_len == max(counts)
    assert metadata.max_seq_len == max(expected.seq_lens)
    assert forward.sample_indices.tolist() == expected.sample_indices
    assert inputs.sampled_request_ids == expected.sampled_request_ids
    assert inputs.sampled_lengths.tolist() == expected.sampled_lengths
    dtypes = [tensor.dtype for tensor in (forward.token_ids, metadata.positions, metadata.slot_mapping)]
    assert dtypes == [torch.int32, torch.int32, torch.int64]


@given(st.data(), st.integers(1, 12))
@settings(max_examples=150, deadline=None)
def test_flat_inputs_equal_those_built_token_by_token(data: DataObject, num_steps: int) -> None:
    batch, history = make_batch(), History(data)
    for _ in range(num_steps):
        scheduled = history.step()
        batch.update(scheduled)
        history.naive.update(scheduled)
        assert sorted(batch.request_ids) == sorted(history.naive.requests)
        assert len(batch) == len(history.naive.requests)
        if not scheduled.num_scheduled_tokens:
            continue
        drafts = history.drafts(scheduled)
        inputs = batch.gather(scheduled, drafts)
        check_equal(inputs, history.naive, scheduled, drafts)
        sampled = history.sampled(len(inputs.sampled_rows))
        kept = keep(batch, inputs, sampled)
        batch.trim(scheduled.num_draft_tokens)
        for name, count in scheduled.num_scheduled_tokens.items():
            history.naive.requests[name].num_computed_tokens += count
        for name, num_positions, token_ids in zip(inputs.sampled_request_ids, inputs.num_positions, kept, strict=True):
            assert token_ids == history.naive.keep(name, sampled[:num_positions], drafts.get(name, []))
            del sampled[:num_positions]
            request = history.naive.requests[name]
            request.num_computed_tokens = len(request.token_ids) - 1
            assert batch.tokens(name).tolist() == request.token_ids
        for name in scheduled.num_draft_tokens:
            history.naive.trim(name)


def keep(batch: InputBatch, inputs: StepInputs, sampled: list[int]) -> list[list[int]]:
    outcomes = [agreeing(run) for run in split_runs(inputs, sampled, batch.placed_tokens(inputs).tolist())]
    for request_id, outcome in zip(inputs.sampled_request_ids, outcomes, strict=True):
        batch.append_tokens(request_id, outcome.token_ids)
    return [outcome.token_ids for outcome in outcomes]


def gather(batch: InputBatch, counts: dict[str, int]) -> StepInputs:
    return batch.gather(SchedulerOutput(num_scheduled_tokens=counts), {})


def test_rows_move_with_their_sampling_parameters() -> None:
    batch = make_batch()
    for index in range(3):
        batch.add(new_request(f"r{index}", [index] * 4, block_ids=[index + 1], temperature=0.5 + index / 4))
    batch.remove(["r0"])
    assert batch.request_ids == ("r2", "r1")
    inputs = gather(batch, {"r1": 4, "r2": 4})
    metadata = batch.sampling_metadata(inputs.sampled_rows, inputs.sampled_lengths)
    assert metadata.temperature.tolist() == [0.75, 1.0]
    assert metadata.position.tolist() == [4, 4]
    assert inputs.forward.token_ids.tolist() == [1] * 4 + [2] * 4


def test_a_request_that_has_got_two_tokens_does_not_sample_behind_the_first() -> None:
    batch = make_batch()
    batch.add(new_request("r", [1, 2], block_ids=[1], num_computed=1))
    assert gather(batch, {"r": 1}).sampled_request_ids == ["r"]
    batch.append_tokens("r", [3, 4])
    batch.update(SchedulerOutput(cached_requests=[CachedRequestData("r", [], 2)]))
    inputs = gather(batch, {"r": 1})
    assert inputs.sampled_request_ids == []
    assert inputs.forward.token_ids.tolist() == [3]


def test_unknown_requests_can_be_dropped() -> None:
    batch = make_batch()
    batch.add(new_request("known", [1], block_ids=[1]))
    batch.remove(["unknown"])
    assert batch.request_ids == ("known",)


def test_a_preempted_request_starts_afresh_in_the_same_update() -> None:
    batch = make_batch()
    batch.add(new_request("r", [1, 2, 3, 4, 5], block_ids=[1, 2], num_computed=4))
    scheduled = SchedulerOutput(
        new_requests=[new_request("r", [1, 2, 3, 4, 5, 6], block_ids=[9, 8])],
        num_scheduled_tokens={"r": 6},
        total_num_scheduled_tokens=6,
        finished_request_ids=["r"],
    )
    batch.update(scheduled)
    inputs = batch.gather(scheduled, {})
    assert inputs.forward.attention.slot_mapping.tolist() == [36, 37, 38, 39, 32, 33]
    assert inputs.forward.attention.block_tables.tolist() == [[9, 8]]


def test_inputs_are_written_into_buffers_made_at_the_start() -> None:
    batch = make_batch()
    batch.add(new_request("r", [1, 2, 3], block_ids=[1]))
    first, second = gather(batch, {"r": 2}), gather(batch, {"r": 3})
    assert first.forward.token_ids.data_ptr() == second.forward.token_ids.data_ptr()
    assert first.forward.attention is not second.forward.attention
    assert (first.sampled_request_ids, second.sampled_request_ids) == ([], ["r"])


def test_unusable_logits_behind_a_right_draft_leave_the_draft_and_fail_the_next_step() -> None:
    batch = make_batch()
    batch.add(new_request("r", [1, 2, 3], block_ids=[1, 2]))
    inputs = batch.gather(SchedulerOutput(num_scheduled_tokens={"r": 3}), {"r": [7, 8]})
    assert keep(batch, inputs, [7, -1, 5]) == [[7]]
    assert batch.tokens("r").tolist() == [1, 2, 3, 7]


@pytest.mark.promise("SPEC-1")
def test_each_position_is_sampled_with_the_drafts_before_it_in_place() -> None:
    batch = make_batch()
    batch.add(new_request("r", [1, 2, 3], block_ids=[1, 2], repetition_penalty=2.0, min_tokens=2, stop_token_ids=[5]))
    inputs = batch.gather(SchedulerOutput(num_scheduled_tokens={"r": 3}), {"r": [7, 8]})
    metadata = batch.sampling_metadata(inputs.sampled_rows, inputs.sampled_lengths)
    assert metadata.position.tolist() == [3, 4, 5]
    seen = [metadata.tokens[row].token_ids.tolist() for row in range(3)]
    assert seen == [[1, 2, 3], [1, 2, 3, 7], [1, 2, 3, 7, 8]]
    assert sorted(metadata.suppressed) == [0, 1]
