"""Which adapters have a place, and who may start."""

from __future__ import annotations

import pytest

from tests.unit.native.core.builders import Engine
from vllm_mxext.config.engine import LoRAConfig
from vllm_mxext.native.core.adapter_slots import MAX_PASSES, AdapterSlots
from vllm_mxext.native.protocol import AdapterKey, AdapterTier

A, B, C, D = ((index, 1) for index in range(1, 5))


class ServedAdapters:
    """A scheduler whose adapters are read at once, or when `arrive()` is called."""

    def __init__(self, *keys: AdapterKey, max_loras: int = 2, max_host: int = 3, reads_at_once: bool = True) -> None:
        self.slots = AdapterSlots(LoRAConfig(max_loras=max_loras, max_cpu_loras=max_host))
        self.engine = Engine(adapters=self.slots, num_blocks=400)
        self.reads_at_once = reads_at_once
        self.reading: list[AdapterKey] = []
        self.dropped: list[AdapterKey] = []
        self.placed: dict[int, AdapterKey] = {}
        self.started: list[str] = []
        for key in keys:
            self.slots.add(key, is_pinned=False, reads_now=False)

    def add(self, request_id: str, key: AdapterKey | None = None, max_tokens: int = 4) -> None:
        adapter_id, generation = key or (0, 0)
        self.engine.add(request_id, max_tokens=max_tokens, adapter_id=adapter_id, adapter_generation=generation)

    def arrive(self) -> None:
        for key in self.reading:
            self.slots.set_loaded(key, 100)
        self.reading.clear()

    def step(self) -> None:
        changes = self.slots.plan_host(self.engine.scheduler.waiting.next_ones())
        self.reading += changes.loads
        self.dropped += changes.drops
        if self.reads_at_once:
            self.arrive()
        scheduled, _ = self.engine.step()
        self.placed |= scheduled.adapter_slots
        for new in scheduled.new_requests:
            request = self.engine.scheduler._requests.get(new.request_id)
            if request is not None and request.adapter is not None:
                assert self.placed[new.adapter_slot] == request.adapter
            self.started.append(new.request_id)

    def run(self, num_steps: int = 200) -> None:
        for _ in range(num_steps):
            if not self.engine.scheduler.has_work:
                return
            self.step()
        raise AssertionError(f"Not all requests have ended: {self.engine.scheduler.open_request_ids}")

    def tiers(self) -> dict[AdapterKey, AdapterTier]:
        return {(use.adapter_id, use.generation): use.tier for use in self.slots.standings({})}


def test_requests_with_different_adapters_and_with_none_run_together():
    served = ServedAdapters(A, B)
    for name, key in (("a", A), ("b", B), ("c", None), ("d", A)):
        served.add(name, key)
    served.step()
    assert served.started == ["a", "b", "c", "d"]
    assert served.placed == {1: A, 2: B}


def test_a_request_waits_until_its_adapter_has_been_read_and_others_pass_it():
    served = ServedAdapters(A, reads_at_once=False)
    served.add("a", A)
    served.add("b")
    served.step()
    assert served.started == ["b"]
    assert served.reading == [A]
    served.arrive()
    served.step()
    assert served.started == ["b", "a"]


def test_more_adapters_than_slots_take_turns():
    served = ServedAdapters(A, B, C, D)
    for name, key in (("a", A), ("b", B), ("c", C), ("d", D), ("e", A)):
        served.add(name, key)
    served.step()
    assert served.started == ["a", "b", "e"]
    served.run()
    assert sorted(served.started) == ["a", "b", "c", "d", "e"]


@pytest.mark.promise("LORA-6")
def test_a_request_for_a_rare_adapter_is_served_beside_endless_traffic_for_popular_ones():
    served = ServedAdapters(A, B, C, max_loras=2, max_host=2)
    for step in range(100):
        served.add(f"popular a {step}", A, max_tokens=3)
        served.add(f"popular b {step}", B, max_tokens=3)
        if step == 3:
            served.add("rare", C)
        served.step()
        if "rare" in served.started:
            break
    before_rare = served.started[: served.started.index("rare")]
    assert len(before_rare) >= 8 + MAX_PASSES  # they were let pass as long as that was fair


def test_only_the_slot_that_is_soonest_free_is_closed_for_a_request_that_waits_too_long():
    served = ServedAdapters(A, B, C, max_loras=2, max_host=3)
    served.add("long", A, max_tokens=40)
    served.add("short", B, max_tokens=30)
    served.step()
    served.add("rare", C)
    for index in range(MAX_PASSES):
        served.add(f"passing {index}", None, max_tokens=1)
    for _ in range(6):
        served.step()
    served.add("behind a", A, max_tokens=1)
    served.add("behind b", B, max_tokens=1)
    served.step()
    assert "behind a" in served.started
    assert "behind b" not in served.started
    assert "rare" not in served.started


def test_an_adapter_that_running_requests_use_keeps_its_place():
    served = ServedAdapters(A, B, C, max_loras=1, max_host=1)
    served.add("a", A, max_tokens=20)
    served.step()
    served.add("b", B)
    for _ in range(5):
        served.step()
    assert served.dropped == []
    assert served.tiers()[A] is AdapterTier.SLOT
    served.run()
    assert served.dropped == [A]
    assert served.tiers() == {A: AdapterTier.DISK, B: AdapterTier.SLOT, C: AdapterTier.DISK}


def test_the_least_recently_used_adapter_leaves_host_memory_first():
    served = ServedAdapters(A, B, C, D, max_loras=1, max_host=3)
    for name, key in (("a", A), ("b", B), ("c", C), ("again", A), ("d", D)):
        served.add(name, key)
        served.run()
    assert served.dropped == [B]


def test_a_pinned_adapter_stays_in_host_memory():
    served = ServedAdapters(B, C, D, max_loras=1, max_host=2)
    served.slots.add(A, is_pinned=True, reads_now=True)
    for name, key in (("b", B), ("c", C), ("d", D)):
        served.add(name, key)
        served.run()
    assert served.tiers()[A] is AdapterTier.HOST
    assert served.dropped == [B, C]


@pytest.mark.promise("LORA-6")
def test_pins_that_may_come_back_leave_a_place_too():
    """A pinned generation holds its place again when the one that supersedes it cannot be read."""
    newer = (A[0], A[1] + 1)
    served = ServedAdapters(C, max_loras=1, max_host=2)
    served.slots.add(A, is_pinned=True, reads_now=True)
    served.step()
    served.slots.add(newer, is_pinned=False, reads_now=False)
    assert served.slots.can_pin(newer)
    assert not served.slots.can_pin(B)
    served.slots.remove(newer)
    served.add("c", C)
    served.run()
    assert served.started == ["c"]


def test_an_adapter_that_was_asked_for_is_read_without_a_request():
    served = ServedAdapters()
    served.slots.add(A, is_pinned=False, reads_now=True)
    assert served.slots.is_asked(A)
    served.step()
    assert not served.slots.is_asked(A)
    assert served.tiers() == {A: AdapterTier.HOST}


def test_nobody_waits_for_an_adapter_that_was_asked_for_while_host_memory_is_full():
    served = ServedAdapters(A, max_loras=1, max_host=1)
    served.add("a", A, max_tokens=20)
    served.step()
    served.slots.add(B, is_pinned=False, reads_now=True)
    served.step()
    assert not served.slots.is_asked(B)
    assert served.tiers()[B] is AdapterTier.DISK


def test_an_older_generation_keeps_its_place_until_it_is_removed():
    newer = (A[0], A[1] + 1)
    served = ServedAdapters(A, B, C, max_loras=2, max_host=2)
    served.add("old", A, max_tokens=4)
    served.step()
    served.slots.add(newer, is_pinned=False, reads_now=False)
    served.add("new", newer)
    served.run()
    for name, key in (("b", B), ("c", C)):
        served.add(name, key)
        served.run()
    assert A not in served.dropped
    served.slots.remove(A)
    assert A not in served.slots


def test_slots_are_told_again_after_a_step_that_failed():
    served = ServedAdapters(A)
    served.add("a", A)
    served.step()
    scheduler = served.engine.scheduler
    scheduled = scheduler.schedule()
    scheduler.fail_step(scheduled, "The device fell off.")
    served.add("again", A)
    served.placed.clear()
    served.step()
    assert served.placed == {1: A}


def test_requests_end_when_their_adapter_cannot_be_read():
    served = ServedAdapters(A, reads_at_once=False)
    served.add("a", A)
    served.step()
    served.slots.set_failed(A)
    served.engine.scheduler.fail_adapter(A, "It is gone.")
    _, outputs = served.engine.step()
    assert [(output.request_id, output.error) for output in outputs.outputs] == [("a", "It is gone.")]
    served.engine.scheduler.check_integrity()


def test_a_preempted_request_finds_its_adapter_again():
    served = ServedAdapters(A, B, max_loras=1, max_host=1)
    served.engine = Engine(adapters=served.slots, num_blocks=8, block_size=4, max_model_len=28)
    served.add("a", A, max_tokens=20)
    served.add("b", A, max_tokens=20)
    served.add("c", B, max_tokens=20)
    served.run()
    assert served.started.count("b") > 1 or served.started.count("a") > 1
    assert set(served.started) == {"a", "b", "c"}


@pytest.mark.promise("LORA-6")
def test_a_request_gets_a_place_in_host_memory_that_pins_and_popular_adapters_fill():
    served = ServedAdapters(A, B, C, max_loras=2, max_host=2)
    served.slots.add(A, is_pinned=True, reads_now=True)
    for step in range(200):
        served.add(f"popular {step}", B, max_tokens=3)
        if step == 3:
            served.add("rare", C)
        served.step()
        if "rare" in served.started:
            return
    raise AssertionError("It was never served.")
