"""Several processes publish, die and collect in one store, with and without working locks, while others read."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.hub.store_files import contents, digest, publish
from vllm_mxext.hub.store.collecting import GcRule, collect
from vllm_mxext.hub.store.model_store import ModelStore
from vllm_mxext.hub.store.verifying import verify

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
NUM_KILLS = 200 if os.environ.get("VLLM_MXEXT_TEST_LONG") == "1" else 8

PUBLISHER = """
import fcntl, os, sys
from pathlib import Path
from tests.unit.hub.crashing import crashing
from tests.unit.hub.store_files import publish
from vllm_mxext.hub.store.model_store import ModelStore

folder, number, count, kind, die_at = Path(sys.argv[1]), *map(int, sys.argv[2:4]), sys.argv[4], int(sys.argv[5])
if kind == "no locks":
    fcntl.flock = lambda *args: None
with crashing(die_at or None, lambda: os._exit(9)):
    for revision in range(count):
        if revision == count // 2:
            sys.stdin.read()  # until somebody has looked
        files = {"config.json": b"{}", "same.txt": b"same" * 1000, "own.txt": b"%d" % revision}
        publish(ModelStore(folder), "org/m", f"r{revision}", files, asked_revision="main", way=str(number))
"""


def start(folder: Path, number: int, count: int, kind: str, die_at: int = 0) -> subprocess.Popen[bytes]:
    """Starts a process that publishes one half, waits for the end of its input, and publishes the other."""
    command = [sys.executable, "-c", PUBLISHER, str(folder), str(number), str(count), kind, str(die_at)]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, cwd=ROOT, env=environ, stdin=subprocess.PIPE)


def assert_all_is_whole(store: ModelStore) -> int:
    """Reads every published file; returns how many models there are."""
    there = store.snapshots()
    for one in there:
        found = contents(one)
        assert [digest(found[file.path]) for file in one.files] == [file.sha256 for file in one.files]
        assert found["own.txt"] == one.revision[1:].encode()
    return len(there)


@pytest.mark.promise("HUB-STORE-2")
@pytest.mark.parametrize("kind", ["locks", "no locks"])
def test_processes_that_publish_the_same_at_once_do_no_harm_to_each_other_or_to_readers(
    tmp_path: Path, kind: str
) -> None:
    folder = tmp_path / "store"
    processes = [start(folder, number, 25, kind) for number in range(3)]
    num_seen = 0
    while any(process.poll() is None for process in processes):
        store = ModelStore(folder)
        num_seen = assert_all_is_whole(store)
        assert store.snapshot("org/m") is not None or num_seen == 0
        if num_seen >= 12:  # the first half, which is looked at beside its publishers
            for process in processes:
                assert process.stdin is not None
                process.stdin.close()
    assert [process.returncode for process in processes] == [0, 0, 0]
    store = ModelStore(folder)
    assert assert_all_is_whole(store) == 25
    assert {one.folder.name for one in store.snapshots()} == {f"r{number}" for number in range(25)}
    assert verify(store, store.snapshots()).faults == ()
    found = store.snapshot("org/m", "main")
    assert found is not None
    assert found.revision == "r24"
    assert collect(store, GcRule(num_kept=100, grace_s=0, partial_s=0)).leftovers == ()


@pytest.mark.promise("HUB-STORE-2", "HUB-GC-1")
def test_processes_that_die_leave_nothing_that_readers_see_or_that_gc_does_not_clear_away(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    publish(ModelStore(folder), "org/m", "r1000", {"own.txt": b"1000"})
    deaths = []
    for attempt in range(NUM_KILLS):
        process = start(folder, attempt, 100, "locks", 1 + 37 * attempt % 211)
        process.communicate()
        deaths.append(process.returncode)
        store = ModelStore(folder)
        assert assert_all_is_whole(store) >= 1
        assert store.snapshot("org/m") is not None
    assert deaths == [9] * NUM_KILLS
    later = ModelStore(folder, clock=lambda: 4e9)
    collect(later, GcRule(num_kept=0))
    assert assert_all_is_whole(later) == 1
    assert set(later.blobs.digests()) == {file.sha256 for one in later.snapshots() for file in one.files}
    assert sorted(path.name for path in (folder / "models" / "org--m").iterdir() if path.name[0] == ".") == []
