"""Models of ModelScope: listed with digests, read whole or in parts, with its token in both of its forms."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.hub_servers.model_files import write_model
from tests.hub_servers.model_hub import ModelHub
from tests.hub_servers.reading import network, read_all, tree
from tests.hub_servers.stand_in import sha256_of
from vllm_mxext.errors import ConfigError, DownloadError, HubCause
from vllm_mxext.hub.sources import modelscope
from vllm_mxext.hub.sources.modelscope import ModelScopeSource


def source(
    hub: ModelHub, uri: str = "modelscope://acme/tiny", revision: str | None = None, **environ: str
) -> ModelScopeSource:
    return ModelScopeSource(uri, revision, network({"MODELSCOPE_ENDPOINT": hub.url, **environ}))


@pytest.mark.promise("HUB-SOURCE-1")
def test_every_file_of_a_model_is_read_as_it_is_and_has_a_digest(hub: ModelHub, model: Path) -> None:
    asked = source(hub)
    assert read_all(asked) == tree(model)
    assert {file.path: file.sha256 for file in asked.list_files().files} == {
        path: sha256_of(model / path) for path in tree(model)
    }


def test_a_server_that_ignores_ranges_starts_at_the_beginning(hub: ModelHub) -> None:
    asked = source(hub)
    config = next(file for file in asked.list_files().files if file.path == "config.json")
    with asked.open_range(config, 5, None, None) as opened:
        assert opened.start == 0


@pytest.mark.parametrize("form", ["modelscope://acme/tiny@v2", "modelscope://acme/tiny:v2"])
def test_the_address_may_name_a_revision(hub: ModelHub, tmp_path: Path, form: str) -> None:
    other = write_model(tmp_path / "v2", seed=2)
    hub.add("acme/tiny", other, "v2")
    assert read_all(source(hub, form)) == tree(other)


def test_the_revision_can_be_asked_for_again_and_is_refused_when_files_have_changed(
    hub: ModelHub, tmp_path: Path
) -> None:
    revision = source(hub).list_files().revision
    assert revision.startswith("master+")
    assert source(hub, revision=revision).list_files().revision == revision
    hub.models["acme/tiny"].folders["main"] = write_model(tmp_path / "new", seed=1)
    with pytest.raises(DownloadError, match="has changed"):
        source(hub, revision=revision).list_files()


@pytest.mark.promise("HUB-SOURCE-2")
def test_the_token_goes_to_the_hub_as_bearer_and_cookie_and_not_to_its_cdn(hub: ModelHub, model: Path) -> None:
    hub.add("acme/tiny", model, is_private=True)
    hub.tokens["ms-token-of-a-member"] = True
    assert read_all(source(hub, MODELSCOPE_API_TOKEN="ms-token-of-a-member")) == tree(model)
    assert all("m_session_id=" in asked.headers["cookie"] for asked in hub.asked)
    assert hub.cdn.asked
    assert not any("authorization" in asked.headers or "cookie" in asked.headers for asked in hub.cdn.asked)


def test_an_unknown_model_says_what_the_server_said_and_what_to_check(hub: ModelHub) -> None:
    with pytest.raises(DownloadError, match=r"does not exist or is private.*check its name") as caught:
        source(hub, "modelscope://acme/tinny").list_files()
    assert caught.value.cause is HubCause.NOT_FOUND


def test_a_gated_model_says_which_token_is_missing(hub: ModelHub, model: Path) -> None:
    hub.add("acme/tiny", model, is_gated=True)
    with pytest.raises(DownloadError, match="set MODELSCOPE_API_TOKEN") as caught:
        read_all(source(hub))
    assert caught.value.cause is HubCause.UNAUTHORIZED


def test_a_listing_that_the_server_cut_off_is_taken_folder_by_folder(
    hub: ModelHub, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(4):
        folder = model / f"part{number}"
        folder.mkdir()
        (folder / "a.json").write_text("{}")
        (folder / "b.json").write_text("[]")
    monkeypatch.setattr(modelscope, "_MAX_ENTRIES", 11)
    hub.max_listed = 11
    assert read_all(source(hub)) == tree(model)


def test_a_malformed_uri_says_the_form() -> None:
    with pytest.raises(ConfigError, match="must have the form modelscope://ORG/NAME"):
        ModelScopeSource("modelscope://tiny", None, network())
