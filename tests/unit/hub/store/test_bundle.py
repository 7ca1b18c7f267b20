"""Bundles: the same models on another machine, and every way in which a stranger's bundle is refused."""

from __future__ import annotations

import errno
import io
import json
import os
import random
import shutil
import subprocess
import tarfile
import tracemalloc
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.unit.hub.store_files import contents, digest, publish
from vllm_mxext.errors import ChecksumError, HubCause, HubError, StoreError, UnsafeFileError
from vllm_mxext.hub.progress import Progress
from vllm_mxext.hub.store.blobs import BlobStore
from vllm_mxext.hub.store.bundle import export_bundle, import_bundle
from vllm_mxext.hub.store.collecting import GcRule, collect
from vllm_mxext.hub.store.model_store import ModelStore
from vllm_mxext.hub.store.verifying import verify

ONE = {"config.json": b"{}", "a/b.txt": b"x" * 1500}
TWO = {"config.json": b"{}", "other.txt": b"y" * 512, "empty": b""}


@pytest.fixture
def source(tmp_path: Path) -> ModelStore:
    store = ModelStore(tmp_path / "source")
    publish(store, "org/one", "r1", ONE, asked_revision="main")
    publish(store, "two", "r2", TWO)
    return store


@pytest.fixture
def target(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "target")


@pytest.fixture
def bundle(source: ModelStore, tmp_path: Path) -> Path:
    export_bundle(source.snapshots(), tmp_path / "bundle.tar")
    return tmp_path / "bundle.tar"


def blobs(store: ModelStore) -> list[str]:
    return sorted(store.blobs.digests())


def assert_nothing_is_there(store: ModelStore) -> None:
    assert store.snapshots() == ()
    assert blobs(store) == []
    partial = store.folder / "partial"
    assert not partial.exists() or os.listdir(partial) == []


@pytest.mark.promise("HUB-BUNDLE-1")
def test_models_arrive_as_they_were(source: ModelStore, target: ModelStore, bundle: Path) -> None:
    events: list[Progress] = []
    one, two = import_bundle(target, bundle, listener=events.append)
    assert (contents(one), contents(two)) == (ONE, TWO)
    assert (one.name, one.revision, one.uri, one.asked_revision) == ("org/one", "r1", "hf://org/one", "main")
    assert target.snapshot("org/one", "main") == one
    assert verify(target, target.snapshots()).faults == ()
    assert (events[-1].done_bytes, events[-1].num_files_done, events[-1].detail) == (2014, 4, "import")
    assert blobs(target) == blobs(source)
    before = sorted(target.folder.rglob("*"))
    assert import_bundle(target, bundle) == (one, two)
    assert sorted(target.folder.rglob("*")) == before


@pytest.mark.promise("HUB-BUNDLE-1")
def test_equal_models_make_equal_bundles_that_tar_can_read(
    source: ModelStore, target: ModelStore, bundle: Path, tmp_path: Path
) -> None:
    import_bundle(target, bundle)
    export_bundle(target.snapshots()[::-1], tmp_path / "again.tar")
    assert (tmp_path / "again.tar").read_bytes() == bundle.read_bytes()
    listed = subprocess.run(["tar", "tf", bundle], capture_output=True, text=True, check=True).stdout.split()
    assert listed[0].startswith("manifest-")
    assert listed[1:] == [f"blobs/sha256-{one}" for one in blobs(source)]
    assert bundle.stat().st_size % 10240 == 0


def test_chunk_hashes_come_with_what_is_imported(source: ModelStore, target: ModelStore, bundle: Path) -> None:
    target.blobs = BlobStore(target.folder, chunk_bytes=1000)
    import_bundle(target, bundle)
    assert target.blobs.chunk_hashes(digest(b"x" * 1500)) == (digest(b"x" * 1000), digest(b"x" * 500))


def test_memory_does_not_grow_with_the_files(source: ModelStore, target: ModelStore, tmp_path: Path) -> None:
    content = bytes(24 * 2**20)
    snapshot = publish(source, "large", "r", {"large.txt": content})
    del content
    tracemalloc.start()
    try:
        export_bundle([snapshot], tmp_path / "large.tar")
        import_bundle(target, tmp_path / "large.tar")
        assert tracemalloc.get_traced_memory()[1] < 8 * 2**20
    finally:
        tracemalloc.stop()


def test_a_damaged_or_incomplete_model_is_not_exported(source: ModelStore, tmp_path: Path) -> None:
    (one,) = (snapshot for snapshot in source.snapshots() if snapshot.name == "two")
    file = (one.folder / "other.txt").resolve()
    file.chmod(0o644)
    file.write_bytes(b"z" * 512)
    with pytest.raises(ChecksumError, match="is damaged; repair it with `mxext hub repair`"):
        export_bundle([one], tmp_path / "bundle.tar")
    file.unlink()
    with pytest.raises(StoreError, match="two at revision r2 lacks files; repair it"):
        export_bundle([one], tmp_path / "bundle.tar")
    assert [path.name for path in tmp_path.iterdir() if "bundle" in path.name] == []


def test_trouble_with_disks_and_names_is_said(
    source: ModelStore, target: ModelStore, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StoreError, match=r"bundle '.*/missing/x\.tar' cannot be written \(No such file"):
        export_bundle(source.snapshots(), tmp_path / "missing" / "x.tar")
    with pytest.raises(StoreError, match=r"bundle '.*/nothing' cannot be read \(No such file or directory\)") as caught:
        import_bundle(target, tmp_path / "nothing")
    assert caught.value.cause is HubCause.NOT_FOUND

    def full(_file: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StoreError, match=r"has space for 0\.00 GB") as caught:
            export_bundle(source.snapshots(), tmp_path / "x.tar")
    assert caught.value.cause is HubCause.NO_SPACE
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage(10, 9, 1))
    with pytest.raises(
        StoreError, match=r"There is no space for .* free some, for example with `mxext hub gc`"
    ) as caught:
        import_bundle(target, bundle)
    assert caught.value.cause is HubCause.NO_SPACE
    assert_nothing_is_there(target)


@pytest.mark.promise("HUB-BUNDLE-2")
def test_a_bundle_that_is_cut_off_anywhere_publishes_nothing(target: ModelStore, bundle: Path, tmp_path: Path) -> None:
    content = bundle.read_bytes()
    end = len(content.rstrip(b"\0"))
    for length in (*range(0, end, 512), *range(7, end, 640), end, end + 511):
        (tmp_path / "cut").write_bytes(content[:length])
        with pytest.raises(HubError):
            import_bundle(target, tmp_path / "cut")
        assert_nothing_is_there(target)


@pytest.mark.promise("HUB-BUNDLE-2")
def test_a_bundle_with_a_changed_byte_publishes_nothing(target: ModelStore, bundle: Path, tmp_path: Path) -> None:
    content = bundle.read_bytes()
    dice = random.Random(0)
    for _ in range(int(os.environ.get("VLLM_MXEXT_TEST_LONG", "0")) * 5000 or 60):
        position = dice.randrange(len(content))
        changed = bytearray(content)
        changed[position] ^= 1 << dice.randrange(8)
        (tmp_path / "changed").write_bytes(changed)
        with pytest.raises(HubError):
            import_bundle(target, tmp_path / "changed")
        assert_nothing_is_there(target)


def forge(bundle: Path, change: Callable[[list[tuple[tarfile.TarInfo, bytes]]], None], form: int) -> bytes:
    """Writes a bundle anew with other entries."""
    with tarfile.open(bundle) as archive:
        entries = []
        for info in archive.getmembers():
            stream = archive.extractfile(info)
            entries.append((info, stream.read() if stream else b""))
    change(entries)
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=form) as archive:
        for info, content in entries:
            archive.addfile(info, io.BytesIO(content))
    return target.getvalue()


def entry(
    name: str, kind: bytes = tarfile.REGTYPE, link: str = "", content: bytes = b""
) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, len(content)
    return info, content


def renamed(entries: list[tuple[tarfile.TarInfo, bytes]], name: str) -> None:
    entries[1][0].name = name


@pytest.mark.promise("HUB-BUNDLE-2")
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda e: e.insert(1, entry("x", tarfile.SYMTYPE, "/etc/passwd")), "it has a symbolic link"),
        (lambda e: e.insert(1, entry("x", tarfile.LNKTYPE, "x")), "it has a hard link"),
        (lambda e: e.insert(1, entry("x", tarfile.CHRTYPE)), "it has a device"),
        (lambda e: e.insert(1, entry("x", tarfile.BLKTYPE)), "it has a device"),
        (lambda e: e.insert(1, entry("x", tarfile.FIFOTYPE)), "it has a pipe"),
        (lambda e: e.insert(1, entry("blobs", tarfile.DIRTYPE)), "it has a folder"),
        (lambda e: e.insert(1, entry("x" * 101)), "it has a long name"),
        (lambda e: e.insert(1, entry("x", tarfile.SYMTYPE, "x" * 101)), "it has a long link"),
        (lambda e: renamed(e, "../../etc/cron.d/x"), r"it has '\.\./\.\./etc/cron\.d/x' with"),
        (lambda e: renamed(e, "/etc/passwd"), "it has '/etc/passwd' with"),
        (lambda e: renamed(e, "blobs/sha256-" + "0" * 64), "it has 'blobs/sha256-0000"),
        (lambda e: renamed(e, e[1][0].name.upper()), "it has 'BLOBS/SHA256-"),
        (lambda e: renamed(e, "a b"), "a header is none that an export writes"),
        (lambda e: renamed(e, "ü"), "a header is none that an export writes"),
        (lambda e: e.insert(2, e[1]), "it has 'blobs/sha256-.* where it declares"),
        (lambda e: e.reverse(), "does not begin with their list"),
        (lambda e: e.pop(1), "it has 'blobs/sha256-.* where it declares"),
        (lambda e: e.pop(), "a file that it declares is missing"),
        (lambda e: e.append(entry("extra", content=b"x")), "it holds files that it does not declare"),
        (lambda e: e.insert(0, entry("first")), "does not begin with their list"),
        (lambda e: e.clear(), "does not begin with their list"),
    ],
)
def test_forged_archives_are_refused(
    target: ModelStore, bundle: Path, tmp_path: Path, change: Callable[[Any], None], reason: str
) -> None:
    (tmp_path / "forged").write_bytes(forge(bundle, change, tarfile.GNU_FORMAT))
    with pytest.raises(HubError, match=reason):
        import_bundle(target, tmp_path / "forged")
    assert_nothing_is_there(target)
    assert not (tmp_path / "etc").exists()


@pytest.mark.promise("HUB-BUNDLE-2")
def test_headers_that_would_fill_the_memory_are_refused(target: ModelStore, bundle: Path, tmp_path: Path) -> None:
    def extend(entries: list[tuple[tarfile.TarInfo, bytes]]) -> None:
        entries[1][0].pax_headers = {"comment": "x" * 10_000}

    (tmp_path / "forged").write_bytes(forge(bundle, extend, tarfile.PAX_FORMAT))
    with pytest.raises(UnsafeFileError, match="it has an extended header"):
        import_bundle(target, tmp_path / "forged")
    info = tarfile.TarInfo("manifest-0.json")
    for size in (17 * 2**20, 2**60):
        info.size = size
        (tmp_path / "forged").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
        with pytest.raises(StoreError, match="does not begin with their list"):
            import_bundle(target, tmp_path / "forged")
    for content in (b"", b"x" * 512, b"PK\3\4" + bytes(5000), b"\x1f\x8b" + bytes(600)):
        (tmp_path / "forged").write_bytes(content)
        with pytest.raises(StoreError, match="is damaged: "):
            import_bundle(target, tmp_path / "forged")
    assert_nothing_is_there(target)


def changed_list(change: Callable[[Any], None]) -> Callable[[list[tuple[tarfile.TarInfo, bytes]]], None]:
    def forge_list(entries: list[tuple[tarfile.TarInfo, bytes]]) -> None:
        data = json.loads(entries[0][1])
        data = change(data) or data
        text = data if isinstance(data, bytes) else json.dumps(data).encode()
        entries[0] = entry(f"manifest-{digest(text)}.json", content=text)

    return forge_list


def path_of(path: str) -> Callable[[Any], None]:
    return lambda data: data["models"][0]["files"][0].update(path=path)


@pytest.mark.promise("HUB-BUNDLE-2")
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (path_of("../../../../etc/x"), "is refused: its path has empty parts"),
        (path_of("/etc/x"), "its path is absolute"),
        (path_of("a\\b"), "backslash"),
        (path_of("CONFIG.JSON"), "cannot be in one folder here"),
        (path_of("config.json"), "cannot be in one folder here"),
        (path_of("config.json/x"), "cannot be in one folder here"),
        (path_of("Snapshot.json"), "cannot be in one folder here"),
        (path_of("modeling.py"), "it is a program"),
        (path_of("weights.bin"), "it is a pickle"),
        (path_of("model.safetensors"), "it is not safetensors, as its name says"),
        (lambda d: d["models"][0]["files"][0].update(sha256="0" * 64), "where it declares"),
        (lambda d: d["models"][0]["files"][0].update(sha256="../" + "0" * 61), "list of models cannot be read"),
        (lambda d: d["models"][0]["files"][0].update(size=1), "where it declares 1 bytes"),
        (lambda d: d["models"][0]["files"][1].update(size=3), "it gives one file two sizes"),
        (lambda d: d["models"][0]["files"][0].update(size=-1), "cannot be read"),
        (lambda d: d["models"][0]["files"][0].update(size=2**60), "cannot be read"),
        (lambda d: d["models"][0]["files"][0].update(size=True), "cannot be read"),
        (lambda d: d["models"][0].update(files=[]), "cannot be read"),
        (lambda d: d["models"][0].update(name=""), "cannot be read"),
        (lambda d: d["models"][0].update(name="a\x1b[2J"), "cannot be read"),
        (lambda d: d["models"][0].update(name="x" * 501), "cannot be read"),
        (lambda d: d["models"][0].pop("uri"), "cannot be read"),
        (lambda d: d["models"].append(d["models"][0]), "or one twice"),
        (lambda d: d["models"].clear(), "names no model"),
        (lambda d: d.update(schema="mx.hub.bundle/v2"), "only mx.hub.bundle/v1 is read; update this program"),
        (lambda _: [0], "cannot be read"),
        (lambda _: b"\xff", "cannot be read"),
        (lambda _: b"[" * 100_000, "cannot be read"),
    ],
)
def test_lists_of_models_that_say_something_else_are_refused(
    target: ModelStore, bundle: Path, tmp_path: Path, change: Callable[[Any], None], reason: str
) -> None:
    (tmp_path / "forged").write_bytes(forge(bundle, changed_list(change), tarfile.GNU_FORMAT))
    with pytest.raises(HubError, match=reason):
        import_bundle(target, tmp_path / "forged")
    assert_nothing_is_there(target)


def test_unsafe_files_are_imported_where_that_is_allowed(target: ModelStore, bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "code").write_bytes(forge(bundle, changed_list(path_of("modeling.py")), tarfile.GNU_FORMAT))
    one, _ = import_bundle(target, tmp_path / "code", allows_code=True)
    assert "modeling.py" in contents(one)


def test_a_dead_import_is_cleared_away(source: ModelStore) -> None:
    work = source.folder / "partial" / "import.1-2"
    work.mkdir(parents=True)
    (work / "x").write_bytes(b"x")
    source.clock = lambda: 4e9
    assert collect(source, GcRule(), is_dry_run=True).leftovers == (work,)
