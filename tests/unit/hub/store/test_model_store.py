"""Publishing snapshots, finding them again, and what is said when the folder is no good."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.unit.hub.store_files import contents, publish, put_files
from vllm_mxext.errors import HubCause, StoreError, UnsafeFileError
from vllm_mxext.hub.store.model_store import ModelStore
from vllm_mxext.hub.store.pins import Pin
from vllm_mxext.hub.store.snapshot import StoredFile

FILES = {"config.json": b"{}", "weights/model-1.safetensors": b"one" * 1000, "weights/model-2.safetensors": b"two"}
OTHERS = {**FILES, "config.json": b'{"other": 1}'}
R1, R2 = "1" * 40, "12" + "2" * 38


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    ticks = iter(range(1000, 10_000))
    return ModelStore(tmp_path / "store", clock=lambda: float(next(ticks)))


def no_links(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    def refuse(*_args: Any, **_options: Any) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    for name in names:
        monkeypatch.setattr(os, name, refuse)


@pytest.mark.promise("HUB-STORE-1")
@pytest.mark.parametrize("lacking", [(), ("symlink",), ("symlink", "link")], ids=["links", "hard links", "copies"])
def test_what_is_published_is_found_with_its_files(
    store: ModelStore, monkeypatch: pytest.MonkeyPatch, lacking: tuple[str, ...]
) -> None:
    no_links(monkeypatch, *lacking)
    made = publish(store, "org/name", R1, FILES, asked_revision="main")
    found = ModelStore(store.folder).snapshot("org/name")
    assert found == made
    assert found is not None
    assert contents(found) == FILES
    assert (found.uri, found.revision, found.asked_revision, found.created_s) == ("hf://org/name", R1, "main", 1000.0)
    assert found.folder == store.folder / "models" / "org--name" / R1
    assert (found.folder / "config.json").is_symlink() is not bool(lacking)
    assert (found.folder.parent / "current").is_symlink() is not bool(lacking)


def test_a_store_can_be_moved(store: ModelStore, tmp_path: Path) -> None:
    publish(store, "org/name", R1, FILES)
    store.folder.rename(tmp_path / "moved")
    found = ModelStore(tmp_path / "moved").snapshot("org/name")
    assert found is not None
    assert contents(found) == FILES


def test_a_snapshot_is_found_by_revision_its_beginning_and_the_branch_that_was_asked_for(store: ModelStore) -> None:
    first = publish(store, "m", R1, FILES, asked_revision="main")
    assert store.snapshot("m", "main") == first
    second = publish(store, "m", R2, OTHERS, asked_revision="main")
    publish(store, "m", "v1.0/x", OTHERS, asked_revision="v1")
    for asked, revision in ((R1, R1), ("1111", R1), ("1222", R2), ("main", R2), ("v1", "v1.0/x"), (None, "v1.0/x")):
        found = store.snapshot("m", asked)
        assert found is not None
        assert found.revision == revision
    assert store.snapshot("m", R2) == second
    for asked in ("v1.0", "111", "2222", "release", ""):
        assert store.snapshot("m", asked) is None
    assert store.snapshot("n") is None
    assert store.snapshot("M") is None
    publish(store, "m", "12222" + "3" * 35, FILES)
    with pytest.raises(StoreError, match=r"Several revisions of m begin with 12222 .*; give more of it\."):
        store.snapshot("m", "12222")


@pytest.mark.promise("HUB-STORE-2")
def test_publishing_again_changes_nothing_and_other_files_under_one_revision_get_a_folder_of_their_own(
    store: ModelStore,
) -> None:
    first = publish(store, "m", "master", FILES)
    before = sorted(store.folder.rglob("*"))
    assert publish(store, "m", "master", FILES) == first
    assert sorted(store.folder.rglob("*")) == before
    second = publish(store, "m", "master", OTHERS)
    assert second.folder != first.folder
    assert contents(first) == FILES
    assert contents(second) == OTHERS
    assert store.snapshot("m", "master") == second
    assert publish(store, "m", "master", FILES).folder == first.folder
    assert store.snapshot("m") == first
    assert len(store.snapshots()) == 2


@pytest.mark.promise("HUB-STORE-2")
def test_who_is_overtaken_between_looking_and_renaming_takes_what_is_there(
    store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = put_files(store, FILES)
    for module, moment in ((os.path, "lexists"), (os, "rename")):
        real = getattr(module, moment)
        others: list[Any] = []

        def overtaken(*args: Any, name: str = moment, real: Any = real, others: list[Any] = others) -> Any:
            if not others:
                others.append(None)
                others[0] = ModelStore(store.folder).publish(name, R1, "", files)
            return real(*args)

        with monkeypatch.context() as patch:
            patch.setattr(module, moment, overtaken)
            made = store.publish(moment, R1, "", files)
        assert made == others[0]
        assert [one.folder.name for one in store.snapshots() if one.name == moment] == [R1]


def test_a_snapshot_that_lost_files_is_not_given_out_and_is_published_anew(store: ModelStore) -> None:
    old = publish(store, "m", R1, FILES)
    broken = publish(store, "m", R2, OTHERS)
    store.blobs.remove(broken.files[0].sha256)
    assert store.snapshot("m", R2) is None
    assert store.snapshot("m") == old
    assert store.snapshot("m", R2, must_be_whole=False) == broken
    with pytest.raises(StoreError, match="missing in the store; pull the model again") as caught:
        store.switch(broken)
    assert caught.value.cause is HubCause.DAMAGED
    store.publish("m", R2, "", put_files(store, OTHERS))
    assert store.snapshot("m") is not None
    assert contents(store.snapshot("m") or old) == OTHERS


def test_copies_that_were_cut_off_are_replaced_by_a_new_folder(
    store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_links(monkeypatch, "symlink", "link")
    made = publish(store, "m", R1, FILES)
    (made.folder / "config.json").chmod(0o644)
    (made.folder / "config.json").write_bytes(b"")
    assert store.snapshot("m") is None
    again = publish(store, "m", R1, FILES)
    assert again.folder != made.folder
    assert contents(store.snapshot("m") or made) == FILES


def test_switching_back(store: ModelStore) -> None:
    first = publish(store, "m", R1, FILES)
    second = publish(store, "m", R2, OTHERS)
    store.switch(first)
    assert store.snapshot("m") == first
    assert (store.is_current(first), store.is_current(second)) == (True, False)


def test_pins_are_kept_by_name(store: ModelStore) -> None:
    made = publish(store, "org/a model", "v/1", FILES)
    pins = (Pin("org/a model"), Pin("org/a model", "v/1"), Pin("other"))
    assert not store.pins.protects(made)
    for pin in (*pins, *pins):
        store.pins.add(pin)
    assert ModelStore(store.folder).pins.list() == tuple(sorted(pins, key=lambda pin: (pin.name, pin.revision or "")))
    assert store.pins.protects(made)
    for file in (store.folder / "pins").iterdir():
        file.write_text("damaged")
    assert store.pins.protects(made)
    assert [store.pins.remove(pin) for pin in (*pins, pins[0])] == [True, True, True, False]
    assert not store.pins.protects(made)


@pytest.mark.parametrize(
    ("one", "other"),
    [("a/b", "a--b"), ("a-/b", "a/-b"), ("a", "a/"), ("..", "%2E."), ("x" * 300, "x" * 301), ("a~1", "a%7E1")],
)
def test_names_never_share_a_folder(store: ModelStore, one: str, other: str) -> None:
    first, second = publish(store, one, "current", FILES), publish(store, other, "refs", OTHERS)
    assert first.folder.parent != second.folder.parent
    assert {store.folder / "models"} == {first.folder.parent.parent, second.folder.parent.parent}
    assert store.snapshot(one, "current") == first
    assert store.snapshot(other) == second


def test_unsafe_paths_are_not_published(store: ModelStore) -> None:
    (file,) = put_files(store, {"x": b"x"})
    for path in ("../x", "/x", "a/../../x", "snapshot.json"):
        with pytest.raises(UnsafeFileError):
            store.publish("m", R1, "", [StoredFile(path, 1, file.sha256), StoredFile("snapshot.json", 1, file.sha256)])
    with pytest.raises(UnsafeFileError):
        store.publish("m", R1, "", [file, file])
    assert store.snapshots() == ()


def test_what_a_check_refuses_is_never_seen(store: ModelStore) -> None:
    """Neither a new snapshot nor one that is there becomes the current one if its check fails."""
    seen: list[Path] = []

    def refuse(folder: Path) -> None:
        seen.append(folder)
        assert {path: (folder / path).read_bytes() for path in FILES} == FILES
        assert store.snapshot("m", R1) is None or folder.name == R1
        raise UnsafeFileError("It is not signed.")

    files = put_files(store, FILES)
    with pytest.raises(UnsafeFileError, match="It is not signed"):
        store.publish("m", R1, "", files, check=refuse)
    assert store.snapshots() == ()
    assert not seen[0].exists()
    publish(store, "m", R1, FILES)
    other = publish(store, "m", R2, OTHERS)
    with pytest.raises(UnsafeFileError, match="It is not signed"):
        store.publish("m", R1, "", files, check=refuse)
    assert store.snapshot("m") == other
    assert len(seen) == 2


def test_a_file_that_is_not_stored_as_it_should_be_is_not_published(store: ModelStore) -> None:
    (file,) = put_files(store, {"x": b"x"})
    for wrong in (StoredFile("x", 2, file.sha256), StoredFile("x", 1, "0" * 64), StoredFile("x", 1, "../x")):
        with pytest.raises(StoreError, match="'x' of m is not in the store as it should be; pull the model again"):
            store.publish("m", R1, "", [wrong])
    assert store.snapshots() == ()
    assert os.listdir(store.folder / "models" / "m") == []


def test_damaged_descriptions_are_no_snapshots(store: ModelStore) -> None:
    made = publish(store, "m", R1, FILES)
    good = json.loads((made.folder / "snapshot.json").read_text())
    for content in ("", "[]", "{}", "null", json.dumps({**good, "files": 3}), json.dumps({**good, "created": "x"})):
        (made.folder / "snapshot.json").write_text(content)
        assert store.snapshot("m") is None
        assert store.snapshots() == ()
    (made.folder.parent / "current").unlink()
    (made.folder.parent / "current").write_text("../../elsewhere")
    (made.folder / "snapshot.json").write_text(json.dumps(good))
    assert store.snapshot("m") == made


@pytest.mark.promise("HUB-STORE-3")
def test_what_is_no_store_is_refused_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match=r"'.*/file' is no folder of models.*--download-dir"):
        ModelStore(tmp_path / "file")
    made = ModelStore(tmp_path / "store")
    publish(made, "m", R1, FILES)
    (made.folder / "layout").write_text("2\n")
    with pytest.raises(StoreError, match=r"made by a newer version .layout 2, known here: 1.; update this one"):
        ModelStore(made.folder)
    (made.folder / "layout").write_text("something")
    with pytest.raises(StoreError, match="is no folder of models: its file 'layout'"):
        ModelStore(made.folder)


@pytest.mark.promise("HUB-STORE-3")
@pytest.mark.parametrize(
    ("number", "cause", "remedy"),
    [
        (errno.ENOSPC, HubCause.NO_SPACE, "no space left for models in .*free some.*--download-dir"),
        (errno.EDQUOT, HubCause.NO_SPACE, "free some"),
        (errno.EROFS, HubCause.NO_PERMISSION, "make it writable, or name another folder"),
        (errno.EACCES, HubCause.NO_PERMISSION, "give this user the right"),
        (errno.EIO, HubCause.FAILED, "check the disk"),
    ],
)
def test_what_the_system_refuses_is_said_with_its_cause(
    store: ModelStore, monkeypatch: pytest.MonkeyPatch, number: int, cause: HubCause, remedy: str
) -> None:
    def refuse(path: Any, *_args: Any) -> None:
        raise OSError(number, os.strerror(number), str(path))

    old = publish(store, "m", R2, FILES)
    for name in ("rename", "symlink", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, refuse)
            with pytest.raises(StoreError, match=remedy) as caught:
                store.publish("m", R1, "", old.files)
        assert caught.value.cause is cause
        assert store.snapshot("m") == old


def test_reading_writes_nothing(store: ModelStore) -> None:
    assert ModelStore(store.folder).snapshot("m") is None
    assert not store.folder.exists()
    publish(store, "m", R1, FILES)
    before = {path: path.lstat().st_mtime_ns for path in store.folder.rglob("*")}
    assert ModelStore(store.folder).snapshot("m") is not None
    assert {path: path.lstat().st_mtime_ns for path in store.folder.rglob("*")} == before


@pytest.mark.promise("HUB-SAFE-1")
@pytest.mark.parametrize("path", ["../../../../secret", "/etc/hostname", "a\0b", "x" * 5000, "\ud800"])
def test_a_description_with_unsafe_paths_is_no_snapshot(store: ModelStore, path: str) -> None:
    made = publish(store, "m", R1, {"a": b"1"})
    content = json.loads((made.folder / "snapshot.json").read_text())
    content["files"][0]["path"] = path
    (made.folder / "snapshot.json").write_text(json.dumps(content))
    assert store.snapshots() == ()
    assert store.snapshot("m") is None
