"""Models in a container registry and in NVIDIA's catalogue."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub_servers.reading import network, read_all, tree
from tests.hub_servers.registries import Ngc, Registry
from tests.hub_servers.stand_in import Fault, sha256_of
from vllm_mxext.errors import ConfigError, DownloadError, HubCause
from vllm_mxext.hub.sources.ngc import NgcSource
from vllm_mxext.hub.sources.oci import OciSource


@pytest.fixture
def registry(model: Path) -> Iterator[Registry]:
    with Registry() as running:
        running.push("acme/tiny", "v1", model)
        yield running


def oci(registry: Registry, rest: str = "acme/tiny:v1", revision: str | None = None, **environ: str) -> OciSource:
    return OciSource(f"oci://{registry.host}/{rest}", revision, network(environ))


@pytest.mark.promise("HUB-SOURCE-1")
@pytest.mark.parametrize("annotation", ["org.opencontainers.image.title", "org.cncf.model.filepath"])
def test_every_layer_of_an_artifact_is_read_as_it_is_and_has_a_digest(
    registry: Registry, model: Path, annotation: str
) -> None:
    digest = registry.push("acme/tiny", "v1", model, annotation)
    source = oci(registry)
    listing = source.list_files()
    assert listing.revision == digest
    assert {file.path: file.sha256 for file in listing.files} == {path: sha256_of(model / path) for path in tree(model)}
    assert read_all(source) == tree(model)


def test_an_artifact_is_found_by_its_digest(registry: Registry, model: Path) -> None:
    digest = registry.push("acme/tiny", "v1", model)
    assert oci(registry, f"acme/tiny@{digest}").list_files().revision == digest
    assert oci(registry, "acme/tiny:other", digest).list_files().revision == digest


def test_another_manifest_than_the_pinned_one_is_refused(registry: Registry, model: Path) -> None:
    digest = registry.push("acme/tiny", "v1", model)
    registry.manifests[f"acme/tiny:{digest}"] += b" "
    with pytest.raises(DownloadError, match="another manifest") as caught:
        oci(registry, f"acme/tiny@{digest}").list_files()
    assert caught.value.cause is HubCause.DAMAGED


def test_a_private_artifact_wants_the_login_of_docker(registry: Registry, model: Path, tmp_path: Path) -> None:
    registry.login = "somebody:pass:word"
    with pytest.raises(DownloadError, match="docker login") as caught:
        oci(registry).list_files()
    assert caught.value.cause is HubCause.UNAUTHORIZED
    auths = {registry.host: {"auth": base64.b64encode(b"somebody:pass:word").decode()}}
    (tmp_path / "config.json").write_text(json.dumps({"auths": auths}))
    assert read_all(oci(registry, DOCKER_CONFIG=str(tmp_path))) == tree(model)
    assert not any(
        "Basic" in asked.headers.get("authorization", "") for asked in registry.asked if asked.path != "/token"
    )


def test_a_token_that_expires_between_two_files_is_replaced(registry: Registry, model: Path) -> None:
    source = oci(registry)
    files = source.list_files().files
    registry.num_tokens += 1  # nobody has the valid one now
    with source.open_range(files[0], 0, None, None) as opened:
        assert b"".join(opened.chunks()) == (model / files[0].path).read_bytes()


@pytest.mark.parametrize(
    ("manifest", "advice"),
    [
        ({"manifests": []}, "is no artifact with layers"),
        ([], "is no artifact with layers"),
        ({"layers": []}, "no layers with names of files"),
        ({"layers": [{"digest": "sha256:x", "annotations": {"org.cncf.model.filepath": "a"}}]}, "is not read"),
        (
            {
                "layers": [
                    {
                        "digest": f"sha256:{'0' * 64}",
                        "mediaType": "application/vnd.cncf.model.weight.v1.tar",
                        "annotations": {"org.cncf.model.filepath": "weights"},
                    }
                ]
            },
            "has 'weights' as application/vnd.cncf.model.weight.v1.tar",
        ),
    ],
)
def test_what_is_no_model_in_raw_layers_is_refused(registry: Registry, manifest: object, advice: str) -> None:
    registry.push_manifest("acme/tiny", "odd", manifest)
    with pytest.raises(DownloadError, match=advice):
        oci(registry, "acme/tiny:odd").list_files()


def test_an_unknown_tag_says_what_to_check(registry: Registry) -> None:
    with pytest.raises(DownloadError, match="check registry, repository and 'v9'") as caught:
        oci(registry, "acme/tiny:v9").list_files()
    assert caught.value.cause is HubCause.NOT_FOUND


@pytest.mark.parametrize(
    "uri", ["oci://host", "oci://user:word@host/name", "oci://host/UPPER", "oci://host/a@sha256:1"]
)
def test_a_malformed_artifact_says_the_form(uri: str) -> None:
    with pytest.raises(ConfigError, match="must have the form oci://REGISTRY/REPOSITORY:TAG"):
        OciSource(uri, None, network())


@pytest.fixture
def ngc(model: Path) -> Iterator[Ngc]:
    with Ngc() as running:
        running.models["models/acme/tiny"] = {"1.0": model}
        running.models["org/acme/team/lab/models/tiny"] = {"1.0": model}
        yield running


def catalogue(ngc: Ngc, uri: str, revision: str | None = None, **environ: str) -> NgcSource:
    return NgcSource(
        uri, revision, network({"NGC_ENDPOINT": ngc.url, "NGC_AUTH_ENDPOINT": f"{ngc.url}/token", **environ})
    )


@pytest.mark.promise("HUB-SOURCE-1")
def test_a_public_model_of_the_catalogue_is_read_as_it_is(ngc: Ngc, model: Path) -> None:
    source = catalogue(ngc, "ngc://acme/tiny:1.0")
    assert read_all(source) == tree(model)
    assert source.list_files().revision.startswith("1.0+")


@pytest.mark.parametrize("attribute", ["key", "old_key"])
def test_a_private_model_is_read_with_keys_of_both_kinds(ngc: Ngc, model: Path, attribute: str) -> None:
    source = catalogue(ngc, "ngc://acme/lab/tiny:1.0", NGC_API_KEY=getattr(ngc, attribute))
    assert read_all(source) == tree(model)


def test_an_expired_token_of_the_catalogue_is_replaced(ngc: Ngc, model: Path) -> None:
    source = catalogue(ngc, "ngc://acme/lab/tiny", "1.0", NGC_API_KEY=ngc.old_key)
    files = source.list_files().files
    ngc.num_tokens += 1
    with source.open_range(files[0], 0, None, None) as opened:
        assert b"".join(opened.chunks()) == (model / files[0].path).read_bytes()


def test_a_wrong_key_is_named_by_its_first_characters(ngc: Ngc) -> None:
    for key in ("nvapi-of-somebody-else", "old-of-somebody-else"):
        with pytest.raises(DownloadError, match=f"the key {key[:4]}…") as caught:
            catalogue(ngc, "ngc://acme/lab/tiny:1.0", NGC_API_KEY=key).list_files()
        assert caught.value.cause is HubCause.UNAUTHORIZED
        assert "somebody" not in str(caught.value)


def test_an_older_form_of_the_list_is_read(ngc: Ngc, model: Path) -> None:
    paths = sorted(tree(model))
    source = catalogue(ngc, "ngc://acme/tiny:1.0")
    ngc.listed = {"filepath": paths, "urls": ["https://signed"] * len(paths)}
    assert [file.path for file in source.list_files().files] == paths


@pytest.mark.parametrize("uri", ["ngc://acme/tiny", "ngc://acme", "ngc://a/b/c/d:1", "ngc://key:word@acme/tiny:1"])
def test_a_malformed_name_says_the_form(uri: str) -> None:
    with pytest.raises(ConfigError, match=r"must have the form ngc://ORG/\[TEAM/\]NAME:VERSION"):
        NgcSource(uri, None, network())


def test_a_page_in_the_place_of_a_list_is_noticed(ngc: Ngc, impatient: None) -> None:
    ngc.fails(Fault(is_page=True, times=None))
    with pytest.raises(DownloadError, match="no JSON"):
        catalogue(ngc, "ngc://acme/tiny:1.0").list_files()
