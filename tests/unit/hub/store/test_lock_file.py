"""`model.lock`: written the same every time, read strictly, and nothing else passes under `--frozen`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.hub.store_files import digest
from vllm_mxext.errors import HubCause, HubError, ManifestError, StoreError
from vllm_mxext.hub.sources.interface import Listing, RemoteFile
from vllm_mxext.hub.store.lock_file import LockedModel, LockFile, read_lock_file, write_lock_file
from vllm_mxext.hub.store.snapshot import Snapshot, StoredFile

FILES = (StoredFile("config.json", 2, digest(b"{}")), StoredFile("model.safetensors", 9, digest(b"w")))
SNAPSHOT = Snapshot("org/name", "1e5", "hf://org/name", FILES, Path("/store"))
LISTING = Listing("1e5", tuple(RemoteFile(file.path, file.size, file.sha256, "x") for file in FILES))


@pytest.fixture
def lock(tmp_path: Path) -> LockFile:
    return LockFile(path=tmp_path / "model.lock").with_snapshot(SNAPSHOT, "profile")


@pytest.mark.promise("HUB-LOCK-1")
def test_what_is_written_is_read_again_and_written_the_same(lock: LockFile) -> None:
    lock = lock.with_snapshot(replace(SNAPSHOT, name="another", files=FILES[::-1]))
    write_lock_file(lock)
    text = lock.path.read_text()
    assert read_lock_file(lock.path) == lock
    write_lock_file(LockFile(dict(reversed(lock.models.items())), lock.path))
    assert lock.path.read_text() == text
    assert text.startswith("# Written by `mxext hub lock`")
    assert '  revision: "1e5"\n' in text
    assert lock.revision("org/name") == "1e5"
    assert [path.name for path in lock.path.parent.iterdir()] == ["model.lock"]


WORDS = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=12)


@given(WORDS, WORDS, st.sampled_from(["1e5", "yes", "0x1f", "12:30", "null", "-", "1_0", "~", "<<", "2024-01-01", "0"]))
def test_texts_stay_texts(tmp_path_factory: pytest.TempPathFactory, name: str, revision: str, word: str) -> None:
    path = tmp_path_factory.mktemp("lock") / "model.lock"
    lock = LockFile({name: LockedModel(word, revision, (), word), word + "x": LockedModel("", word, ())}, path)
    write_lock_file(lock)
    assert read_lock_file(path) == lock


@pytest.mark.promise("HUB-LOCK-2")
def test_what_is_pinned_passes_and_gets_its_digests(lock: LockFile) -> None:
    assert lock.check("org/name", LISTING) == LISTING
    bare = Listing("1e5", tuple(RemoteFile(file.path, locator="x") for file in FILES))
    assert lock.check("org/name", bare) == LISTING
    lock.check_snapshot("org/name", SNAPSHOT)


@pytest.mark.promise("HUB-LOCK-2")
def test_what_is_not_pinned_or_differs_is_refused(lock: LockFile) -> None:
    config, model = LISTING.files
    for listing, reason in (
        (replace(LISTING, revision="2"), "the revision is 2, and 1e5 is pinned"),
        (replace(LISTING, files=(config,)), "'model.safetensors' is pinned, and is not there any more"),
        (replace(LISTING, files=(config, model, replace(config, path="new"))), "'new' is not pinned"),
        (replace(LISTING, files=(replace(config, size=3), model)), "'config.json' has 3 bytes, and 2 are pinned"),
        (replace(LISTING, files=(replace(config, sha256="0" * 64), model)), "'config.json' has other content"),
    ):
        with pytest.raises(
            HubError, match=rf"--frozen refuses org/name: {reason}.*pin it with `mxext hub lock`"
        ) as caught:
            lock.check("org/name", listing)
        assert caught.value.cause is HubCause.NOT_LOCKED
        if "bytes" not in reason:
            files = tuple(StoredFile(file.path, file.size or 0, file.sha256 or "") for file in listing.files)
            with pytest.raises(HubError, match=reason):
                lock.check_snapshot("org/name", replace(SNAPSHOT, revision=listing.revision, files=files))
    with pytest.raises(HubError, match="refuses other: the model is not pinned"):
        lock.check("other", LISTING)


def test_a_missing_lock_file_is_said_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(HubError, match=r"There is no lock file .*model\.lock.*`mxext hub lock`") as caught:
        read_lock_file(tmp_path / "model.lock")
    assert caught.value.cause is HubCause.NOT_LOCKED
    with pytest.raises(StoreError, match="cannot be written"):
        write_lock_file(LockFile(path=tmp_path / "missing" / "model.lock"))


GOOD = f"""schema: mx.hub.lock/v1
models:
  m:
    source: hf://m
    revision: r
    files:
      - path: a
        size: 1
        sha256: {"a" * 64}
"""


@pytest.mark.promise("HUB-LOCK-1")
@pytest.mark.parametrize(
    ("old", "new", "line", "reason"),
    [
        ("lock/v1", "lock/v2", 1, "The schema is 'mx.hub.lock/v2', and only mx.hub.lock/v1 is read"),
        ("schema: mx.hub.lock/v1\n", "", 1, "The key 'schema' is missing"),
        ("revision: r", "revison: r", 5, "Unknown key 'revison'; did you mean revision?"),
        ("    revision: r\n", "", 4, "The key 'revision' is missing"),
        ("revision: r", "revision: 1.5", 5, "'revision' must be text; put it in quotes"),
        ("size: 1", "size: -1", 8, "'size' must be a number of bytes"),
        ("size: 1", "size: true", 8, "'size' must be a number of bytes"),
        ("a" * 64, "A" * 64, 9, "'sha256' must be 64 hexadecimal digits"),
        ("- path: a", "- 3\n      - path: a", 7, "A mapping with the keys path, size, sha256 belongs here"),
        ("files:", "files: {}\n    profile:", 6, "'files' must be a list"),
        ("  m:\n", "  - m\n", 3, "'models' must be a mapping of names"),
        (GOOD[GOOD.index("      - path") :], 2 * GOOD[GOOD.index("      - path") :], 10, "'a' is pinned twice"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(tmp_path: Path, old: str, new: str, line: int, reason: str) -> None:
    path = tmp_path / "model.lock"
    path.write_text(GOOD)
    assert set(read_lock_file(path).models) == {"m"}
    text = GOOD.replace(old, new)
    if new.startswith("  - m"):
        text = "schema: mx.hub.lock/v1\nmodels:\n  - m\n"
    path.write_text(text)
    with pytest.raises(ManifestError) as caught:
        read_lock_file(path)
    assert f"{path}:{line}: {reason}" in str(caught.value)
