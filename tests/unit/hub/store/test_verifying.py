"""`verify` finds every way in which a stored file can be wrong; `repair` asks sources for no more than is needed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.hub.store_files import contents, publish, put_blob
from vllm_mxext.config.hub import NetworkConfig
from vllm_mxext.errors import StoreError
from vllm_mxext.hub.progress import Phase, Progress
from vllm_mxext.hub.sources.interface import RemoteFile
from vllm_mxext.hub.store.blobs import BlobStore
from vllm_mxext.hub.store.model_store import ModelStore
from vllm_mxext.hub.store.verifying import FileReport, FileState, repair, verify

CHUNK = 1000
FILES = {"a.json": b"{}", "b.safetensors": bytes(range(250)) * 18, "c.safetensors": b"c" * 2500}


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    made = ModelStore(tmp_path / "store")
    made.blobs = BlobStore(made.folder, chunk_bytes=CHUNK)
    return made


def damage(path: Path, content: bytes) -> None:
    real = path.resolve()
    real.chmod(0o644)
    real.write_bytes(content)


def states(store: ModelStore, **options: Any) -> dict[str, tuple[FileState, tuple[int, ...] | None]]:
    report = verify(store, store.snapshots(), **options)
    return {one.file.path: (one.state, one.bad_chunks) for one in report.files}


@pytest.mark.promise("HUB-VERIFY-1")
def test_every_kind_of_damage_is_found(store: ModelStore) -> None:
    made = publish(store, "m", "r", {**FILES, "d": b"d" * 10})
    assert verify(store, [made]).faults == ()
    damage(made.folder / "a.json", b"[]")
    content = bytearray(FILES["b.safetensors"])
    content[999] ^= 1
    content[4000] ^= 1
    damage(made.folder / "b.safetensors", bytes(content))
    damage(made.folder / "c.safetensors", FILES["c.safetensors"][:-1])
    (made.folder / "d").resolve().unlink()
    expected = {
        "a.json": (FileState.DAMAGED, (0,)),
        "b.safetensors": (FileState.DAMAGED, (0, 4)),
        "c.safetensors": (FileState.WRONG_SIZE, None),
        "d": (FileState.MISSING, None),
    }
    assert states(store) == expected
    quick = states(store, is_quick=True)
    assert quick == {**expected, "a.json": (FileState.OK, None), "b.safetensors": (FileState.OK, None)}


def test_without_chunk_hashes_all_of_a_file_is_bad(store: ModelStore) -> None:
    made = publish(store, "m", "r", FILES)
    damage(made.folder / "c.safetensors", b"x" * 2500)
    for file in (store.folder / "blobs").glob("*.chunks"):
        file.unlink()
    assert states(store)["c.safetensors"] == (FileState.DAMAGED, None)


def test_a_file_that_the_disk_cannot_read_is_damaged_and_one_that_may_not_be_read_is_an_error(
    store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = publish(store, "m", "r", {"a": b"a"})
    real = Path.open

    def failing(error: OSError) -> Any:
        def open_file(path: Path, *args: Any, **options: Any) -> Any:
            if path.name.startswith("sha256-"):
                raise error
            return real(path, *args, **options)

        return open_file

    monkeypatch.setattr(Path, "open", failing(OSError(5, "Input/output error")))
    assert [one.state for one in verify(store, [made]).faults] == [FileState.DAMAGED]
    monkeypatch.setattr(Path, "open", failing(PermissionError(13, "Permission denied", "x")))
    with pytest.raises(StoreError, match="give this user the right"):
        verify(store, [made])


def test_what_snapshots_share_is_read_once_and_progress_is_told(store: ModelStore) -> None:
    first = publish(store, "m", "r1", FILES)
    second = publish(store, "m", "r2", {**FILES, "a.json": b"[]"})
    events: list[Progress] = []
    ticks: Iterator[int] = iter(range(10**6))
    report = verify(store, [first, second], listener=events.append, monotonic=lambda: float(next(ticks)))
    assert len(report.files) == 6
    total = 4500 + 2500 + 4
    assert {(one.phase, one.model, one.total_bytes, one.num_files) for one in events} == {
        (Phase.VERIFYING, "m", total, 4)
    }
    assert [one.done_bytes for one in events] == sorted(one.done_bytes for one in events)
    assert (events[-1].done_bytes, events[-1].num_files_done, events[-1].eta_s) == (total, 4, 0.0)


class Recorder:
    """Stands in for downloads: remembers what it was asked for and puts good bytes into the store."""

    def __init__(self, store: ModelStore, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[str, Any]] = []
        self._store = store
        monkeypatch.setattr("vllm_mxext.hub.transfer.fetch.fetch", self.fetch)
        monkeypatch.setattr("vllm_mxext.hub.transfer.repair.repair_blob", self.repair_blob)

    def find(self, fault: FileReport) -> Any:
        return RemoteFile(fault.file.path, fault.file.size, fault.file.sha256)

    def fetch(self, wanted: list[RemoteFile], blobs: BlobStore, *_args: Any, **_options: Any) -> None:
        (file,) = wanted
        self.calls.append(("fetch", file.path))
        put_blob(blobs, FILES[file.path], self._store.folder / "incoming")

    def repair_blob(
        self, sha256: str, bad: tuple[int, ...], wanted: RemoteFile, blobs: BlobStore, *_args: Any, **_options: Any
    ) -> None:
        self.calls.append((wanted.path, bad))
        blobs.remove(sha256)
        put_blob(blobs, FILES[wanted.path], self._store.folder / "incoming")


@pytest.mark.promise("HUB-VERIFY-2")
@pytest.mark.parametrize("lacking", [(), ("symlink",), ("symlink", "link")], ids=["links", "hard links", "copies"])
def test_only_what_is_damaged_is_asked_for_again(
    store: ModelStore, monkeypatch: pytest.MonkeyPatch, lacking: tuple[str, ...]
) -> None:
    for name in lacking:
        monkeypatch.setattr(os, name, lambda *_args: (_ for _ in ()).throw(OSError(1, "not permitted")))
    old = publish(store, "m", "r1", FILES)
    current = publish(store, "m", "r2", {"a.json": FILES["a.json"]})
    content = bytearray(FILES["b.safetensors"])
    content[1000] ^= 1
    recorder = Recorder(store, monkeypatch)
    damage(old.folder / "b.safetensors", bytes(content))
    damage(old.folder / "c.safetensors", b"short")
    (old.folder / "a.json").resolve().unlink()
    faults = verify(store, [old]).faults
    assert repair(store, faults, recorder.find, NetworkConfig()) == faults
    if "link" in lacking:  # the blobs are good, only the copies are not
        assert recorder.calls == []
    elif lacking:  # a hard link that is gone leaves the blob
        assert recorder.calls == [("b.safetensors", (1,)), ("c.safetensors", ())]
    else:
        assert recorder.calls == [("fetch", "a.json"), ("b.safetensors", (1,)), ("c.safetensors", ())]
    assert verify(store, store.snapshots()).faults == ()
    found = store.snapshot("m", "r1")
    assert found is not None
    assert contents(found) == FILES
    assert store.snapshot("m") == current
    assert len(store.snapshots()) == 2
