"""Models in buckets: S3 by a real S3 server (moto's), Google Cloud Storage by a stand-in."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub_servers.model_files import write_model
from tests.hub_servers.reading import network, read, read_all, tree
from tests.hub_servers.registries import GoogleStorage
from tests.hub_servers.s3 import S3_KEYS, S3Server, s3_server
from tests.hub_servers.stand_in import sha256_of
from vllm_mxext.errors import ConfigError, DownloadError, HubCause, HubError, TransferError
from vllm_mxext.hub.sources.google_storage import GoogleStorageSource
from vllm_mxext.hub.sources.s3 import S3Source

SHARD = "model-00001-of-00002.safetensors"


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    pytest.importorskip("moto")
    pytest.importorskip("minio")
    with s3_server() as running:
        yield running


@pytest.fixture(scope="module")
def stored(server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_model(tmp_path_factory.mktemp("s3") / "model")
    server.upload("models", folder, "tiny/v1/")
    return folder


def s3(server: S3Server, uri: str = "s3://models/tiny/v1", revision: str | None = None, **environ: str) -> S3Source:
    return S3Source(uri, revision, network({**server.environ, **environ}))


@pytest.mark.promise("HUB-SOURCE-1")
def test_every_object_below_a_prefix_is_read_as_it_is(server: S3Server, stored: Path) -> None:
    assert read_all(s3(server)) == tree(stored)


def test_a_checksum_that_was_stored_with_an_object_is_its_digest(server: S3Server, stored: Path) -> None:
    files = {file.path: file for file in s3(server).list_files().files}
    assert files[SHARD].sha256 == sha256_of(stored / SHARD)
    assert files[SHARD].size == (stored / SHARD).stat().st_size


def test_a_single_object_is_a_source_too(server: S3Server, stored: Path) -> None:
    assert read_all(s3(server, f"s3://models/tiny/v1/{SHARD}")) == {SHARD: (stored / SHARD).read_bytes()}


def test_a_part_is_read_and_another_object_under_the_name_starts_at_the_beginning(
    server: S3Server, stored: Path
) -> None:
    server.upload("changing", stored)
    source = s3(server, "s3://changing")
    shard = next(file for file in source.list_files().files if file.path == SHARD)
    with source.open_range(shard, 1000, 1100, None) as opened:
        assert (opened.start, b"".join(opened.chunks())) == (1000, (stored / SHARD).read_bytes()[1000:1100])
        validator = opened.validator
    other = bytes(reversed((stored / SHARD).read_bytes()))
    server.client.put_object(Bucket="changing", Key=SHARD, Body=other)
    with source.open_range(shard, 1000, None, validator) as opened:
        assert (opened.start, b"".join(opened.chunks())) == (0, other)


def test_the_listed_version_is_read_although_there_is_a_newer_one(server: S3Server) -> None:
    server.client.create_bucket(Bucket="kept")
    server.client.put_bucket_versioning(Bucket="kept", VersioningConfiguration={"Status": "Enabled"})
    server.client.put_object(Bucket="kept", Key="config.json", Body=b'{"old": 1}')
    source = s3(server, "s3://kept")
    (config,) = source.list_files().files
    server.client.put_object(Bucket="kept", Key="config.json", Body=b'{"new": 1}')
    assert read(source, config) == b'{"old": 1}'


def test_the_revision_is_refused_when_objects_have_changed(server: S3Server, stored: Path) -> None:
    server.upload("moving", stored)
    revision = s3(server, "s3://moving").list_files().revision
    assert s3(server, "s3://moving", revision).list_files().revision == revision
    server.client.put_object(Bucket="moving", Key="config.json", Body=b"{}")
    with pytest.raises(DownloadError, match="has changed"):
        s3(server, "s3://moving", revision).list_files()


@pytest.mark.parametrize(("uri", "advice"), [("s3://nowhere", "NoSuchBucket"), ("s3://models/other", "has no files")])
def test_what_is_not_there_is_said(server: S3Server, stored: Path, uri: str, advice: str) -> None:
    with pytest.raises(DownloadError, match=advice) as caught:
        s3(server, uri).list_files()
    assert caught.value.cause is HubCause.NOT_FOUND


@pytest.mark.promise("HUB-SOURCE-2")
@pytest.mark.parametrize("uri", ["s3://AKIAKEY:secretsecret@models/tiny", "s3://user@models", "gs://key:word@bucket"])
def test_keys_in_an_address_are_refused_and_not_repeated(uri: str) -> None:
    kind = GoogleStorageSource if uri.startswith("gs") else S3Source
    with pytest.raises(ConfigError, match="must not have keys in it") as caught:
        kind(uri, None, network())
    assert "secretsecret" not in str(caught.value)


@pytest.mark.parametrize("uri", ["s3://", "s3:///x", "s3://bucket/x?versionId=1"])
def test_a_malformed_address_says_the_form(uri: str) -> None:
    with pytest.raises(ConfigError, match="must have the form s3://BUCKET/PREFIX"):
        S3Source(uri, None, network())


def test_keys_come_from_a_profile(server: S3Server, stored: Path, tmp_path: Path) -> None:
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws" / "credentials").write_text(
        "[work]\n" + "".join(f"{name.lower()} = {value}\n" for name, value in S3_KEYS.items())
    )
    environ = {"HOME": str(tmp_path), "AWS_PROFILE": "work", "AWS_ENDPOINT_URL_S3": server.url}
    source = S3Source("s3://models/tiny/v1", None, network(environ))
    assert read_all(source) == tree(stored)
    with pytest.raises(ConfigError, match="profile"):
        S3Source("s3://models/tiny/v1", None, network({**environ, "AWS_PROFILE": "other"})).list_files()


def test_a_missing_profile_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="AWS_PROFILE is set but"):
        S3Source("s3://models", None, network({"AWS_PROFILE": "work", "HOME": str(tmp_path)}))


def test_an_unreachable_server_is_named(impatient: None) -> None:
    with pytest.raises(TransferError, match=r"127\.0\.0\.1 cannot be reached.*AWS_ENDPOINT_URL"):
        S3Source("s3://models", None, network({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"})).list_files()


@pytest.mark.parametrize(
    ("code", "status", "kind", "cause", "advice"),
    [
        ("AccessDenied", 403, DownloadError, HubCause.UNAUTHORIZED, "set AWS_ACCESS_KEY_ID"),
        ("InvalidAccessKeyId", 403, DownloadError, HubCause.UNAUTHORIZED, "does not take the keys"),
        ("RequestTimeTooSkewed", 403, DownloadError, HubCause.FAILED, "clock"),
        ("PermanentRedirect", 301, DownloadError, HubCause.FAILED, "set AWS_REGION"),
        ("NoSuchKey", 404, DownloadError, HubCause.NOT_FOUND, "check bucket and prefix"),
        ("SlowDown", 503, TransferError, HubCause.UNREACHABLE, "try again later"),
    ],
)
def test_codes_of_s3_have_advice(code: str, status: int, kind: type[HubError], cause: HubCause, advice: str) -> None:
    error = S3Source("s3://models", None, network())._error(code, status)
    assert (type(error), error.cause) == (kind, cause)
    assert advice in str(error)


@pytest.fixture
def google(model: Path) -> Iterator[GoogleStorage]:
    with GoogleStorage() as running:
        running.buckets["models"] = {f"tiny/{path}": model / path for path in tree(model)}
        yield running


def gs(google: GoogleStorage, uri: str = "gs://models/tiny", **environ: str) -> GoogleStorageSource:
    return GoogleStorageSource(uri, None, network({"STORAGE_EMULATOR_HOST": google.url, **environ}))


@pytest.mark.promise("HUB-SOURCE-1")
def test_every_object_of_google_is_read_as_it_is(google: GoogleStorage, model: Path) -> None:
    assert read_all(gs(google)) == tree(model)


def test_google_gets_the_token_of_the_environment(google: GoogleStorage, model: Path) -> None:
    google.token = "ya29.token"
    with pytest.raises(DownloadError, match="set GOOGLE_OAUTH_ACCESS_TOKEN") as caught:
        gs(google).list_files()
    assert caught.value.cause is HubCause.UNAUTHORIZED
    assert read_all(gs(google, GOOGLE_OAUTH_ACCESS_TOKEN="ya29.token")) == tree(model)


def test_an_object_that_was_replaced_is_not_mixed_with_the_listed_one(google: GoogleStorage, model: Path) -> None:
    source = gs(google)
    shard = next(file for file in source.list_files().files if file.path == SHARD)
    shutil.copy(model / "config.json", model / SHARD)
    with pytest.raises(DownloadError, match="does not exist"):
        read(source, shard)
