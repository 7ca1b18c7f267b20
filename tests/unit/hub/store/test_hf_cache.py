"""Caches of other programs: found as their own packages lay them out, used only if whole, never written."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from huggingface_hub import scan_cache_dir, try_to_load_from_cache

from tests.unit.hub.store_files import contents, digest
from vllm_mxext.hub.store.blobs import BlobStore
from vllm_mxext.hub.store.hf_cache import (
    CachedBlobs,
    find_snapshot,
    hugging_face_folder,
    modelscope_folder,
)
from vllm_mxext.hub.store.model_store import ModelStore
from vllm_mxext.hub.store.snapshot import StoredFile

COMMIT = "0123456789" * 4
SHARDS = {f"model-0000{number}-of-00002.safetensors": bytes([number]) * 100 for number in (1, 2)}
INDEX = json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}})
FILES = {
    "config.json": b"{}",
    "tokenizer.json": b"{ }",
    "model.safetensors.index.json": INDEX.encode(),
    **SHARDS,
}


def fill(cache: Path, name: str = "org/name", files: dict[str, bytes] | None = None) -> Path:
    """Lays files out as `huggingface_hub` does."""
    model = cache / f"models--{name.replace('/', '--')}"
    snapshot = model / "snapshots" / COMMIT
    for path, content in (FILES if files is None else files).items():
        git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        blob = model / "blobs" / (digest(content) if path.endswith((".safetensors", ".gguf")) else git)
        for file in (blob, snapshot / path):
            file.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(content)
        (snapshot / path).symlink_to(Path(*[".."] * (2 + path.count("/"))) / "blobs" / blob.name)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(COMMIT)
    return snapshot


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "hub"


def find(cache: Path, uri: str = "hf://org/name", revision: str = "") -> Path | None:
    return find_snapshot([uri], revision, {"HF_HUB_CACHE": str(cache)})


def test_the_caches_are_where_their_packages_have_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    for environ, folder in (
        ({}, "/home/me/.cache/huggingface/hub"),
        ({"XDG_CACHE_HOME": "/x"}, "/x/huggingface/hub"),
        ({"HF_HOME": "~/h", "XDG_CACHE_HOME": "/x"}, "/home/me/h/hub"),
        ({"HUGGINGFACE_HUB_CACHE": "/old", "HF_HOME": "/h"}, "/old"),
        ({"HF_HUB_CACHE": "$HOME/c", "HUGGINGFACE_HUB_CACHE": "/old"}, "/home/me/c"),
    ):
        assert hugging_face_folder(environ) == Path(folder)
    assert modelscope_folder({}) == Path("/home/me/.cache/modelscope")
    assert modelscope_folder({"MODELSCOPE_CACHE": "/m"}) == Path("/m")


@pytest.mark.promise("HUB-CACHE-1")
def test_a_whole_snapshot_is_used_where_it_lies(cache: Path) -> None:
    folder = fill(cache)
    assert scan_cache_dir(cache).repos, "the package reads this layout"
    assert try_to_load_from_cache("org/name", "config.json", cache_dir=cache) == str(folder / "config.json")
    before = {path: path.lstat().st_mtime_ns for path in cache.rglob("*")}
    for uri, revision in (
        ("hf://org/name", ""),
        ("org/name", "main"),
        ("hf://org/name", COMMIT),
        (f"hf://org/name@{COMMIT}", ""),
    ):
        assert find(cache, uri, revision) == folder
    for uri, revision in (
        ("hf://org/other", ""),
        ("hf://org/name", "dev"),
        ("hf://org/name", "f" * 40),
        ("hf://org/name", "../refs/main"),
        ("hf://org/name", "a\0b"),
        ("s3://org/name", ""),
        ("modelscope://org/name", ""),
    ):
        assert find(cache, uri, revision) is None
    assert find_snapshot(["s3://a/b", "org/none", "org/name"], "", {"HF_HUB_CACHE": str(cache)}) == folder
    assert {path: path.lstat().st_mtime_ns for path in cache.rglob("*")} == before


@pytest.mark.promise("HUB-CACHE-1")
@pytest.mark.parametrize("missing", [*SHARDS, "config.json", "tokenizer.json"])
def test_a_snapshot_with_something_missing_is_not_used(cache: Path, missing: str) -> None:
    folder = fill(cache)
    blob = (folder / missing).resolve()
    content = blob.read_bytes()
    blob.unlink()
    assert find(cache) is None
    blob.write_bytes(content)
    assert find(cache) == folder
    (folder / missing).unlink()
    assert find(cache) is None
    (folder / "model.safetensors.index.json").unlink()
    assert find(cache) is None


def test_what_is_no_model_of_ours_is_not_used(cache: Path, tmp_path: Path) -> None:
    folder = fill(cache)
    assert find(cache) == folder
    assert find_snapshot(["org/name"], "", {"HF_HUB_CACHE": str(cache)}, lambda one: one != folder) is None
    (folder / "evil").symlink_to(tmp_path)
    assert find(cache) is None
    (folder / "evil").unlink()
    (folder / "model.safetensors.index.json").unlink()
    (folder / "model.safetensors.index.json").write_text('{"weight_map": 3}')
    assert find(cache) is None
    for name, files, is_used in (
        ("gguf", {"model-q4.gguf": b"GGUF"}, True),
        ("empty", {"model-q4.gguf": b""}, False),
        ("shards", {"m-00001-of-00002.gguf": b"GGUF"}, False),
        ("pickle", {"config.json": b"{}", "tokenizer.json": b"{}", "pytorch_model.bin": b"x"}, False),
    ):
        folder = fill(cache, name, files)
        assert find(cache, f"hf://{name}") == (folder if is_used else None)


def test_blobs_shared_by_all_repositories_are_followed(cache: Path, tmp_path: Path) -> None:
    folder = fill(cache)
    shard = next(iter(SHARDS))
    blob = folder.parents[1] / "blobs" / digest(SHARDS[shard])
    shared = cache / "blobs" / "ab" / ("ab" * 32)
    shared.parent.mkdir(parents=True)
    blob.rename(shared)
    blob.symlink_to("../../blobs/ab/" + "ab" * 32)
    assert find(cache) == folder
    assert CachedBlobs(cache)(digest(SHARDS[shard])) == blob
    assert CachedBlobs(cache)("ab" * 32) is None


@pytest.mark.promise("HUB-CACHE-2")
def test_a_cached_model_is_published_without_copying_it(cache: Path, tmp_path: Path) -> None:
    fill(cache)
    store = ModelStore(tmp_path / "store")
    store.blobs = BlobStore(store.folder, read_only_roots=[CachedBlobs(cache)])
    weights = [StoredFile(path, len(content), digest(content)) for path, content in SHARDS.items()]
    made = store.publish("m", COMMIT, "hf://org/name", weights)
    assert contents(made) == SHARDS
    assert list(store.blobs.digests()) == []
    shutil.rmtree(cache)
    assert store.snapshot("m") is None


@pytest.mark.promise("HUB-CACHE-2")
def test_a_damaged_cached_file_is_not_taken_for_what_its_name_says(cache: Path) -> None:
    folder = fill(cache)
    find_blob = CachedBlobs(cache)
    shard = (folder / next(iter(SHARDS))).resolve()
    assert find_blob(shard.name) == shard
    shard.write_bytes(b"x" * 101)
    assert find_blob(shard.name) is None
    assert CachedBlobs(cache / "missing")(shard.name) is None
    assert find_blob("../x") is None


def test_the_cache_of_modelscope_is_read_too(tmp_path: Path) -> None:
    environ = {"MODELSCOPE_CACHE": str(tmp_path), "HF_HUB_CACHE": str(tmp_path / "none")}
    for revision in ("master", "v1"):
        folder = tmp_path / "models" / "org--name.1" / "snapshots" / revision
        folder.mkdir(parents=True)
        for path, content in FILES.items():
            (folder / path).write_bytes(content)
        assert find_snapshot(["modelscope://org/name.1"], "v1" if revision == "v1" else "", environ) == folder
    assert find_snapshot(["modelscope://org/name.1"], "v2", environ) is None
    (folder / "config.json.incomplete").write_bytes(b"")
    assert find_snapshot(["modelscope://org/name.1"], "v1", environ) is None
