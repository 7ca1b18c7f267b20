"""Names and generations of adapters, and what may be dropped when."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from vllm_mxext.engine.client import AdapterInfo, AdapterSource
from vllm_mxext.engine.lora_registry import LoRARegistry
from vllm_mxext.errors import AdapterConflictError, AdapterError, AdapterNotFoundError
from vllm_mxext.lora.files import AdapterFiles
from vllm_mxext.native.protocol import AdapterKey, AdapterTier, AdapterUse

pytestmark = pytest.mark.promise("LORA-11")


def files(path: str = "/a", fingerprint: str = "1", base: str | None = None) -> AdapterFiles:
    return AdapterFiles(Path(path), "gguf", fingerprint, {}, base_model_name=base)


def load(
    registry: LoRARegistry,
    name: str = "a",
    found: AdapterFiles | None = None,
    *,
    replaces: bool = False,
    pins: bool = False,
) -> AdapterKey | None:
    """Serves an adapter; returns what is to be dropped for it."""
    found = found or files()
    version = registry.prepare(AdapterSource(name, str(found.path)), found, replaces=replaces, pins=pins)
    return registry.serve(version)


@pytest.fixture
def registry() -> LoRARegistry:
    return LoRARegistry(["model", "alias"], clock=lambda: 5.0)


def test_a_loaded_adapter_is_told_with_what_its_files_say(registry: LoRARegistry) -> None:
    load(registry, found=files(base="m"))
    source = AdapterSource("a", "/a", "gguf", "m")
    assert registry.adapters == (AdapterInfo(source, 1, 1, 0, 0, "disk", 0, 0, False, 5.0),)
    registry.update([AdapterUse(1, 1, AdapterTier.SLOT, 100, 2, 3), AdapterUse(9, 9, AdapterTier.HOST)])
    assert registry.info("a") == AdapterInfo(source, 1, 1, 0, 100, "slot", 2, 3, False, 5.0)
    registry.update([])
    assert registry.info("a").tier == "disk"


def test_only_names_that_are_served_count_as_such(registry: LoRARegistry) -> None:
    load(registry, "a")
    assert [registry.serves(name) for name in ("a", "b")] == [True, False]
    registry.remove("a")
    assert not registry.serves("a")


def test_what_the_user_says_of_the_base_model_beats_the_files(registry: LoRARegistry) -> None:
    version = registry.prepare(AdapterSource("a", "/a", base_model_name="mine"), files(base="m"))
    assert version.source.base_model_name == "mine"


@pytest.mark.parametrize("name", ["", "x" * 129, "model:a", "a\n", "a\0", "a\x7f"])
def test_a_name_that_is_none_is_refused(registry: LoRARegistry, name: str) -> None:
    with pytest.raises(AdapterError, match="The name of an adapter must"):
        load(registry, name)


@pytest.mark.parametrize("name", ["x" * 128, "a/b", "a b", "数学", "MODEL"])
def test_other_names_are_names(registry: LoRARegistry, name: str) -> None:
    load(registry, name)
    assert registry.info(name).name == name


@pytest.mark.parametrize("name", ["model", "alias"])
def test_no_adapter_is_called_as_the_model_is(registry: LoRARegistry, name: str) -> None:
    with pytest.raises(AdapterConflictError, match=f"The model is called '{name}'"):
        load(registry, name)


def test_the_same_files_again_change_nothing_but_the_pin(registry: LoRARegistry) -> None:
    load(registry)
    again = registry.prepare(AdapterSource("a", "/a"), files())
    assert (again.is_new, again.has_news, again.key) == (False, False, (1, 1))
    pinned = registry.prepare(AdapterSource("a", "/a"), files(), pins=True)
    assert (pinned.is_new, pinned.has_news, pinned.key) == (False, True, (1, 1))
    assert not registry.info("a").is_pinned
    assert registry.serve(pinned) is None
    assert registry.info("a").is_pinned


@pytest.mark.parametrize(("found", "part"), [(files("/b"), "from '/a'"), (files("/a", "2"), "from other files")])
def test_other_files_under_a_taken_name_are_a_conflict_that_names_the_way_out(
    registry: LoRARegistry, found: AdapterFiles, part: str
) -> None:
    load(registry)
    with pytest.raises(AdapterConflictError, match="load_inplace") as caught:
        load(registry, found=found)
    assert part in str(caught.value)
    assert registry.info("a").generation == 1


def test_replacing_makes_a_new_generation_and_drops_the_old_one_if_nobody_uses_it(registry: LoRARegistry) -> None:
    load(registry)
    assert load(registry, found=files("/b"), replaces=True) == (1, 1)
    assert load(registry, found=files("/b"), replaces=True) == (1, 2)
    assert [(info.adapter_id, info.generation) for info in registry.adapters] == [(1, 3)]


@pytest.mark.promise("LORA-12")
def test_a_user_keeps_the_generation_that_the_name_meant(registry: LoRARegistry) -> None:
    load(registry, pins=True)
    old, second = registry.acquire("a"), registry.acquire("a")
    assert load(registry, found=files("/b"), replaces=True, pins=True) is None
    new = registry.acquire("a")
    assert (old, second, new) == ((1, 1), (1, 1), (1, 2))
    assert [(spec.generation, spec.is_pinned) for spec in registry.specs] == [(1, False), (2, True)]
    assert registry.release(old) is None
    assert registry.release(second) == (1, 1)
    assert registry.release(new) is None
    assert [spec.generation for spec in registry.specs] == [2]


@pytest.mark.promise("LORA-12")
def test_unloading_takes_the_name_at_once_and_the_weights_when_the_last_user_leaves(registry: LoRARegistry) -> None:
    load(registry)
    key = registry.acquire("a")
    info, dropped = registry.remove("a")
    assert (info.name, dropped) == ("a", None)
    with pytest.raises(AdapterNotFoundError, match="'a'"):
        registry.acquire("a")
    with pytest.raises(AdapterNotFoundError, match="'a'"):
        registry.remove("a")
    load(registry)
    assert registry.acquire("a") == (2, 1), "an id is never used again"
    assert registry.release(key) == key
    assert registry.remove("a")[1] is None


def test_a_generation_that_could_not_be_loaded_is_not_used_again(registry: LoRARegistry) -> None:
    load(registry)
    failed = registry.prepare(AdapterSource("a", "/b"), files("/b"), replaces=True)
    assert failed.key == (1, 2)
    assert load(registry, found=files("/b"), replaces=True) == (1, 1)
    assert registry.acquire("a") == (1, 3)


def test_adapters_are_told_in_the_order_of_loading(registry: LoRARegistry) -> None:
    for name in ("b", "a", "c"):
        load(registry, name)
    load(registry, "b", files("/b"), replaces=True)
    assert [info.name for info in registry.adapters] == ["a", "c", "b"]


NAMES = st.sampled_from(["a", "b", "c"])


class Histories(RuleBasedStateMachine):
    """Random histories: nothing with users is dropped, and all that nobody can use any more is, once."""

    def __init__(self) -> None:
        super().__init__()
        self.registry = LoRARegistry(["model"])
        self.served: dict[str, AdapterKey] = {}
        self.content: dict[AdapterKey, str] = {}
        self.users: list[AdapterKey] = []
        self.dropped: list[AdapterKey] = []
        self.used_ids: dict[int, str] = {}

    def drop(self, key: AdapterKey | None) -> None:
        if key is not None:
            self.dropped.append(key)

    @rule(name=NAMES, content=st.sampled_from("xyz"), replaces=st.booleans(), pins=st.booleans(), works=st.booleans())
    def load(self, name: str, content: str, replaces: bool, pins: bool, works: bool) -> None:
        served = self.served.get(name)
        is_taken = served is not None and not replaces and self.content[served] != content
        try:
            version = self.registry.prepare(
                AdapterSource(name, "/a"), files(fingerprint=content), replaces=replaces, pins=pins
            )
        except AdapterConflictError:
            assert is_taken
            return
        assert not is_taken
        assert version.is_new == (served is None or replaces)
        if not version.is_new:
            assert version.key == served
        elif served is None:
            assert version.key[0] not in self.used_ids
            self.used_ids[version.key[0]] = name
        else:
            assert version.key[0] == served[0]
            assert version.key[1] > served[1]
            assert version.key not in self.content
        if works:
            self.drop(self.registry.serve(version))
            self.served[name] = version.key
            self.content[version.key] = content
            assert self.registry.info(name).is_pinned == pins

    @rule(name=NAMES)
    def unload(self, name: str) -> None:
        if name in self.served:
            info, dropped = self.registry.remove(name)
            assert (info.adapter_id, info.generation) == self.served.pop(name)
            self.drop(dropped)
        else:
            with pytest.raises(AdapterNotFoundError):
                self.registry.remove(name)

    @rule(name=NAMES)
    def acquire(self, name: str) -> None:
        if name in self.served:
            self.users.append(self.registry.acquire(name))
            assert self.users[-1] == self.served[name]
        else:
            with pytest.raises(AdapterNotFoundError):
                self.registry.acquire(name)

    @precondition(lambda self: self.users)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        self.drop(self.registry.release(self.users.pop(data.draw(st.integers(0, len(self.users) - 1)))))

    @invariant()
    def what_nobody_can_use_any_more_is_dropped_once_and_nothing_else(self) -> None:
        alive = {*self.served.values(), *self.users}
        assert sorted(self.dropped) == sorted(self.content.keys() - alive)
        assert {(spec.adapter_id, spec.generation) for spec in self.registry.specs} == alive
        assert {info.name for info in self.registry.adapters} == set(self.served)


Histories.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestHistories = Histories.TestCase
