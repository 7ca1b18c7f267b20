"""The network: none when offline, proxies and certificates of the environment, secrets in no text."""

from __future__ import annotations

import logging
import socket
from pathlib import Path

import pytest

from tests.hub_servers.model_hub import ModelHub
from tests.hub_servers.reading import network, read_all, tree
from tests.hub_servers.stand_in import Answer, Asked, StandIn
from vllm_mxext.errors import ConfigError, DownloadError, HubCause, MissingDependencyError, TransferError
from vllm_mxext.hub.proxies import Proxies
from vllm_mxext.hub.retrying import retrying
from vllm_mxext.hub.sources.interface import RemoteFile
from vllm_mxext.hub.sources.opening import open_source
from vllm_mxext.redaction import redact, shown

REMOTE = (
    "hf://acme/tiny",
    "acme/tiny",
    "modelscope://acme/tiny",
    "s3://bucket/tiny",
    "gs://bucket/tiny",
    "https://models.example/tiny/",
    "http://models.example/tiny.gguf",
    "oci://registry.example/acme/tiny:v1",
    "ngc://acme/tiny:1.0",
)


@pytest.mark.promise("HUB-OFFLINE-1")
@pytest.mark.parametrize("uri", REMOTE)
def test_offline_no_socket_is_opened_and_no_name_looked_up(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*args: object, **kwargs: object) -> None:
        raise AssertionError("a socket or a look-up while offline")

    for name in ("socket", "create_connection", "getaddrinfo", "gethostbyname"):
        monkeypatch.setattr(socket, name, forbidden)
    source = open_source(uri, None, network({"HTTPS_PROXY": "http://proxy.example:3128"}, is_offline=True))
    with pytest.raises(DownloadError, match=r"--offline \(MIM_OFFLINE\) forbids connections") as caught:
        source.list_files()
    assert caught.value.cause is HubCause.OFFLINE
    with pytest.raises(DownloadError, match="forbids connections"):
        source.open_range(RemoteFile("x", locator="https://models.example/x"), 0, None, None)


def test_offline_folders_of_this_machine_are_read(model: Path) -> None:
    assert read_all(open_source(str(model), None, network(is_offline=True))) == tree(model)


class Proxy(StandIn):
    """Answers for every host."""

    def answer(self, asked: Asked) -> Answer:
        return Answer(200, {"ETag": '"1"'}, b"through the proxy")


def test_connections_go_through_the_proxy_of_the_environment_but_not_to_its_exceptions(hub: ModelHub) -> None:
    with Proxy() as proxy:
        environ = {"HTTP_PROXY": proxy.url, "NO_PROXY": "127.0.0.0/8,localhost", "HF_ENDPOINT": hub.url}
        source = open_source("http://models.example/tiny.gguf", None, network(environ))
        assert read_all(source) == {"tiny.gguf": b"through the proxy"}
        assert {asked.headers["host"] for asked in proxy.asked} == {"models.example"}
        num_asked = len(proxy.asked)
        read_all(open_source("acme/tiny", None, network(environ)))
        assert len(proxy.asked) == num_asked


@pytest.mark.parametrize(
    ("exceptions", "host", "port", "is_direct"),
    [
        ("example.org", "example.org", 443, True),
        ("example.org", "cdn.example.org", None, True),
        (".example.org", "cdn.example.org", None, True),
        ("*.example.org", "cdn.example.org", None, True),
        ("example.org", "notexample.org", None, False),
        ("example.org:8080", "example.org", 8080, True),
        ("example.org:8080", "example.org", 443, False),
        ("10.0.0.0/8", "10.1.2.3", None, True),
        ("10.0.0.0/8", "11.1.2.3", None, False),
        ("10.0.0.0/8", "example.org", None, False),
        ("::1", "::1", None, True),
        ("a.b, ,EXAMPLE.org", "Example.ORG", None, True),
        ("*", "anything", None, True),
        ("", "anything", None, False),
    ],
)
def test_exceptions_from_proxies_are_names_domains_ports_and_networks(
    exceptions: str, host: str, port: int | None, is_direct: bool
) -> None:
    proxies = Proxies({"all_proxy": "proxy:3128", "no_proxy": exceptions})
    assert proxies.find("https", host, port) == (None if is_direct else "http://proxy:3128")


def test_proxies_are_chosen_by_scheme_and_lower_case_wins() -> None:
    environ = {"https_proxy": "http://a:1", "HTTPS_PROXY": "http://b:1", "HTTP_PROXY": "http://c:1"}
    assert Proxies(environ).find("https", "x", None) == "http://a:1"
    assert Proxies(environ).find("http", "x", None) == "http://c:1"
    assert Proxies({**environ, "REQUEST_METHOD": "GET"}).find("http", "x", None) is None


def test_a_malformed_proxy_is_refused_without_its_password() -> None:
    with pytest.raises(ConfigError, match="HTTPS_PROXY must begin with http://") as caught:
        Proxies({"HTTPS_PROXY": "ftp://user:word@proxy"})
    assert "word" not in str(caught.value)


def test_a_socks_proxy_names_the_package_it_needs() -> None:
    source = open_source("hf://acme/tiny", None, network({"ALL_PROXY": "socks5://127.0.0.1:9"}))
    try:
        import socksio  # noqa: F401
    except ImportError:
        with pytest.raises(MissingDependencyError, match=r"pip install 'httpx\[socks\]'"):
            source.list_files()


@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
def test_a_wrong_file_of_certificates_names_its_variable(variable: str, tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("no certificate")
    for path in (tmp_path / "ca.pem", tmp_path / "nowhere.pem"):
        with pytest.raises(ConfigError, match=f"{variable} names '{path}'"):
            network({variable: str(path)}).tls()


def test_a_certificate_that_is_not_trusted_says_how_to_trust_it(untrusted: str, impatient: None) -> None:
    with pytest.raises(DownloadError, match="SSL_CERT_FILE") as caught:
        open_source(f"{untrusted}/tiny.gguf", None, network()).list_files()
    assert not isinstance(caught.value, TransferError)


def test_certificates_of_the_environment_are_trusted(untrusted: str, certificate: Path) -> None:
    source = open_source(f"{untrusted}/tiny.gguf", None, network({"SSL_CERT_FILE": str(certificate)}))
    assert read_all(source) == {"tiny.gguf": b"over TLS"}


@pytest.mark.promise("HUB-SECRET-1")
@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("GET https://cdn.example/a/b?X-Amz-Signature=5ec2e7&X-Amz-Expires=1", "5ec2e7"),
        ("https://somebody:password1@host/path", "password1"),
        ("socks5://somebody:password1@host", "somebody"),
        ("Authorization: Bearer abcdefghijklmnopqrstuvwxyz", "efghijkl"),
        ("token hf_abcdefghijklmnopqrstuvwxyz is old", "abcdefgh"),
        ("nvapi-abcdefghijklmnop_qrstuvw", "abcdefgh"),
        ("m_session_id=abcdefghi; other", "abcdefghi"),
        ("GET /bucket/key?x=1&X-Amz-Credential=AKIAIOSFODNN7EXAMPLE%2F2026 HTTP/1.1", "IOSFODNN7"),
        ("AWS_SECRET_ACCESS_KEY=wJalrXUtnFEMIK7MDENG", "wJalr"),
    ],
)
def test_secrets_are_cut_out_of_texts(text: str, secret: str) -> None:
    assert secret not in redact(text)
    assert "…" in redact(text)


@pytest.mark.parametrize(
    "text", ["the token belongs to somebody", "Basic configuration is missing", "https://host/path and a?b", "hf_x"]
)
def test_texts_without_secrets_stay(text: str) -> None:
    assert redact(text) == text


def test_a_secret_is_shown_by_its_first_characters_if_that_tells_little() -> None:
    assert shown("hf_abcdefghijklmn") == "hf_a…"
    assert shown("short") == "…"


@pytest.mark.promise("HUB-SECRET-1")
def test_logs_of_the_http_libraries_have_no_signatures_and_tokens(
    hub: ModelHub, model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hub.add("acme/tiny", model, is_private=True)
    hub.tokens["hf_good_token_of_a_member"] = True
    environ = {"HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_good_token_of_a_member"}
    with caplog.at_level(logging.DEBUG):
        read_all(open_source("acme/tiny", None, network(environ)))
    assert "/repos/" in caplog.text
    assert "5ec2e7" not in caplog.text
    assert "good_token" not in caplog.text


def test_what_may_pass_is_tried_again_and_the_rest_is_not(impatient: None, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    calls: list[str] = []

    def flaky() -> str:
        calls.append("")
        if len(calls) < 3:
            raise TransferError("not now")
        return "here"

    def hopeless() -> str:
        calls.append("")
        raise DownloadError("never")

    told: list[str] = []
    assert retrying(flaky, told=lambda error, wait_s: told.append(str(error))) == "here"
    assert told == ["not now", "not now"]
    assert [record.getMessage().partition(": ")[2] for record in caplog.records] == ["not now", "not now"]
    calls.clear()
    with pytest.raises(DownloadError, match="never"):
        retrying(hopeless)
    assert len(calls) == 1


def test_waits_grow_at_random_within_bounds_and_never_undercut_retry_after(impatient: None) -> None:
    waits: list[float] = []

    def busy() -> None:
        raise TransferError("slow down", retry_after_s=7.0 if len(waits) == 1 else None)

    with pytest.raises(TransferError):
        retrying(busy, attempts=3, told=lambda error, wait_s: waits.append(wait_s))
    assert 0 <= waits[0] <= 1.0
    assert 7.0 <= waits[1] <= 9.0
