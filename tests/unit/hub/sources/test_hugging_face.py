"""Models of the Hugging Face hub: listed by commit, read from its CDN, with advice when that fails."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.hub_servers.model_files import write_model
from tests.hub_servers.model_hub import ModelHub
from tests.hub_servers.reading import network, read, read_all, tree
from tests.hub_servers.stand_in import Fault, sha256_of
from vllm_mxext.errors import ConfigError, DownloadError, HubCause, TransferError
from vllm_mxext.hub.sources.hugging_face import HuggingFaceSource, read_token

SHARD = "model-00001-of-00002.safetensors"


def source(
    hub: ModelHub, uri: str = "hf://acme/tiny", revision: str | None = None, **environ: str
) -> HuggingFaceSource:
    return HuggingFaceSource(uri, revision, network({"HF_ENDPOINT": hub.url, **environ}))


def error(asked: HuggingFaceSource) -> DownloadError:
    with pytest.raises(DownloadError) as caught:
        read_all(asked)
    return caught.value


@pytest.mark.promise("HUB-SOURCE-1")
def test_every_file_of_a_model_is_read_as_it_is(hub: ModelHub, model: Path) -> None:
    assert read_all(source(hub)) == tree(model)


def test_threads_share_a_source(hub: ModelHub, model: Path) -> None:
    asked = source(hub)
    shard = next(file for file in asked.list_files().files if file.path == SHARD)
    content, starts = (model / SHARD).read_bytes(), range(0, 100_000, 5_000)
    with ThreadPoolExecutor(8) as pool:
        parts = list(pool.map(lambda start: read(asked, shard, start, start + 5_000), starts))
    assert b"".join(parts) == content[:100_000]


def test_the_listing_is_of_the_commit_with_sizes_and_the_digests_of_large_files(hub: ModelHub, model: Path) -> None:
    listing = source(hub).list_files()
    by_path = {file.path: file for file in listing.files}
    assert listing.revision == hub.add("acme/tiny", model)
    assert by_path[SHARD].sha256 == sha256_of(model / SHARD)
    assert by_path[SHARD].size == (model / SHARD).stat().st_size
    assert by_path["config.json"].sha256 is None


def test_files_are_of_the_listed_commit_when_the_branch_moves_on(hub: ModelHub, model: Path, tmp_path: Path) -> None:
    asked = source(hub)
    listed = {file.path: file for file in asked.list_files().files}
    hub.models["acme/tiny"].folders = {"old": model, "main": write_model(tmp_path / "new", seed=1)}
    assert read(asked, listed["config.json"]) == (model / "config.json").read_bytes()


def test_a_part_of_a_file_is_read_with_the_validator_of_the_first_answer(hub: ModelHub, model: Path) -> None:
    asked = source(hub)
    shard = next(file for file in asked.list_files().files if file.path == SHARD)
    with asked.open_range(shard, 0, None, None) as first:
        validator = first.validator
    with asked.open_range(shard, 1000, 1100, validator) as second:
        assert (second.start, second.total_size, second.validator) == (1000, shard.size, validator)
        assert b"".join(second.chunks()) == (model / SHARD).read_bytes()[1000:1100]


def test_another_validator_starts_at_the_beginning(hub: ModelHub) -> None:
    asked = source(hub)
    shard = next(file for file in asked.list_files().files if file.path == SHARD)
    with asked.open_range(shard, 1000, None, '"of another file"') as opened:
        assert opened.start == 0


def test_further_parts_of_a_file_are_asked_of_the_cdn_alone_until_the_address_expires(
    hub: ModelHub, model: Path
) -> None:
    asked = source(hub)
    shard = next(file for file in asked.list_files().files if file.path == SHARD)
    content = (model / SHARD).read_bytes()
    assert b"".join(read(asked, shard, start, start + 100) for start in (0, 100, 200)) == content[:300]
    assert sum("/resolve/" in path for path in hub.paths()) == 1
    hub.cdn.fails(Fault(status=403))
    assert read(asked, shard, 300, 400) == content[300:400]
    assert sum("/resolve/" in path for path in hub.paths()) == 2


def test_a_small_file_that_is_not_the_commits_is_noticed_without_a_sha256(hub: ModelHub) -> None:
    asked = source(hub)
    config = next(file for file in asked.list_files().files if file.path == "config.json")
    hub.fails(Fault("resolve-cache", flips=3))
    with (
        asked.open_range(config, 0, None, None) as opened,
        pytest.raises(TransferError, match=r"'config\.json' arrived damaged"),
    ):
        next(opened.chunks())  # a reader that stops when it has all bytes hears of it too
    assert read(asked, config).startswith(b"{")


@pytest.mark.parametrize(
    "form", ["hf://acme/tiny@v2", "acme/tiny@v2", "hf://acme/tiny:v2", "hf://acme/tiny@v2/original"]
)
def test_revision_and_folder_come_from_the_uri(hub: ModelHub, model: Path, tmp_path: Path, form: str) -> None:
    old = write_model(tmp_path / "old", seed=2)
    hub.add("acme/tiny", old, "v2")
    expected = tree(old / "original") if form.endswith("original") else tree(old)
    assert read_all(source(hub, form)) == expected
    assert source(hub, form, "main").list_files().revision == hub.add("acme/tiny", model)


@pytest.mark.promise("HUB-SOURCE-2")
def test_the_token_goes_to_the_hub_and_not_to_its_cdn(hub: ModelHub, model: Path) -> None:
    hub.add("acme/tiny", model, is_private=True)
    hub.tokens["hf_good_token_of_a_member"] = True
    assert read_all(source(hub, HF_TOKEN="hf_good_token_of_a_member")) == tree(model)
    assert all("hf_good" in asked.headers["authorization"] for asked in hub.asked)
    assert hub.cdn.asked
    assert not any("authorization" in asked.headers or "cookie" in asked.headers for asked in hub.cdn.asked)


def test_an_unknown_name_says_what_to_check(hub: ModelHub) -> None:
    told = error(source(hub, "hf://acme/tinny"))
    assert told.cause is HubCause.UNAUTHORIZED
    assert "'acme/tinny'" in str(told)
    assert "check its name, or set HF_TOKEN" in str(told)


def test_an_unknown_name_with_a_valid_token_is_not_found(hub: ModelHub) -> None:
    hub.tokens["hf_good_token_of_a_member"] = True
    assert error(source(hub, "hf://acme/tinny", HF_TOKEN="hf_good_token_of_a_member")).cause is HubCause.NOT_FOUND


def test_an_unknown_revision_says_where_to_look(hub: ModelHub) -> None:
    told = error(source(hub, "hf://acme/tiny@v9"))
    assert told.cause is HubCause.NOT_FOUND
    assert f"no revision 'v9'; {hub.url}/acme/tiny/tree/main shows" in str(told)


@pytest.mark.parametrize("has_token", [False, True])
def test_a_gated_model_says_where_its_licence_is(hub: ModelHub, model: Path, has_token: bool) -> None:
    hub.add("acme/tiny", model, is_gated=True)
    hub.tokens["hf_token_without_licence"] = False
    told = error(source(hub, **({"HF_TOKEN": "hf_token_without_licence"} if has_token else {})))
    assert told.cause is HubCause.UNAUTHORIZED
    assert "accept" in str(told)
    assert f"{hub.url}/acme/tiny" in str(told)
    assert ("hf_t…" in str(told)) is has_token
    assert "hf_token_without" not in str(told)


def test_an_expired_token_is_named_by_its_first_characters(hub: ModelHub) -> None:
    told = error(source(hub, HF_TOKEN="hf_expired_token_1234"))
    assert "hf_e… is not valid any more" in str(told)
    assert "expired_token" not in str(told)


def test_another_server_under_the_endpoint_is_noticed(hub: ModelHub) -> None:
    asked = source(hub, HF_ENDPOINT=f"{hub.url}/api/v1/models/acme/tiny?x=")
    assert "check HF_ENDPOINT" in str(error(asked))


@pytest.mark.parametrize("uri", ["hf://", "hf://a/b@", "hf://-//", "hf://a b/c"])
def test_a_malformed_uri_says_the_form(uri: str) -> None:
    with pytest.raises(ConfigError, match="must have the form hf://ORG/NAME"):
        HuggingFaceSource(uri, None, network())


def test_the_token_is_found_where_the_hubs_package_keeps_it(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("hf_from_file\n")
    (tmp_path / ".cache" / "huggingface").mkdir(parents=True)
    (tmp_path / ".cache" / "huggingface" / "token").write_text("hf_from_home")
    assert read_token({"HF_TOKEN": " hf_a ", "HF_HOME": str(tmp_path)}) == "hf_a"
    assert read_token({"HF_TOKEN": "", "HUGGING_FACE_HUB_TOKEN": "hf_b"}) == "hf_b"
    assert read_token({"HF_HOME": str(tmp_path)}) == "hf_from_file"
    assert read_token({"HF_TOKEN_PATH": "~/token", "HOME": str(tmp_path)}) == "hf_from_file"
    assert read_token({"HOME": str(tmp_path)}) == "hf_from_home"
    assert read_token({"HF_HOME": str(tmp_path / "nowhere")}) is None
    assert read_token({}) is None
