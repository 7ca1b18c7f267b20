"""Web servers and folders as sources, and the source that an address stands for."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.hub_servers.model_files import write_model
from tests.hub_servers.reading import network, read, read_all, tree
from tests.hub_servers.stand_in import Answer, Asked, Fault, StandIn, file_answer, sha256_of
from vllm_mxext.errors import ConfigError, DownloadError, HubCause
from vllm_mxext.hub.network import Network
from vllm_mxext.hub.sources.files import FileSource
from vllm_mxext.hub.sources.hugging_face import HuggingFaceSource
from vllm_mxext.hub.sources.interface import RemoteFile
from vllm_mxext.hub.sources.modelscope import ModelScopeSource
from vllm_mxext.hub.sources.opening import open_source, schemes
from vllm_mxext.hub.sources.web import WebSource


class Folder(StandIn):
    """A web server over a folder, without an index."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def answer(self, asked: Asked) -> Answer:
        file = self.folder / asked.path.removeprefix("/models/tiny").lstrip("/")
        if not file.is_file():
            return Answer(404, {"Content-Type": "text/html"}, b"<html>not found</html>")
        return file_answer(asked, file, f'"{sha256_of(file)[:16]}"')


@pytest.fixture
def web(model: Path) -> Iterator[Folder]:
    with Folder(model) as running:
        yield running


def test_a_folder_is_listed_by_well_known_names_and_the_index_of_its_shards(web: Folder, model: Path) -> None:
    expected = {path: data for path, data in tree(model).items() if "/" not in path}
    assert read_all(WebSource(f"{web.url}/models/tiny/", None, network())) == expected


def test_a_folder_with_sums_is_listed_by_them_with_digests(web: Folder, model: Path) -> None:
    files = tree(model)
    (model / "SHA256SUMS").write_text("".join(f"{sha256_of(model / path)} *./{path}\n" for path in files))
    source = WebSource(f"{web.url}/models/tiny", None, network())
    assert read_all(source) == files
    assert {file.path: file.sha256 for file in source.list_files().files} == {
        path: sha256_of(model / path) for path in files
    }


def test_files_that_a_manifest_names_are_taken_as_they_are(web: Folder, model: Path) -> None:
    known = RemoteFile("config.json", 5, "0" * 64)
    source = WebSource(f"{web.url}/models/tiny/?sig=1", None, network(), [known])
    (file,) = source.list_files().files
    assert (file.path, file.size, file.sha256) == ("config.json", 5, "0" * 64)
    assert file.locator == f"{web.url}/models/tiny/config.json?sig=1"
    assert source.uri.endswith("tiny/?…")


def test_one_file_is_a_source(web: Folder, model: Path) -> None:
    source = WebSource(f"{web.url}/models/tiny/model-00001-of-00002.safetensors", None, network())
    (file,) = source.list_files().files
    assert file.size == (model / file.path).stat().st_size
    assert read(source, file) == (model / file.path).read_bytes()


@pytest.mark.parametrize(("path", "advice"), [("nothing/", "put a SHA256SUMS"), ("nothing.gguf", "check the address")])
def test_an_address_with_nothing_says_what_to_do(web: Folder, path: str, advice: str) -> None:
    with pytest.raises(DownloadError, match=advice) as caught:
        WebSource(f"{web.url}/{path}", None, network()).list_files()
    assert caught.value.cause is HubCause.NOT_FOUND


def test_a_list_survives_a_server_that_is_in_trouble_for_a_moment(web: Folder, impatient: None) -> None:
    web.fails(Fault("config.json", status=503))
    files = WebSource(f"{web.url}/models/tiny/", None, network()).list_files().files
    assert "config.json" in [file.path for file in files]


def test_a_password_in_an_address_is_refused() -> None:
    with pytest.raises(ConfigError, match="must not have a user or password") as caught:
        WebSource("https://user:pass1234@host/x/", None, network())
    assert "pass1234" not in str(caught.value)


def test_a_folder_of_this_machine_is_read_through_links_to_files(model: Path, tmp_path: Path) -> None:
    linked = tmp_path / "linked"
    linked.mkdir()
    for path in ("config.json", "tokenizer.json"):
        (linked / path).symlink_to(model / path)
    (linked / ".git").mkdir()
    (linked / ".git" / "HEAD").write_text("x")
    assert sorted(read_all(FileSource(str(linked), None))) == ["config.json", "tokenizer.json"]
    assert read_all(FileSource(model.as_uri(), None)) == tree(model)
    assert list(read_all(FileSource(str(model / "config.json"), None))) == ["config.json"]


def test_a_file_that_changed_starts_at_the_beginning(model: Path) -> None:
    source = FileSource(str(model), None)
    config = next(file for file in source.list_files().files if file.path == "config.json")
    with source.open_range(config, 5, 9, None) as opened:
        validator = opened.validator
        assert (opened.start, b"".join(opened.chunks())) == (5, (model / "config.json").read_bytes()[5:9])
    (model / "config.json").write_text('{"another": "file"}')
    with source.open_range(config, 5, None, validator) as opened:
        assert (opened.start, b"".join(opened.chunks())) == (0, b'{"another": "file"}')


def test_the_revision_of_a_folder_tells_changes(model: Path) -> None:
    revision = FileSource(str(model), None).list_files().revision
    assert FileSource(str(model), revision).list_files().revision == revision
    write_model(model, seed=5)
    os.utime(model / "config.json", (1, 1))
    with pytest.raises(DownloadError, match="has changed"):
        FileSource(str(model), revision).list_files()


def test_a_folder_that_is_not_there_or_is_empty_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name, advice in (("nowhere", "does not exist"), ("empty", "has no files")):
        with pytest.raises(DownloadError, match=advice) as caught:
            FileSource(str(tmp_path / name), None).list_files()
        assert caught.value.cause is HubCause.NOT_FOUND


def test_a_file_of_another_machine_is_refused() -> None:
    with pytest.raises(ConfigError, match="three slashes"):
        FileSource("file://other/path", None)


@pytest.mark.parametrize(
    ("uri", "uses_modelscope", "kind"),
    [
        ("hf://acme/tiny", False, HuggingFaceSource),
        ("acme/tiny", False, HuggingFaceSource),
        ("acme/tiny@v1", True, ModelScopeSource),
        ("modelscope://acme/tiny", False, ModelScopeSource),
        ("/models/tiny", False, FileSource),
        ("./tiny", False, FileSource),
        ("~/tiny", True, FileSource),
        ("file:///models/tiny", False, FileSource),
        ("HTTPS://host/tiny/", False, WebSource),
    ],
)
def test_an_address_stands_for_a_source(uri: str, uses_modelscope: bool, kind: type) -> None:
    assert isinstance(open_source(uri, None, network(uses_modelscope=uses_modelscope)), kind)


@pytest.mark.parametrize(
    ("uri", "advice"),
    [
        ("modelscop://acme/tiny", "did you mean modelscope://?"),
        ("zzz://acme/tiny", "there are file://"),
        ("tiny", "write ORG/NAME, a path that begins with / or ./"),
    ],
)
def test_an_unknown_address_says_what_there_is(uri: str, advice: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_source(uri, None, network())
    assert advice in str(caught.value)


class PluginSource:
    """What a package of somebody else's provides."""

    def __init__(self, uri: str, revision: str | None, connections: Network) -> None:
        self.uri = uri


@pytest.mark.promise("HUB-SOURCE-4")
def test_other_packages_add_schemes(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = importlib.metadata.EntryPoint("torrent", f"{__name__}:PluginSource", "vllm_mxext.hub_sources")
    monkeypatch.setattr(importlib.metadata.EntryPoint, "load", lambda self: PluginSource)

    def entry_points(**asked: Any) -> list[importlib.metadata.EntryPoint]:
        return [entry] if asked == {"group": "vllm_mxext.hub_sources"} else []

    monkeypatch.setattr(importlib.metadata, "entry_points", entry_points)
    assert isinstance(open_source("torrent://x", None, network()), PluginSource)
    assert "torrent" in schemes()
