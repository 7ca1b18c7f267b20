"""Adapters between the messages of the front, the files and the scheduler."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.unit.native.core.builders import Engine
from vllm_mxext.config.engine import LoRAConfig
from vllm_mxext.errors import AdapterError
from vllm_mxext.native.core.adapter_slots import AdapterSlots
from vllm_mxext.native.core.adapters import CoreAdapters
from vllm_mxext.native.core_messages import AdapterSpec, CoreInfo
from vllm_mxext.native.engine_core import EngineCore
from vllm_mxext.native.protocol import (
    AdapterKey,
    AdapterTier,
    EngineCoreOutput,
    EngineCoreRequest,
    FinishReason,
    ReadAdapter,
)
from vllm_mxext.sampling_params import SamplingParams


class FakeStore:
    """Files that are read when the test says so."""

    def __init__(self) -> None:
        self.reading: list[AdapterKey] = []
        self.ready: list[ReadAdapter] = []
        self.dropped: list[AdapterKey] = []
        self.is_automatic = True

    def start(self, spec: AdapterSpec) -> None:
        key = (spec.adapter_id, spec.generation)
        self.reading.append(key)
        if self.is_automatic:
            self.ready.append(ReadAdapter(key, 1000))

    def finished(self, timeout_s: float) -> Sequence[ReadAdapter]:
        ready, self.ready = self.ready, []
        return ready

    def drop(self, key: AdapterKey) -> None:
        self.dropped.append(key)


class Core:
    """An engine core over a fake store and a runner that always samples the same token."""

    def __init__(self, max_loras: int = 2, max_host: int = 2) -> None:
        slots = AdapterSlots(LoRAConfig(max_loras=max_loras, max_cpu_loras=max_host))
        engine = Engine(adapters=slots)
        self.store = FakeStore()
        self.core = EngineCore(
            engine.scheduler,
            engine,
            CoreInfo(99, 4),
            adapters=CoreAdapters(slots, self.store, engine.scheduler),
        )

    def add(self, request_id: str, adapter: AdapterKey = (0, 0), max_tokens: int = 2) -> None:
        params = SamplingParams(max_tokens=max_tokens)
        self.core.add_request(
            EngineCoreRequest(
                request_id, [1, 2, 3], params, seed=0, adapter_id=adapter[0], adapter_generation=adapter[1]
            )
        )

    def run(self, max_steps: int = 50) -> dict[str, EngineCoreOutput]:
        """Steps until nothing is left; returns the last output of each request."""
        last: dict[str, EngineCoreOutput] = {}
        for _ in range(max_steps):
            if not self.core.has_work:
                return last
            last |= {output.request_id: output for output in self.core.step().outputs}
        raise AssertionError("The core does not come to rest.")


def spec(adapter_id: int, generation: int = 1, *, is_pinned: bool = False) -> AdapterSpec:
    return AdapterSpec(adapter_id, generation, f"adapter {adapter_id}", "/somewhere", "huggingface", "print", is_pinned)


def test_loading_ends_when_the_files_have_been_read():
    core = Core()
    uses = core.core.load_adapter(spec(1))
    assert [(use.adapter_id, use.tier, use.num_bytes) for use in uses] == [(1, AdapterTier.HOST, 1000)]
    core.add("a", (1, 1))
    assert core.run()["a"].finish_reason is FinishReason.LENGTH


def test_an_answer_is_given_to_the_call_that_it_belongs_to():
    core = Core()
    core.store.is_automatic = False
    core.core.begin_load_adapter(7, spec(1), reads_now=True)
    core.core.begin_load_adapter(8, spec(2), reads_now=False)
    assert [answer.call_id for answer in core.core.take_adapter_answers()] == [8]
    core.add("base")
    assert core.core.step().outputs  # others are served meanwhile
    core.store.ready.append(ReadAdapter((1, 1), 5))
    core.core.step()
    (answer,) = core.core.take_adapter_answers()
    assert (answer.call_id, answer.error) == (7, None)
    assert [(use.adapter_id, use.num_bytes) for use in answer.adapters] == [(1, 5), (2, 0)]


def test_an_adapter_that_cannot_be_read_is_unknown_afterwards():
    core = Core()
    core.store.is_automatic = False
    core.store.ready.append(ReadAdapter((1, 1), error="It is broken."))
    with pytest.raises(AdapterError, match="It is broken"):
        core.core.load_adapter(spec(1))
    core.add("a", (1, 1))
    output = core.run()["a"]
    assert output.finish_reason is FinishReason.ERROR
    assert "does not know adapter 1" in str(output.error)


def test_an_adapter_that_was_known_stays_so_when_it_cannot_be_read_again():
    core = Core()
    core.core.load_adapter(spec(1), reads_now=False)
    core.store.is_automatic = False
    core.store.ready.append(ReadAdapter((1, 1), error="Not now."))
    with pytest.raises(AdapterError, match="Not now"):
        core.core.load_adapter(spec(1, is_pinned=True))
    core.store.is_automatic = True
    core.add("a", (1, 1))
    assert core.run()["a"].finish_reason is FinishReason.LENGTH


def test_a_new_core_that_is_told_of_a_pinned_adapter_reads_it_and_answers_nobody():
    core = Core()
    core.core.begin_load_adapter(0, spec(1, is_pinned=True), reads_now=True)
    core.run()
    assert core.store.reading == [(1, 1)]
    assert core.core.take_adapter_answers() == []


def test_requests_for_an_adapter_that_cannot_be_read_end_with_the_reason_and_others_go_on():
    core = Core()
    core.core.load_adapter(spec(1), reads_now=False)
    core.store.is_automatic = False
    core.store.ready.append(ReadAdapter((1, 1), error="Its files have changed."))
    core.add("a", (1, 1))
    core.add("base")
    outputs = core.run()
    assert (outputs["a"].finish_reason, outputs["a"].error) == (FinishReason.ERROR, "Its files have changed.")
    assert outputs["base"].finish_reason is FinishReason.LENGTH


def test_dropping_gives_memory_back_also_while_the_adapter_is_being_read():
    core = Core()
    core.store.is_automatic = False
    core.core.begin_load_adapter(7, spec(1), reads_now=True)
    core.core.begin_drop_adapter(8, 1, 1)
    answers = {answer.call_id: answer.error for answer in core.core.take_adapter_answers()}
    assert answers == {7: "The adapter was unloaded while it was being loaded.", 8: None}
    assert core.store.dropped == [(1, 1)]
    core.store.ready.append(ReadAdapter((1, 1), 5))  # too late
    core.run()
    assert core.core.take_adapter_answers() == []


@pytest.mark.promise("LORA-6")
def test_every_call_is_answered_however_many_adapters_are_to_be_read_at_once():
    core = Core(max_host=8)
    for adapter_id in range(1, 6):
        core.core.begin_load_adapter(adapter_id, spec(adapter_id), reads_now=True)
    answers = []
    while core.core.has_work:
        core.core.step()
        answers += core.core.take_adapter_answers()
    assert sorted((answer.call_id, answer.error) for answer in answers) == [(n, None) for n in range(1, 6)]
    assert core.store.reading == [(n, 1) for n in range(1, 6)]


@pytest.mark.promise("LORA-6")
def test_a_call_is_answered_when_there_turns_out_to_be_no_place_for_its_adapter():
    core = Core(max_loras=2, max_host=4)
    for adapter_id in (1, 2):
        core.core.load_adapter(spec(adapter_id))
        core.add(f"{adapter_id}", (adapter_id, 1), max_tokens=40)
    core.core.step()
    core.store.is_automatic = False
    for adapter_id in (3, 4, 5):
        core.core.begin_load_adapter(adapter_id, spec(adapter_id, is_pinned=adapter_id < 5), reads_now=True)
    core.store.ready += [ReadAdapter((3, 1), 5), ReadAdapter((4, 1), 5)]
    core.core.step()
    answers = core.core.take_adapter_answers()
    assert sorted(answer.call_id for answer in answers) == [3, 4, 5]
    assert core.store.reading == [(1, 1), (2, 1), (3, 1), (4, 1)]
    core.run()


def test_dropping_what_is_unknown_is_no_error():
    assert Core().core.drop_adapter(5, 1) == []


@pytest.mark.promise("LORA-6")
def test_standings_come_with_the_stats_when_they_change():
    core = Core()
    core.core.load_adapter(spec(1))
    core.add("a", (1, 1), max_tokens=4)
    told = []
    while core.core.has_work:
        stats = core.core.step().stats
        assert stats is not None
        told.append(stats.adapters)
    first, *between, last = told
    assert first is not None
    assert (first[0].tier, first[0].num_running) == (AdapterTier.SLOT, 1)
    assert between == [None] * len(between)
    assert last is not None
    assert last[0].num_running == 0


def test_pins_leave_a_place_for_the_others():
    core = Core(max_loras=1, max_host=2)
    core.core.load_adapter(spec(1, is_pinned=True))
    core.core.load_adapter(spec(1, 2, is_pinned=True))
    with pytest.raises(AdapterError, match=r"cannot be pinned.*--max-cpu-loras"):
        core.core.load_adapter(spec(2, is_pinned=True))
    core.core.load_adapter(spec(2))
    core.add("a", (2, 1))
    assert core.run()["a"].finish_reason is FinishReason.LENGTH


def test_the_weights_that_are_served_count_again_when_the_new_ones_cannot_be_read():
    core = Core(max_loras=1, max_host=1)
    core.core.load_adapter(spec(1))
    core.store.is_automatic = False
    core.store.ready.append(ReadAdapter((1, 2), error="Broken."))
    with pytest.raises(AdapterError, match="Broken"):
        core.core.load_adapter(spec(1, 2))
    core.store.is_automatic = True
    core.core.load_adapter(spec(2))
    assert core.store.dropped == [(1, 1)]


@pytest.mark.promise("LORA-6")
def test_what_was_told_last_is_always_how_adapters_stand():
    core = Core(max_loras=2, max_host=3)
    adapters = core.core._adapters
    assert adapters is not None
    for adapter_id in range(1, 6):
        core.core.load_adapter(spec(adapter_id), reads_now=adapter_id % 2 == 0)
    told = None
    for step in range(60):
        if step < 20:
            core.add(f"{step}", (1 + step * 3 % 5, 1), max_tokens=1 + step % 4)
        if step == 30:
            core.core.drop_adapter(2, 1)
        stats = core.core.step().stats
        assert stats is not None
        told = told if stats.adapters is None else stats.adapters
        assert told == adapters._slots.standings(adapters._scheduler.waiting.adapters)
    assert not core.core.has_work
