"""The persistent batch against a naive builder, over random histories."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DataObject

from tests.unit.native.worker.naive_batch import NaiveBatch
from vllm_mxext.native.protocol import CachedRequestData, NewRequestData, SchedulerOutput
from vllm_mxext.native.worker.input_batch import InputBatch, StepInputs
from vllm_mxext.native.worker.step_buffers import StepBuffers
from vllm_mxext.sampling_params import SamplingParams

MAX_NUM_SEQS = 5
MAX_MODEL_LEN = 40
BLOCK_SIZE = 4
BUDGET = 64
CPU = torch.device("cpu")


def make_batch() -> InputBatch:
    buffers = StepBuffers(BUDGET, MAX_NUM_SEQS, MAX_MODEL_LEN // BLOCK_SIZE, CPU)
    return InputBatch(max_num_seqs=MAX_NUM_SEQS, max_model_len=MAX_MODEL_LEN, block_size=BLOCK_SIZE, buffers=buffers)


def new_request(
    request_id: str, token_ids: list[int], *, block_ids: list[int], num_computed: int = 0, temperature: float = 0.0
) -> NewRequestData:
    return NewRequestData(
        request_id=request_id,
        token_ids=token_ids,
        num_prompt_tokens=len(token_ids),
        params=SamplingParams(temperature=temperature),
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
        self.naive = NaiveBatch(BLOCK_SIZE)

    def step(self) -> SchedulerOutput:
        requests = self.naive.requests
        finished = [request_id for request_id in requests if self._data.draw(st.booleans(), label="finishes")]
        full = [name for name, request in requests.items() if len(request.token_ids) >= MAX_MODEL_LEN]
        finished = [name for name in requests if name in finished or name in full]
        left = [name for name in requests if name not in finished]
        scheduled: dict[str, int] = {}
        cached = [self._cached(name, scheduled) for name in left if self._data.draw(st.booleans(), label="runs")]
        num_new = self._data.draw(st.integers(0, MAX_NUM_SEQS - len(left)), label="new requests")
        new = [self._new(scheduled) for _ in range(num_new)]
        order = self._data.draw(st.permutations(list(scheduled)), label="order")
        return SchedulerOutput(
            new_requests=new,
            cached_requests=cached,
            num_scheduled_tokens={name: scheduled[name] for name in order},
            total_num_scheduled_tokens=sum(scheduled.values()),
            finished_request_ids=finished,
        )

    def _cached(self, request_id: str, scheduled: dict[str, int]) -> CachedRequestData:
        request = self.naive.requests[request_id]
        num_computed = request.num_computed_tokens
        scheduled[request_id] = self._draw_num_tokens(len(request.token_ids) - num_computed)
        missing = -(-(num_computed + scheduled[request_id]) // BLOCK_SIZE) - len(request.block_ids)
        return CachedRequestData(request_id, self._blocks(missing), num_computed)

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
        limit = min(num_missing, BUDGET // MAX_NUM_SEQS)
        return self._data.draw(st.sampled_from([1, limit]) | st.integers(1, limit), label="scheduled tokens")

    def _blocks(self, count: int) -> list[int]:
        first = self._next_block
        self._next_block += max(count, 0)
        return list(range(first, self._next_block))


def check_equal(inputs: StepInputs, naive: NaiveBatch, scheduled: SchedulerOutput) -> None:
    expected = naive.gather(scheduled.num_scheduled_tokens)
    forward, metadata = inputs.forward, inputs.forward.attention
    assert forward.token_ids.tolist() == expected.token_ids
    assert metadata.positions.tolist() == expected.positions
    assert metadata.slot_mapping.tolist() == expected.slot_mapping
    assert metadata.query_start_loc.tolist() == expected.query_start_loc
    assert metadata.seq_lens.tolist() == expected.seq_lens
    assert metadata.block_tables.tolist() == expected.block_tables
    assert metadata.block_tables.is_contiguous()
    assert metadata.max_query_len == max(scheduled.num_scheduled_tokens.values())
    assert metadata.max_seq_len == max(expected.seq_lens)
    assert forward.sample_indices.tolist() == expected.sample_indices
    assert inputs.sampled_request_ids == expected.sampled_request_ids
    dtypes = [tensor.dtype for tensor in (forward.token_ids, metadata.positions, metadata.slot_mapping)]
    assert dtypes == [torch.int32, torch.int32, torch.int64]


@given(st.data(), st.integers(1, 12))
@settings(max_examples=150, deadline=None)
def test_flat_inputs_equal_those_built_token_by_token(data: DataObject, num_steps: int) -> None:
    batch, history = make_batch(), History(data)
    for step in range(num_steps):
        scheduled = history.step()
        batch.update(scheduled)
        history.naive.update(scheduled)
        assert sorted(batch.request_ids) == sorted(history.naive.requests)
        assert len(batch) == len(history.naive.requests)
        if not scheduled.num_scheduled_tokens:
            continue
        inputs = batch.gather(scheduled.num_scheduled_tokens)
        check_equal(inputs, history.naive, scheduled)
        sampled = np.arange(len(inputs.sampled_rows)) + 1000 * step
        batch.append_sampled(inputs.sampled_rows, sampled)
        for name, count in scheduled.num_scheduled_tokens.items():
            history.naive.requests[name].num_computed_tokens += count
        for name, token_id in zip(inputs.sampled_request_ids, sampled.tolist(), strict=True):
            history.naive.append_sampled(name, token_id)


def test_rows_move_with_their_sampling_parameters() -> None:
    batch = make_batch()
    for index in range(3):
        batch.add(new_request(f"r{index}", [index] * 4, block_ids=[index + 1], temperature=0.5 + index / 4))
    batch.remove(["r0"])
    assert batch.request_ids == ("r2", "r1")
    inputs = batch.gather({"r1": 4, "r2": 4})
    metadata = batch.sampling_metadata(inputs.sampled_rows)
    assert metadata.temperature.tolist() == [0.75, 1.0]
    assert metadata.position.tolist() == [4, 4]
    assert inputs.forward.token_ids.tolist() == [1] * 4 + [2] * 4


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
    inputs = batch.gather(scheduled.num_scheduled_tokens)
    assert inputs.forward.attention.slot_mapping.tolist() == [36, 37, 38, 39, 32, 33]
    assert inputs.forward.attention.block_tables.tolist() == [[9, 8]]


def test_inputs_are_written_into_buffers_made_at_the_start() -> None:
    batch = make_batch()
    batch.add(new_request("r", [1, 2, 3], block_ids=[1]))
    first, second = batch.gather({"r": 2}), batch.gather({"r": 3})
    assert first.forward.token_ids.data_ptr() == second.forward.token_ids.data_ptr()
    assert first.forward.attention is not second.forward.attention
    assert (first.sampled_request_ids, second.sampled_request_ids) == ([], ["r"])
