"""Any history of publishing, switching, pinning, collecting and dying: readers see whole models, and keep theirs."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.unit.hub.crashing import crashing
from tests.unit.hub.store_files import contents, digest, publish
from vllm_mxext.hub.store.collecting import GcRule, collect
from vllm_mxext.hub.store.model_store import ModelStore
from vllm_mxext.hub.store.pins import Pin
from vllm_mxext.hub.store.snapshot import Snapshot

pytestmark = pytest.mark.promise("HUB-STORE-2", "HUB-GC-1")
IS_LONG = os.environ.get("VLLM_MXEXT_TEST_LONG") == "1"

NAMES, REVISIONS = ("org/a", "b"), ("1111", "2222", "main")
VARIANTS = [
    {"config.json": b"{}", "w/model.txt": b"one"},
    {"config.json": b"{}", "w/model.txt": b"two"},
    {"config.json": b"[]", "model.txt": b"one", "more/x/y.txt": b"y"},
]
CRASHES = st.none() | st.integers(1, 40)
DAY = 86_400.0
PHASES = [Phase.explicit, Phase.generate]  # each step writes to the disk: making a history shorter takes minutes


class StoreMachine(RuleBasedStateMachine):
    """A store and what it should hold."""

    can_link = True

    @initialize()
    def start(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="store-machine-"))
        self.now_s = 4e9
        self.published: dict[tuple[str, str], list[dict[str, bytes]]] = {}
        self.currents: dict[str, set[Path | None]] = {name: {None} for name in NAMES}
        self.pins: set[Pin] = set()
        self.patches = [] if self.can_link else [mock.patch.object(os, name, _refuse) for name in ("symlink", "link")]
        for patch in self.patches:
            patch.start()

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            for patch in self.patches:
                patch.stop()
            shutil.rmtree(self.folder)

    @property
    def store(self) -> ModelStore:
        """What a new process would see."""
        return ModelStore(self.folder / "store", clock=lambda: self.now_s)

    @rule(
        name=st.sampled_from(NAMES),
        revision=st.sampled_from(REVISIONS),
        variant=st.sampled_from(VARIANTS),
        asked=st.sampled_from(["", "main", "v1"]),
        crash=CRASHES,
    )
    def publish(self, name: str, revision: str, variant: dict[str, bytes], asked: str, crash: int | None) -> None:
        self.now_s += 1
        self.published.setdefault((name, revision), []).append(variant)
        made: Snapshot | None = None
        with crashing(crash):
            made = publish(self.store, name, revision, variant, asked_revision=asked)
        if made is None:
            self.currents[name] |= {one.folder for one in self.store.snapshots() if one.name == name}
        else:
            assert contents(made) == variant
            self.currents[name] = {made.folder}
            if asked and asked not in REVISIONS:
                assert self.store.snapshot(name, asked) == made

    @precondition(lambda self: self.store.snapshots())
    @rule(number=st.integers(0, 20), crash=CRASHES)
    def switch(self, number: int, crash: int | None) -> None:
        there = self.store.snapshots()
        chosen = there[number % len(there)]
        is_done = False
        with crashing(crash):
            self.store.switch(chosen)
            is_done = True
        self.currents[chosen.name] = {chosen.folder} | (set() if is_done else self.currents[chosen.name])

    @rule(name=st.sampled_from(NAMES), revision=st.none() | st.sampled_from(REVISIONS), adds=st.booleans())
    def pin(self, name: str, revision: str | None, adds: bool) -> None:
        pin = Pin(name, revision)
        if adds:
            self.store.pins.add(pin)
            self.pins.add(pin)
        else:
            assert self.store.pins.remove(pin) == (pin in self.pins)
            self.pins.discard(pin)

    @rule(num_kept=st.integers(0, 2), waits=st.booleans(), crash=CRASHES)
    def gc(self, num_kept: int, waits: bool, crash: int | None) -> None:
        self.now_s += 8 * DAY if waits else 0
        how = GcRule(num_kept=num_kept, grace_s=DAY)
        before = self.store.snapshots()
        expected = collect(self.store, how, is_dry_run=True)
        report = None
        with crashing(crash):
            report = collect(self.store, how)
        for one in before:
            is_needed = one.folder not in {gone.folder for gone in expected.snapshots}
            assert one.folder.exists() or not is_needed
        if report is not None:
            assert (report.snapshots, report.blobs, report.leftovers) == (
                expected.snapshots,
                expected.blobs,
                expected.leftovers,
            )
            again = collect(self.store, how, is_dry_run=True)
            assert (again.snapshots, again.blobs) == ((), ())
            if waits and num_kept == 0:
                self._check_nothing_is_left()

    def _check_nothing_is_left(self) -> None:
        named = {file.sha256 for one in self.store.snapshots() for file in one.files}
        assert set(self.store.blobs.digests()) == named
        hidden = [path for path in self.folder.glob("store/models/*/.*") if path.name.startswith((".new", ".old"))]
        assert hidden == []

    @invariant()
    def readers_see_whole_models(self) -> None:
        if not hasattr(self, "folder"):
            return
        for one in self.store.snapshots():
            found = contents(one)
            assert {path: digest(content) for path, content in found.items()} == {
                file.path: file.sha256 for file in one.files
            }
            assert found in self.published[one.name, one.revision]

    @invariant()
    def the_current_model_is_the_last_one_that_was_chosen(self) -> None:
        for name in NAMES if hasattr(self, "folder") else ():
            current = self.store.snapshot(name)
            assert (current.folder if current else None) in self.currents[name]
            if current is not None:
                self.currents[name] = {current.folder}

    @invariant()
    def pins_are_kept(self) -> None:
        if hasattr(self, "folder"):
            assert set(self.store.pins.list()) == self.pins


class CopyMachine(StoreMachine):
    """The same where there are neither symbolic nor hard links."""

    can_link = False


def _refuse(*_args: Any, **_options: Any) -> None:
    raise OSError(1, "Operation not permitted")


TestLinks = StoreMachine.TestCase
TestLinks.settings = settings(
    max_examples=1500 if IS_LONG else 12, stateful_step_count=20, deadline=None, phases=PHASES
)
TestCopies = CopyMachine.TestCase
TestCopies.settings = settings(max_examples=500 if IS_LONG else 6, stateful_step_count=20, deadline=None, phases=PHASES)
