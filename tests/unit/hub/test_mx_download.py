"""`pull()` and `obtain()` against hubs that work, fail, lie and go away."""

from __future__ import annotations

import dataclasses
import hashlib
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub_servers.model_files import write_model
from tests.hub_servers.model_hub import ModelHub
from tests.hub_servers.stand_in import Fault
from vllm_mxext.config.hub import HubConfig, NetworkConfig
from vllm_mxext.errors import ChecksumError, DownloadError, HubCause, MissingDependencyError, UnsafeFileError
from vllm_mxext.hub.manifest.model import Artifact, FileEntry, ModelEntry
from vllm_mxext.hub.mx_download import Downloading, NeedsDownloadError, Wish, obtain, pull, stored, wish_for
from vllm_mxext.hub.progress import Phase, Progress
from vllm_mxext.hub.store.model_store import ModelStore

NAME = "acme/model"
WEIGHTS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "origin")


@pytest.fixture
def hub(model: Path) -> Iterator[ModelHub]:
    with ModelHub() as hub:
        hub.add(NAME, model)
        yield hub


def config(tmp_path: Path, hub: ModelHub, *, is_offline: bool = False) -> HubConfig:
    environ = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "NO_PROXY": "*", "HOME": str(tmp_path)}
    return HubConfig(tmp_path / "store", NetworkConfig(is_offline=is_offline, environ=environ))


def wish(*sources: str, artifact: Artifact | None = None) -> Wish:
    artifacts = () if artifact is None else (artifact,)
    entry = ModelEntry(NAME, sources=sources or (f"hf://{NAME}",), artifacts=artifacts)
    return wish_for(entry, HubConfig(Path("unused")))


@pytest.mark.promise("HUB-PULL-2")
def test_a_pull_leaves_the_files_of_the_source_and_later_ones_open_no_connection(
    tmp_path: Path, hub: ModelHub, model: Path
) -> None:
    seen: list[Progress] = []
    snapshot = pull(wish(), config(tmp_path, hub), Downloading(seen.append))
    for name in (*WEIGHTS, "config.json", "tokenizer.json"):
        assert (snapshot.folder / name).read_bytes() == (model / name).read_bytes()
    assert [seen[0].phase, seen[-1].phase] == [Phase.LISTING, Phase.DONE]
    assert seen[-1].done_bytes == seen[-1].total_bytes == snapshot.size
    asked = len(hub.asked)
    assert obtain(wish(), config(tmp_path, hub, is_offline=True), Downloading()) == (snapshot.folder, snapshot)
    assert len(hub.asked) == asked


@pytest.mark.promise("HUB-PULL-2")
def test_sources_take_over_from_each_other_and_the_last_failure_names_them_all(tmp_path: Path, hub: ModelHub) -> None:
    snapshot = pull(wish("hf://acme/gone", f"hf://{NAME}"), config(tmp_path, hub), Downloading())
    assert snapshot.uri == f"hf://{NAME}"
    with pytest.raises(DownloadError, match=r"None of the sources.*acme/gone.*acme/lost") as caught:
        pull(wish("hf://acme/gone", "hf://acme/lost"), config(tmp_path, hub), Downloading())
    assert caught.value.cause in (HubCause.NOT_FOUND, HubCause.UNAUTHORIZED)


@pytest.mark.promise("HUB-PULL-3")
def test_bytes_that_are_not_the_promised_ones_are_never_published(tmp_path: Path, hub: ModelHub) -> None:
    hub.cdn.fails(Fault(flips=1000, times=None))
    with pytest.raises(ChecksumError, match="model-0000"):
        pull(wish(), config(tmp_path, hub), Downloading())
    assert ModelStore(tmp_path / "store").snapshots() == ()
    hub.cdn.heals()
    assert pull(wish(), config(tmp_path, hub), Downloading()).size > 0


@pytest.mark.promise("HUB-PULL-3")
def test_a_manifest_that_pins_other_bytes_refuses_the_source(tmp_path: Path, hub: ModelHub) -> None:
    pinned = Artifact("model", files=(FileEntry("config.json"), FileEntry(WEIGHTS[0], sha256="a" * 64)))
    with pytest.raises(ChecksumError, match="the manifest says a"):
        pull(wish(artifact=pinned), config(tmp_path, hub), Downloading())


def test_what_is_stored_is_no_longer_taken_once_the_manifest_pins_other_bytes(tmp_path: Path, hub: ModelHub) -> None:
    snapshot = pull(wish(), config(tmp_path, hub), Downloading())
    store = ModelStore(tmp_path / "store")
    (first,) = (file for file in snapshot.files if file.path == WEIGHTS[0])
    same = Artifact("model", files=(FileEntry(WEIGHTS[0], sha256=first.sha256),))
    assert stored(wish(artifact=same), store) == snapshot
    for other in (dataclasses.replace(same.files[0], sha256="b" * 64), FileEntry("more.json")):
        assert stored(wish(artifact=Artifact("model", files=(other,))), store) is None


@pytest.mark.promise("HUB-PULL-2")
def test_a_newer_revision_is_fetched_by_a_pull_and_not_by_a_start(tmp_path: Path, hub: ModelHub) -> None:
    old = pull(wish(), config(tmp_path, hub), Downloading())
    hub.add(NAME, write_model(tmp_path / "newer", seed=1))
    assert obtain(wish(), config(tmp_path, hub), Downloading())[1] == old
    new = pull(wish(), config(tmp_path, hub), Downloading())
    assert new.revision != old.revision
    assert obtain(wish(), config(tmp_path, hub), Downloading())[1] == new
    assert (old.folder / "config.json").read_text() != (new.folder / "config.json").read_text()


def test_what_is_missing_is_said_instead_of_downloaded_where_that_is_not_allowed(tmp_path: Path, hub: ModelHub) -> None:
    with pytest.raises(NeedsDownloadError):
        obtain(wish(), config(tmp_path, hub), Downloading(is_allowed=False))
    with pytest.raises(DownloadError, match="--offline") as caught:
        obtain(wish(), config(tmp_path, hub, is_offline=True), Downloading())
    assert caught.value.cause is HubCause.OFFLINE
    assert hub.asked == []


def test_a_revision_in_the_uri_is_told_from_others_that_are_stored(tmp_path: Path, hub: ModelHub) -> None:
    pull(wish(), config(tmp_path, hub), Downloading())
    other = hub.add(NAME, write_model(tmp_path / "v2", seed=2), "v2")
    marked = wish(f"hf://{NAME}@v2")
    store = ModelStore(tmp_path / "store")
    assert stored(marked, store) is None
    assert pull(marked, config(tmp_path, hub), Downloading()).revision == other
    assert stored(marked, store) is not None


@pytest.mark.promise("HUB-SAFE-2")
def test_a_pickle_in_the_clothes_of_safetensors_is_never_published(tmp_path: Path, hub: ModelHub, model: Path) -> None:
    (model / WEIGHTS[0]).write_bytes(pickle.dumps({"weight": list(range(1000))}))
    hub.add(NAME, model)
    with pytest.raises(UnsafeFileError, match=WEIGHTS[0]):
        pull(wish(), config(tmp_path, hub), Downloading())
    assert ModelStore(tmp_path / "store").snapshots() == ()


@pytest.mark.promise("HUB-SIGN-1")
def test_an_unsigned_model_is_not_published_where_a_signature_is_required(tmp_path: Path, hub: ModelHub) -> None:
    signed = dataclasses.replace(config(tmp_path, hub), signature="require")
    with pytest.raises((UnsafeFileError, MissingDependencyError), match="signature"):
        pull(wish(), signed, Downloading())
    assert ModelStore(tmp_path / "store").snapshots() == ()


@pytest.mark.promise("HUB-SIGN-1")
def test_a_signature_that_is_required_is_required_of_what_is_here_already(
    tmp_path: Path, hub: ModelHub, model: Path
) -> None:
    settings = config(tmp_path, hub)
    pull(wish(), settings, Downloading())
    signed = dataclasses.replace(settings, signature="require")
    with pytest.raises((UnsafeFileError, MissingDependencyError), match="signature"):
        obtain(wish(), signed, Downloading())
    cache_model(tmp_path, hub, model)
    elsewhere = dataclasses.replace(signed, folder=tmp_path / "empty")
    with pytest.raises((UnsafeFileError, MissingDependencyError), match="signature"):
        obtain(wish(), elsewhere, Downloading())


@pytest.mark.promise("HUB-CACHE-2")
def test_what_another_program_has_downloaded_is_taken_only_if_it_is_what_the_manifest_pins(
    tmp_path: Path, hub: ModelHub, model: Path
) -> None:
    settings = config(tmp_path, hub, is_offline=True)
    cached = cache_model(tmp_path, hub, model)
    assert obtain(wish(), settings, Downloading()) == (cached, None)
    content = (model / "config.json").read_bytes()
    right = FileEntry("config.json", len(content), hashlib.sha256(content).hexdigest())
    weights = tuple(FileEntry(name) for name in WEIGHTS)
    assert obtain(wish(artifact=Artifact("model", files=(right, *weights))), settings, Downloading())[0] == cached
    wrong = (dataclasses.replace(right, sha256="0" * 64), dataclasses.replace(right, size=1), FileEntry("more.json"))
    for artifact in (*(Artifact("model", files=(one, *weights)) for one in wrong), Artifact("model", "gguf")):
        with pytest.raises(DownloadError) as caught:
            obtain(wish(artifact=artifact), settings, Downloading())
        assert caught.value.cause is HubCause.OFFLINE


def cache_model(tmp_path: Path, hub: ModelHub, model: Path) -> Path:
    """Puts the model where Hugging Face's own package would."""
    commit = hub.add(NAME, model)
    cache = tmp_path / "hf" / "hub" / f"models--{NAME.replace('/', '--')}"
    shutil.copytree(model, cache / "snapshots" / commit)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(commit)
    return cache / "snapshots" / commit


def test_all_files_are_pulled_where_a_signature_is_looked_for(tmp_path: Path, hub: ModelHub, model: Path) -> None:
    (model / "model.sig").write_text("{}")
    hub.add(NAME, model)
    pinned = Artifact("model", files=tuple(FileEntry(name) for name in (*WEIGHTS, "config.json")))
    without = pull(wish(artifact=pinned), config(tmp_path, hub), Downloading())
    assert [file.path for file in without.files] == ["config.json", *WEIGHTS]
    warned = dataclasses.replace(config(tmp_path, hub), signature="warn")
    assert {"model.sig", "original/params with space.json"} <= {
        file.path for file in pull(wish(artifact=pinned), warned, Downloading()).files
    }
