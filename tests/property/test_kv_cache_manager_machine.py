"""Random histories of the KV cache manager against a memory that remembers what each slot holds."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.property.simulated_runner import kv_content
from vllm_mxext.native.core.kv_cache_manager import KVCacheManager
from vllm_mxext.native.core.request import Request
from vllm_mxext.native.protocol import EngineCoreRequest
from vllm_mxext.sampling_params import SamplingParams

MAX_MODEL_LEN = 30


class KVCacheManagerMachine(RuleBasedStateMachine):
    """Requests over two tokens, so that equal prefixes are common, start, grow, end and come back."""

    @initialize(num_blocks=st.integers(2, 16), block_size=st.integers(1, 4), enable_prefix_caching=st.booleans())
    def start(self, num_blocks: int, block_size: int, enable_prefix_caching: bool) -> None:
        self.kv = KVCacheManager(
            num_blocks=num_blocks, block_size=block_size, enable_prefix_caching=enable_prefix_caching
        )
        self.memory: dict[int, bytes] = {}
        self.running: list[Request] = []
        self.waiting: list[Request] = []
        self.epoch_of: dict[str, int] = {}
        self.epoch = 0
        self.num_added = 0

    def contents(self, request: Request) -> list[bytes]:
        source = request.source
        sharers = None if self.kv.enable_prefix_caching else (source.group_id or source.request_id)
        before = repr((source.adapter_id, sharers, self.epoch_of[request.request_id])).encode()
        result = []
        for token_id in request.token_ids:
            before = kv_content(before, token_id)
            result.append(before)
        return result

    def slot(self, request: Request, position: int) -> int:
        size = self.kv.block_size
        return request.block_ids[position // size] * size + position % size

    def compute(self, request: Request, num_tokens: int) -> None:
        contents = self.contents(request)
        for position in range(request.num_computed_tokens, request.num_computed_tokens + num_tokens):
            block_id = request.block_ids[position // self.kv.block_size]
            assert self.kv.pool.ref_count(block_id) == 1, "A shared block is written."
            self.memory[self.slot(request, position)] = contents[position]
        request.num_computed_tokens += num_tokens
        self.kv.register_full_blocks(request, request.num_computed_tokens)

    @rule(
        token_ids=st.lists(st.integers(0, 1), min_size=1, max_size=12),
        adapter_id=st.sampled_from([0, 0, 0, 1]),
        group_id=st.sampled_from([None, "a", "b"]),
    )
    def add(self, token_ids: list[int], adapter_id: int, group_id: str | None) -> None:
        self.num_added += 1
        source = EngineCoreRequest(
            f"r{self.num_added}", token_ids, SamplingParams(), 0, adapter_id=adapter_id, group_id=group_id
        )
        self.waiting.append(Request(source, order_key=(self.num_added,), max_model_len=MAX_MODEL_LEN))

    @rule(data=st.data())
    @precondition(lambda self: self.waiting)
    def begin(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(self.waiting))
        self.epoch_of[request.request_id] = self.epoch
        prefix = self.kv.find_prefix(request)
        num_prefix_tokens = len(prefix) * self.kv.block_size
        assert num_prefix_tokens < request.num_tokens
        num_tokens = data.draw(st.integers(1, request.num_tokens - num_prefix_tokens))
        num_free = self.kv.num_free_blocks
        num_taken = self.kv.num_blocks_taken(num_prefix_tokens + num_tokens, prefix)
        block_ids = self.kv.allocate(request, num_tokens, prefix)
        assert (block_ids is None) == (num_taken > num_free)
        if block_ids is None:
            assert self.kv.num_free_blocks == num_free
            assert request.block_ids == []
            return
        assert self.kv.num_free_blocks == num_free - num_taken
        assert request.block_ids == [*prefix, *block_ids]
        assert request.num_computed_tokens == num_prefix_tokens
        self.waiting.remove(request)
        self.running.append(request)
        self.compute(request, num_tokens)

    @rule(data=st.data(), sampled=st.lists(st.integers(0, 1), max_size=4))
    @precondition(lambda self: self.running)
    def go_on(self, data: st.DataObject, sampled: list[int]) -> None:
        request = data.draw(st.sampled_from(self.running))
        request.token_ids += sampled[: MAX_MODEL_LEN - request.num_tokens]
        num_missing = request.num_tokens - request.num_computed_tokens
        if num_missing == 0:
            return
        num_tokens = data.draw(st.integers(1, num_missing))
        table = request.block_ids.copy()
        block_ids = self.kv.allocate(request, num_tokens)
        assert request.block_ids == table + (block_ids or [])
        if block_ids is not None:
            assert len(request.block_ids) == self.kv.num_blocks_for(request.num_computed_tokens + num_tokens)
            self.compute(request, num_tokens)

    @rule(data=st.data(), comes_back=st.booleans())
    @precondition(lambda self: self.running)
    def free(self, data: st.DataObject, comes_back: bool) -> None:
        request = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        self.kv.free(request)
        assert (request.block_ids, request.num_computed_tokens) == ([], 0)
        if comes_back:
            self.waiting.append(request)

    @rule()
    def reset_prefix_cache(self) -> None:
        self.epoch += 1
        self.kv.reset_prefix_cache()

    @invariant()
    def every_request_reads_what_it_should(self) -> None:
        self.kv.check_integrity(self.running)
        for request in self.running:
            contents = self.contents(request)
            for position in range(request.num_computed_tokens):
                assert self.memory[self.slot(request, position)] == contents[position]


@pytest.mark.promise("CORE-1")
class TestKVCacheManager(KVCacheManagerMachine.TestCase):
    settings = settings(deadline=None, max_examples=80, stateful_step_count=40)
