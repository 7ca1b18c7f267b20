"""Random histories of adapters that come, change, fail and go under an engine core whose files arrive in any order."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.property.simulated_runner import SimulatedRunner
from vllm_mxext.config.engine import LoRAConfig, SchedulerConfig
from vllm_mxext.native.core.adapter_slots import AdapterSlots
from vllm_mxext.native.core.adapters import CoreAdapters
from vllm_mxext.native.core.scheduler import Scheduler
from vllm_mxext.native.core_messages import AdapterSpec, CoreInfo
from vllm_mxext.native.engine_core import EngineCore
from vllm_mxext.native.protocol import (
    AdapterKey,
    AdapterTier,
    EngineCoreRequest,
    FinishReason,
    ModelRunnerOutput,
    ReadAdapter,
    SchedulerOutput,
)
from vllm_mxext.sampling_params import SamplingParams

MAX_MODEL_LEN = 24
NUM_IDS = 6


class Store:
    """Files that are read when the test says so; what is dropped while it is read is reported like all others."""

    def __init__(self) -> None:
        self.reading: list[AdapterKey] = []
        self.ready: list[ReadAdapter] = []
        self.dropped_early: set[AdapterKey] = set()
        self.held: set[AdapterKey] = set()
        self.slots: dict[int, AdapterKey] = {}
        self.in_use: set[AdapterKey] = set()

    def start(self, spec: AdapterSpec) -> None:
        key = (spec.adapter_id, spec.generation)
        assert key not in self.held, "What is held is read again."
        assert key not in self.reading, "It is being read already."
        self.reading.append(key)

    def arrive(self, key: AdapterKey, *, is_broken: bool) -> None:
        self.reading.remove(key)
        if is_broken or key in self.dropped_early:
            self.ready.append(ReadAdapter(key, error="It is broken."))
        else:
            self.ready.append(ReadAdapter(key, 10))

    def finished(self, timeout_s: float) -> Sequence[ReadAdapter]:
        ready, self.ready = self.ready, []
        self.held |= {read.key for read in ready if read.error is None}
        return ready

    def drop(self, key: AdapterKey) -> None:
        assert key not in self.in_use, f"{key} was dropped while it runs."
        if key in self.reading or any(read.key == key for read in self.ready):
            self.dropped_early.add(key)
            self.ready = [ReadAdapter(key, error="dropped") if read.key == key else read for read in self.ready]
        self.held.discard(key)
        self.slots = {slot: placed for slot, placed in self.slots.items() if placed != key}


class Runner:
    """Checks that every row finds its adapter in its slot, and every key in its block."""

    def __init__(self, machine: AdapterMachine, num_blocks: int, block_size: int) -> None:
        self._machine = machine
        self._inner = SimulatedRunner(num_blocks, block_size, machine.root_of)
        self._slot_of: dict[str, int] = {}
        self.fails_next = False

    def execute(self, step: SchedulerOutput) -> ModelRunnerOutput:
        if self.fails_next:
            self.fails_next = False
            self._inner.fail(step)
            self._machine.num_resets += 1
            raise RuntimeError("The forward pass failed.")
        store = self._machine.store
        for slot, key in step.adapter_slots.items():
            assert key in store.held, f"{key} is put into a slot and not in memory."
            store.slots[slot] = key
        for new in step.new_requests:
            self._slot_of[new.request_id] = new.adapter_slot
        adapters = set()
        for request_id in step.num_scheduled_tokens:
            request = self._machine.requests[request_id]
            key, slot = (request.adapter_id, request.adapter_generation), self._slot_of[request_id]
            assert (slot == 0) == (not request.adapter_id)
            if slot:
                assert store.slots.get(slot) == key, f"{request_id} runs with {store.slots.get(slot)} instead of {key}."
                assert key in store.held
                adapters.add(key)
        assert len(adapters) <= self._machine.config.max_loras
        return self._inner.execute(step)


class AdapterMachine(RuleBasedStateMachine):
    """The front's side: names, generations and users, as `LoRARegistry` keeps them."""

    @initialize(
        max_loras=st.integers(1, 3),
        num_more=st.integers(0, 2),
        max_num_seqs=st.sampled_from([1, 2, 4, 8]),
        policy=st.sampled_from(["fcfs", "priority"]),
        num_spare_blocks=st.integers(0, 12),
        enable_prefix_caching=st.booleans(),
    )
    def start(
        self,
        max_loras: int,
        num_more: int,
        max_num_seqs: int,
        policy: str,
        num_spare_blocks: int,
        enable_prefix_caching: bool,
    ) -> None:
        self.config = LoRAConfig(max_loras=max_loras, max_cpu_loras=max_loras + num_more)
        num_blocks = 1 + MAX_MODEL_LEN // 2 + num_spare_blocks
        self.slots = AdapterSlots(self.config)
        self.scheduler = Scheduler(
            SchedulerConfig(max_num_batched_tokens=32, max_num_seqs=max_num_seqs, policy=policy),  # type: ignore[arg-type]
            num_blocks=num_blocks,
            block_size=2,
            enable_prefix_caching=enable_prefix_caching,
            max_model_len=MAX_MODEL_LEN,
            adapters=self.slots,
        )
        self.enable_prefix_caching = enable_prefix_caching
        self.requests: dict[str, EngineCoreRequest] = {}
        self.ended: dict[str, FinishReason] = {}
        self.num_resets = 0
        self.store = Store()
        self.runner = Runner(self, num_blocks, 2)
        adapters = CoreAdapters(self.slots, self.store, self.scheduler)
        self.core = EngineCore(self.scheduler, self.runner, CoreInfo(num_blocks, 2), adapters=adapters)
        self.served: dict[int, AdapterKey] = {}
        self.known: set[AdapterKey] = set()
        self.num_generations: dict[int, int] = {}
        self.calls: dict[int, AdapterKey | None] = {}
        """Open calls -> the generation that one of them loads."""
        self.num_calls = 0

    def root_of(self, request_id: str) -> bytes:
        request = self.requests[request_id]
        sharers = None if self.enable_prefix_caching else request_id
        key = (request.adapter_id, request.adapter_generation, request.adapter_scale if request.adapter_id else 1.0)
        return repr((key, sharers, self.num_resets)).encode()

    # --- what can happen ---

    @rule(adapter_id=st.integers(1, NUM_IDS), is_pinned=st.sampled_from([False, False, True]), reads_now=st.booleans())
    def load(self, adapter_id: int, is_pinned: bool, reads_now: bool) -> None:
        if any(key is not None and key[0] == adapter_id for key in self.calls.values()):
            return  # one after the other for one name
        generation = self.num_generations[adapter_id] = self.num_generations.get(adapter_id, 0) + 1
        key = (adapter_id, generation)
        self.known.add(key)
        call_id = self.call(key)
        spec = AdapterSpec(adapter_id, generation, f"adapter {adapter_id}", "/a", "huggingface", "print", is_pinned)
        self.core.begin_load_adapter(call_id, spec, reads_now=reads_now)
        self.take_answers()

    @rule(adapter_id=st.integers(1, NUM_IDS))
    def unload(self, adapter_id: int) -> None:
        if self.served.pop(adapter_id, None) is not None:
            self.drop_unused()

    @rule(
        adapter_id=st.integers(0, NUM_IDS),
        prompt=st.lists(st.integers(0, 1), min_size=1, max_size=8),
        max_tokens=st.integers(1, 14),
        priority=st.integers(-1, 1),
        scale=st.sampled_from([1.0, 0.5]),
    )
    def add(self, adapter_id: int, prompt: list[int], max_tokens: int, priority: int, scale: float) -> None:
        adapter = self.served.get(adapter_id, (0, 0))
        request = EngineCoreRequest(
            f"r{len(self.requests)}",
            prompt,
            SamplingParams(max_tokens=max_tokens, ignore_eos=True),
            seed=0,
            priority=priority,
            arrival_s=float(len(self.requests)),
            adapter_id=adapter[0],
            adapter_generation=adapter[1],
            adapter_scale=scale,
        )
        self.requests[request.request_id] = request
        self.core.add_request(request)

    @rule(adapters=st.lists(st.integers(0, NUM_IDS), min_size=4, max_size=12))
    def flood(self, adapters: list[int]) -> None:
        for adapter_id in adapters:
            self.add(adapter_id, [1], 12, 0, 1.0)

    @rule(num_steps=st.integers(1, 8))
    def run_steps(self, num_steps: int) -> None:
        for _ in range(num_steps):
            self.step()

    @rule(data=st.data(), is_broken=st.sampled_from([False, False, False, True]))
    @precondition(lambda self: self.store.reading)
    def arrive(self, data: st.DataObject, is_broken: bool) -> None:
        self.store.arrive(data.draw(st.sampled_from(self.store.reading)), is_broken=is_broken)

    @rule(data=st.data())
    @precondition(lambda self: self.scheduler.open_request_ids)
    def abort(self, data: st.DataObject) -> None:
        self.core.abort(data.draw(st.lists(st.sampled_from(self.scheduler.open_request_ids), min_size=1, max_size=3)))

    @rule()
    def fail_step(self) -> None:
        self.runner.fails_next = True
        self.step()
        self.runner.fails_next = False

    # --- what must hold ---

    @invariant()
    def host_memory_is_bounded(self) -> None:
        latest = {key for key in self.known if key == max(one for one in self.known if one[0] == key[0])}
        assert len(self.store.held & latest) <= self.config.max_cpu_loras + 1  # one whose successor could not be read
        assert self.store.held <= self.known
        assert set(self.store.slots.values()) <= self.store.held

    @invariant()
    def standings_agree_with_the_runner(self) -> None:
        for use in self.slots.standings(self.scheduler.waiting.adapters):
            key = (use.adapter_id, use.generation)
            assert (use.tier is not AdapterTier.DISK) == (key in self.store.held)

    def teardown(self) -> None:
        if not hasattr(self, "core"):
            return
        self.settle()
        assert self.ended.keys() == self.requests.keys()
        assert not self.calls, "A call has no answer."
        for adapter_id in list(self.served):
            self.unload(adapter_id)
        self.settle()
        assert (self.known, self.store.held, self.store.slots, self.calls) == (set(), set(), {}, {})
        self.scheduler.check_integrity()

    def settle(self) -> None:
        """Steps with all files arriving until nothing is left to do."""
        limit = 20 + sum(len(request.prompt_token_ids) + 16 for request in self.requests.values())
        for _ in range(limit):
            for key in list(self.store.reading):
                self.store.arrive(key, is_broken=False)
            if not self.core.has_work:
                return
            self.step()
        raise AssertionError(f"Still busy after {limit} steps with {self.scheduler.open_request_ids}.")

    # --- the front ---

    def step(self) -> None:
        self.take_answers()
        self.store.in_use = {request.adapter for request in self.scheduler._running if request.adapter is not None}
        try:
            outputs = self.core.step().outputs
        except RuntimeError:
            outputs = []
        for output in outputs:
            if output.finish_reason is not None:
                assert output.request_id not in self.ended
                self.ended[output.request_id] = output.finish_reason
        self.store.in_use = {request.adapter for request in self.scheduler._running if request.adapter is not None}
        self.take_answers()

    def call(self, key: AdapterKey | None) -> int:
        self.num_calls += 1
        self.calls[self.num_calls] = key
        return self.num_calls

    def take_answers(self) -> None:
        for answer in self.core.take_adapter_answers():
            key = self.calls.pop(answer.call_id)
            if key is None:
                continue
            if answer.error is None:
                self.served[key[0]] = key
            else:
                self.known.discard(key)
        self.drop_unused()

    def drop_unused(self) -> None:
        used = set(self.served.values()) | {key for key in self.calls.values() if key is not None}
        for request_id in self.requests.keys() - self.ended.keys():
            request = self.requests[request_id]
            used.add((request.adapter_id, request.adapter_generation))
        for key in self.known - used:
            self.known.discard(key)
            self.core.begin_drop_adapter(self.call(None), *key)


_QUIET = settings(deadline=None, suppress_health_check=list(HealthCheck))


@pytest.mark.promise("LORA-6")
class TestAdapters(AdapterMachine.TestCase):
    settings = settings(_QUIET, max_examples=60, stateful_step_count=40)


@pytest.mark.slow
class TestAdaptersForLong(AdapterMachine.TestCase):
    settings = settings(_QUIET, max_examples=1_000, stateful_step_count=60)
