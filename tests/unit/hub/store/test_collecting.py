"""`gc`: what nobody needs goes, everything else stays, and a dry run says the same."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.unit.hub.store_files import contents, digest, publish, put_blob
from vllm_mxext.errors import StoreError
from vllm_mxext.hub.store.collecting import GcReport, GcRule, collect, remove
from vllm_mxext.hub.store.in_use import using
from vllm_mxext.hub.store.model_store import ModelStore
from vllm_mxext.hub.store.pins import Pin

HOUR, DAY = 3600.0, 86_400.0
ALL_AT_ONCE = GcRule(num_kept=0, grace_s=0.0, partial_s=0.0)


class Now:
    """Unix time of a store, which files of the real time are older than."""

    def __init__(self) -> None:
        self.seconds = 4e9

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def now() -> Now:
    return Now()


@pytest.fixture
def store(tmp_path: Path, now: Now) -> ModelStore:
    return ModelStore(tmp_path / "store", clock=now)


def files(number: int) -> dict[str, bytes]:
    return {"config.json": b"{}", "model.safetensors": b"%d" % number * 100}


def revisions(report: GcReport) -> list[str]:
    return [one.revision for one in report.snapshots]


@pytest.mark.promise("HUB-GC-1")
def test_old_snapshots_and_their_blobs_go_and_needed_ones_stay(store: ModelStore, now: Now) -> None:
    made = []
    for number in range(5):
        now.seconds += 10
        made.append(publish(store, "m", f"r{number}", files(number), asked_revision=f"v{number}"))
    other = publish(store, "other", "r", files(9))
    store.pins.add(Pin("m", "r0"))
    now.seconds += HOUR
    expected = collect(store, GcRule(num_kept=1), is_dry_run=True)
    assert revisions(expected) == ["r2", "r1"]
    assert {sha256 for sha256, _ in expected.blobs} == {digest(files(number)["model.safetensors"]) for number in (1, 2)}
    assert expected.num_bytes == 200 + sum((one.folder / "snapshot.json").stat().st_size for one in made[1:3])
    assert all(one.folder.exists() for one in made)
    report = collect(store, GcRule(num_kept=1))
    assert report == replace(expected, is_dry_run=False)
    assert report.locks_work
    assert store.snapshots() == (made[0], made[3], made[4], other)
    for number, one in ((0, made[0]), (3, made[3]), (4, made[4]), (9, other)):
        assert contents(one) == files(number)
    assert sorted(os.listdir(made[0].folder.parent / "refs")) == ["v0", "v3", "v4"]
    again = collect(store, GcRule(num_kept=1))
    assert (again.snapshots, again.blobs, again.leftovers, again.num_bytes) == ((), (), (), 0)


@pytest.mark.promise("HUB-GC-1")
def test_what_is_young_or_pinned_stays(store: ModelStore, now: Now) -> None:
    for number in range(3):
        publish(store, "m", f"r{number}", files(number))
    now.seconds += HOUR - 1
    assert revisions(collect(store, GcRule(num_kept=0))) == []
    store.pins.add(Pin("m"))
    now.seconds += HOUR
    assert revisions(collect(store, ALL_AT_ONCE)) == []
    store.pins.remove(Pin("m"))
    assert sorted(revisions(collect(store, GcRule(num_kept=0)))) == ["r0", "r1"]


@pytest.mark.promise("HUB-GC-1")
def test_what_a_server_uses_stays_until_it_ends(store: ModelStore, now: Now) -> None:
    old = publish(store, "m", "r1", files(1))
    now.seconds += 10
    publish(store, "m", "r2", files(2))
    with using(old.folder):
        assert revisions(collect(store, ALL_AT_ONCE)) == []
        assert (old.folder / "config.json").read_bytes() == b"{}"
    assert revisions(collect(store, ALL_AT_ONCE)) == ["r1"]


def test_blobs_that_nobody_names_go_after_the_grace_time(store: ModelStore, now: Now) -> None:
    lonely = put_blob(store.blobs, b"lonely", store.folder / "incoming")
    now.seconds = store.blobs.path(lonely).stat().st_mtime + 100
    assert collect(store, GcRule(grace_s=101)).blobs == ()
    assert collect(store, GcRule(grace_s=99)).blobs == ((lonely, 6),)
    assert store.blobs.find(lonely) is None


@pytest.mark.promise("HUB-RM-1")
def test_a_model_that_was_removed_leaves_nothing(store: ModelStore) -> None:
    made = publish(store, "m", "r", files(1), asked_revision="main")
    report = remove(store, [made])
    assert (report.snapshots, report.locks_work) == ((made,), True)
    assert report.num_bytes > 100
    assert os.listdir(store.folder / "models") == []
    assert [name for name in os.listdir(store.folder / "blobs") if name.startswith("sha256")] == []
    assert remove(store, [made]).num_bytes == 0


@pytest.mark.promise("HUB-RM-1")
def test_removing_leaves_the_files_that_others_have(store: ModelStore) -> None:
    same = {"config.json": b"{}", "model.safetensors": b"the same"}
    first, second = publish(store, "m", "r1", same), publish(store, "m", "r2", {**same, "more": b"more"})
    other = publish(store, "other", "r", same)
    assert store.snapshot("m") == second
    remove(store, [second])
    assert store.snapshot("m") == first
    remove(store, [first])
    assert store.snapshots() == (other,)
    assert contents(other) == same
    assert store.blobs.find(digest(b"more")) is None


@pytest.mark.promise("HUB-RM-1")
def test_what_is_pinned_or_served_is_removed_by_force_only(store: ModelStore) -> None:
    first, second = publish(store, "m", "r1", files(1)), publish(store, "m", "r2", files(2))
    store.pins.add(Pin("m", "r1"))
    with pytest.raises(StoreError, match=r"r1 is pinned.* or give --force"):
        remove(store, [second, first])
    assert store.snapshots() == (first, second)
    with using(second.folder), pytest.raises(StoreError, match=r"r2 is being served; .* or give --force"):
        remove(store, [second])
    store.pins.add(Pin("m"))
    with using(second.folder):
        remove(store, [second, first], is_forced=True)
    assert (store.snapshots(), store.pins.list()) == ((), ())


@pytest.mark.promise("HUB-RM-1")
def test_without_locks_the_files_of_what_is_removed_are_left_to_gc(
    store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = publish(store, "m", "r", files(1))
    monkeypatch.setattr(fcntl, "flock", lambda *_args: None)
    assert not remove(store, [made]).locks_work
    assert store.snapshots() == ()
    assert store.blobs.find(made.files[0].sha256) is not None


def test_what_dead_downloads_and_publications_left_goes_after_days(store: ModelStore, now: Now) -> None:
    made = publish(store, "m", "r", files(1))
    partial = store.folder / "partial" / ("a" * 64 + ".machine.1")
    partial.mkdir(parents=True)
    (partial / "data").write_bytes(b"x" * 50)
    half, link = made.folder.parent / ".new-1-2", made.folder.parent / ".current-12"
    half.mkdir()
    (half / "model.safetensors").symlink_to("nowhere")
    link.symlink_to("r0")
    now.seconds = partial.stat().st_mtime + HOUR + 1
    report = collect(store, GcRule())
    assert report.leftovers == (link, half)
    assert not half.exists()
    assert not link.is_symlink()
    os.utime(partial, (1, 1))
    now.seconds += 6 * DAY
    assert collect(store, GcRule()).leftovers == ()
    now.seconds += DAY
    report = collect(store, GcRule())
    assert (report.leftovers, report.num_bytes) == ((partial,), 50)
    assert contents(made) == files(1)


def test_a_folder_that_cannot_be_read_keeps_what_it_links_to(store: ModelStore) -> None:
    made = publish(store, "m", "r", files(1))
    publish(store, "m", "r2", files(2))
    (made.folder / "snapshot.json").write_text("damaged")
    report = collect(store, ALL_AT_ONCE)
    assert report.unreadable == (made.folder,)
    assert (report.snapshots, report.blobs) == ((), ())
    assert contents(made) == files(1)


def test_without_a_valid_pointer_the_newest_whole_snapshot_is_the_current_one(store: ModelStore, now: Now) -> None:
    whole = publish(store, "m", "r1", files(1))
    now.seconds += 1
    broken = publish(store, "m", "r2", files(2))
    store.blobs.remove(digest(files(2)["model.safetensors"]))
    (whole.folder.parent / "current").unlink()
    assert revisions(collect(store, ALL_AT_ONCE)) == ["r2"]
    assert store.snapshots() == (whole,)
    assert not broken.folder.exists()


@pytest.mark.promise("HUB-GC-2")
def test_gc_waits_for_those_who_add_files_and_says_who_they_are(
    store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(store, "m", "r", files(1))
    monkeypatch.setattr("vllm_mxext.hub.store.collecting._WAIT_S", 0.0)
    message = rf"is in use by process {os.getpid()} on .* \(publish\); try again when"
    with store.adding("pull"), store.adding("publish"), pytest.raises(StoreError, match=message):
        collect(store, ALL_AT_ONCE)
    assert collect(store, ALL_AT_ONCE).locks_work


@pytest.mark.promise("HUB-GC-2")
@pytest.mark.parametrize("answer", [errno.ENOLCK, errno.EOPNOTSUPP, 0], ids=["none", "not supported", "a lie"])
def test_without_working_locks_everything_younger_than_a_day_stays(
    store: ModelStore, now: Now, monkeypatch: pytest.MonkeyPatch, answer: int
) -> None:
    def flock(*_args: Any) -> None:
        if answer:
            raise OSError(answer, os.strerror(answer))

    monkeypatch.setattr(fcntl, "flock", flock)
    publish(store, "m", "r1", files(1))
    publish(store, "m", "r2", files(2))
    blob = store.blobs.path(digest(files(1)["model.safetensors"]))
    now.seconds += DAY - 1
    with store.adding("pull"):
        report = collect(store, ALL_AT_ONCE)
    assert not report.locks_work
    assert (report.snapshots, report.leftovers) == ((), ())
    now.seconds += 2
    os.utime(blob, (now.seconds, now.seconds))
    report = collect(store, ALL_AT_ONCE)
    assert revisions(report) == ["r1"]
    assert report.blobs == ()
    now.seconds += DAY
    assert [sha256 for sha256, _ in collect(store, ALL_AT_ONCE).blobs] == [digest(files(1)["model.safetensors"])]


@pytest.mark.promise("HUB-GC-2")
def test_what_is_published_while_gc_runs_without_locks_is_whole_or_refused(
    store: ModelStore, now: Now, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gc between planning and removing sees that blobs have become young, and have a name."""
    put_blob(store.blobs, files(1)["model.safetensors"], store.folder / "incoming")
    plan = collect(store, ALL_AT_ONCE, is_dry_run=True)
    assert len(plan.blobs) == 1
    real = shutil.rmtree
    published = []

    def publish_meanwhile(path: Any, *args: Any, **options: Any) -> None:
        if not published:
            published.append(publish(store, "m", "r", files(1)))
        real(path, *args, **options)

    (store.folder / "partial" / "old").mkdir(parents=True)
    monkeypatch.setattr(fcntl, "flock", lambda *_args: None)
    monkeypatch.setattr(shutil, "rmtree", publish_meanwhile)
    now.seconds += DAY
    collect(store, ALL_AT_ONCE)
    assert contents(published[0]) == files(1)


@pytest.mark.promise("HUB-GC-1")
def test_nothing_outside_the_store_goes_whatever_links_are_in_it(store: ModelStore, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("x")
    made = publish(store, "m", "r", files(1))
    (store.folder / "partial").symlink_to(outside)
    (store.models_folder / "link").symlink_to(outside)
    (made.folder.parent / ".new-link").symlink_to(outside)
    collect(store, ALL_AT_ONCE)
    assert (outside / "file").exists()
