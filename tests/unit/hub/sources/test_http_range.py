"""Bytes by HTTP: what misbehaving servers send is noticed, and credentials stay with their host."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

import httpx
import pytest

from tests.hub_servers.reading import network, read
from tests.hub_servers.stand_in import Answer, Asked, Fault, StandIn, file_answer
from vllm_mxext.config.hub import NetworkConfig
from vllm_mxext.errors import DownloadError, HubCause, HubError, TransferError
from vllm_mxext.hub.network import Network
from vllm_mxext.hub.sources.answers import Advice, asked_wait_s, connection_error, error_of
from vllm_mxext.hub.sources.http_range import HttpRange
from vllm_mxext.hub.sources.interface import RemoteFile
from vllm_mxext.hub.sources.requests import Access, ask, ask_json
from vllm_mxext.hub.sources.web import WebSource

ADVICE = Advice("The model", "log in.", "check the name.")
CONTENT = bytes(range(256)) * 40


class OneFile(StandIn):
    """Serves one file, or sends clients elsewhere."""

    def __init__(self, file: Path, host: str = "127.0.0.1") -> None:
        super().__init__(host)
        self.file = file
        self.etag: str | None = '"v1"'
        self.location = ""

    def answer(self, asked: Asked) -> Answer:
        if self.location:
            return Answer(302, {"Location": self.location})
        return file_answer(asked, self.file, self.etag)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[OneFile]:
    (tmp_path / "weights.bin").write_bytes(CONTENT)
    with OneFile(tmp_path / "weights.bin") as running:
        yield running


def source(server: StandIn, stall_s: float = 30.0) -> tuple[WebSource, RemoteFile]:
    url = f"{server.url}/weights.bin"
    return WebSource(url, None, network(stall_s=stall_s)), RemoteFile("weights.bin", len(CONTENT), None, url)


@pytest.mark.parametrize(("start", "end"), [(0, None), (0, 1), (100, 300), (5000, None), (len(CONTENT) - 1, None)])
def test_the_bytes_that_were_asked_for_come(server: OneFile, start: int, end: int | None) -> None:
    asked, file = source(server)
    with asked.open_range(file, start, end, None) as opened:
        assert (opened.start, opened.total_size, opened.validator) == (start, len(CONTENT), '"v1"')
        assert b"".join(opened.chunks()) == CONTENT[start:end]
    assert server.asked[-1].headers["accept-encoding"] == "identity"


@pytest.mark.promise("HUB-SOURCE-3")
@pytest.mark.parametrize(
    ("fault", "text"),
    [
        (Fault(cuts_at=100), "broke|fewer bytes"),
        (Fault(resets_at=100), "broke"),
        (Fault(shortens_to=100), "has 100 bytes, not the 10240|fewer bytes"),
        (Fault(is_page=True), "a web page instead of 'weights.bin'"),
        (Fault(shifts_range=5), "other bytes of 'weights.bin' than were asked for"),
        (Fault(status=503), "is in trouble"),
        (Fault(status=429, retry_after="7"), "asks for fewer requests"),
        (Fault(status=408), "try again"),
    ],
)
def test_a_fault_that_may_pass_is_noticed_and_passes(server: OneFile, fault: Fault, text: str) -> None:
    asked, file = source(server)
    server.fails(fault)
    with pytest.raises(TransferError, match=text):
        read(asked, file, 200, 2000)
    assert read(asked, file, 200, 2000) == CONTENT[200:2000]


@pytest.mark.parametrize(
    "fault", [Fault(ignores_range=True), Fault(etag='"v2"'), Fault(status=416)], ids=["ignored", "changed", "too short"]
)
def test_an_answer_that_cannot_go_on_starts_at_the_beginning(server: OneFile, fault: Fault) -> None:
    asked, file = source(server)
    server.fails(fault)
    with asked.open_range(file, 200, None, '"v1"') as opened:
        assert opened.start == 0
        assert b"".join(opened.chunks()) == CONTENT


def test_a_server_that_ignores_if_range_is_not_trusted(server: OneFile) -> None:
    asked, file = source(server)
    server.etag = '"v2"'
    server.fails(Fault(times=0))
    original = server.answer
    server.answer = lambda it: original(  # type: ignore[method-assign]
        Asked(it.method, it.path, it.query, {name: value for name, value in it.headers.items() if name != "if-range"})
    )
    with asked.open_range(file, 200, None, '"v1"') as opened:
        assert (opened.start, opened.validator) == (0, '"v2"')


def test_compressed_bytes_are_refused(server: OneFile) -> None:
    asked, file = source(server)
    server.fails(Fault(encoding="gzip"))
    with pytest.raises(DownloadError, match="compressed \\(gzip\\)"):
        read(asked, file, 200, 300)


def test_a_stalled_connection_is_given_up(server: OneFile) -> None:
    asked, file = source(server, stall_s=0.05)
    server.fails(Fault(stalls_at=100))
    with pytest.raises(TransferError, match="--download-stall-timeout"):
        read(asked, file)


def slow_range(chunks: list[bytes], times: list[float]) -> HttpRange:
    clock = iter(times)
    response = httpx.Response(200, content=iter(chunks), request=httpx.Request("GET", "https://slow.example/x"))
    return HttpRange(
        response, "x", start=0, length=sum(map(len, chunks)), total_size=None, stall_s=10.0, clock=lambda: next(clock)
    )


def test_a_connection_that_drips_is_given_up_although_it_is_never_silent() -> None:
    times = [float(number) for number in range(40)]
    with pytest.raises(TransferError, match="less than 256 bytes per second"):
        b"".join(slow_range([b"x"] * 20, times).chunks())


def test_a_caller_that_takes_its_time_is_no_slow_server() -> None:
    waits = [moment for number in range(21) for moment in (100.0 * number, 100.0 * number + 0.1)]
    assert b"".join(slow_range([b"x"] * 20, waits).chunks()) == b"x" * 20


@pytest.mark.parametrize("etag", [None, 'W/"v1"', "v1", '""'])
def test_only_strong_validators_count(server: OneFile, etag: str | None) -> None:
    asked, file = source(server)
    server.etag = etag
    with asked.open_range(file, 0, None, None) as opened:
        assert opened.validator is None


@pytest.mark.promise("HUB-SOURCE-2")
def test_credentials_stay_with_their_host_when_it_redirects(server: OneFile, tmp_path: Path) -> None:
    with OneFile(server.file, "localhost") as elsewhere:
        server.location = f"{elsewhere.url}/weights.bin"
        access = Access(server.url, {"Authorization": "Bearer secret", "Cookie": "m_session_id=secret"})
        ask(network(), f"{server.url}/weights.bin", access).response.close()
        assert server.asked[0].headers["authorization"] == "Bearer secret"
        assert "secret" not in str(elsewhere.asked[0].headers)
        elsewhere.location = f"{server.url}/back"
        with pytest.raises(DownloadError, match="redirects in a circle"):
            ask(network(), f"{server.url}/weights.bin", access)
        assert all("secret" not in str(asked.headers) for asked in elsewhere.asked)


def answering(handler: object) -> Network:
    return Network(NetworkConfig(), httpx.MockTransport(handler))  # type: ignore[arg-type]


@pytest.mark.promise("HUB-SOURCE-2")
def test_a_redirect_that_drops_encryption_is_refused_with_credentials() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        if request.url.scheme == "http":
            return httpx.Response(200)
        return httpx.Response(302, headers={"Location": f"http://{request.url.host}/x"})

    access = Access("https://hub.example", {"Authorization": "Bearer secret"})
    with pytest.raises(DownloadError, match="without encryption") as caught:
        ask(answering(handler), "https://hub.example/x", access)
    assert caught.value.cause is HubCause.UNSAFE
    assert ask(answering(handler), "https://hub.example/x").response.status_code == 200


@pytest.mark.parametrize("location", ["file:///etc/passwd", "ftp://host/x", "http://"])
def test_redirects_to_anything_but_the_web_are_refused(location: str) -> None:
    with pytest.raises(DownloadError, match="redirects to"):
        ask(answering(lambda request: httpx.Response(302, headers={"Location": location})), "https://hub.example/x")


def test_no_cookie_is_kept() -> None:
    seen: list[str | None] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers.get("cookie"))
        return httpx.Response(200, headers={"Set-Cookie": "tracker=1"})

    connections = answering(handler)
    for _ in range(2):
        ask(connections, "https://hub.example/x").response.close()
    assert seen == [None, None]


def test_compressed_lists_are_read() -> None:
    body = gzip.compress(b'{"a": 1}')
    answer = httpx.Response(200, content=body, headers={"Content-Encoding": "gzip"})
    assert ask_json(answering(lambda request: answer), "https://hub.example/x", ADVICE)[0] == {"a": 1}


def test_endless_lists_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vllm_mxext.hub.sources.requests._MAX_JSON_BYTES", 10)
    with pytest.raises(DownloadError, match="more than 10 bytes for a list"):
        ask_json(answering(lambda request: httpx.Response(200, content=b"x" * 11)), "https://hub.example/x", ADVICE)


@pytest.mark.parametrize(
    ("status", "is_elsewhere", "kind", "cause"),
    [
        (401, False, DownloadError, HubCause.UNAUTHORIZED),
        (403, False, DownloadError, HubCause.UNAUTHORIZED),
        (403, True, TransferError, HubCause.UNREACHABLE),
        (404, False, DownloadError, HubCause.NOT_FOUND),
        (404, True, DownloadError, HubCause.NOT_FOUND),
        (407, False, DownloadError, HubCause.UNAUTHORIZED),
        (418, False, DownloadError, HubCause.FAILED),
        (425, False, TransferError, HubCause.UNREACHABLE),
        (500, False, TransferError, HubCause.UNREACHABLE),
        (504, True, TransferError, HubCause.UNREACHABLE),
    ],
)
def test_statuses_are_of_three_kinds(status: int, is_elsewhere: bool, kind: type[HubError], cause: HubCause) -> None:
    response = httpx.Response(status, request=httpx.Request("GET", "https://hub.example/x"))
    error = error_of(response, b"", ADVICE, is_elsewhere=is_elsewhere)
    assert (type(error), error.cause) == (kind, cause)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "7"}, 7.0),
        ({"Retry-After": "100000"}, 100_000.0),
        ({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),
        ({"Retry-After": "2.5"}, 2.5),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": "Mon, 01 Jan 99999999999999999999 00:00:00 GMT"}, None),
        ({"Retry-After": "-5"}, None),
        ({"RateLimit": '"api";r=0;t=55'}, 55.0),
        ({}, None),
    ],
)
def test_the_wish_to_wait_is_read(headers: dict[str, str], seconds: float | None) -> None:
    assert asked_wait_s(httpx.Response(429, headers=headers)) == seconds


def test_a_long_wish_to_wait_is_told() -> None:
    request = httpx.Request("GET", "https://hub.example/x")
    error = error_of(httpx.Response(429, headers={"Retry-After": "3600"}, request=request), b"", ADVICE)
    assert str(error).endswith("try again in 60 minutes.")


def test_a_date_to_wait_for_is_read() -> None:
    date = (datetime.now(timezone.utc) + timedelta(hours=1)).strftime("%a, %d %b %Y %H:%M:%S GMT")
    seconds = asked_wait_s(httpx.Response(503, headers={"Retry-After": date}))
    assert seconds is not None
    assert 0 < seconds <= 3600


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (httpx.ConnectError("[Errno -2] Name or service not known"), TransferError, "cannot be reached"),
        (httpx.ReadTimeout("timed out"), TransferError, "sent nothing"),
        (httpx.RemoteProtocolError("peer closed"), TransferError, "broke"),
        (httpx.ProxyError("407 Proxy Authentication Required"), DownloadError, "USER:PASSWORD@HOST"),
        (httpx.ProxyError("502 Bad Gateway"), TransferError, "check HTTPS_PROXY"),
        (httpx.ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED] self-signed"), DownloadError, "SSL_CERT_FILE"),
    ],
)
def test_failed_connections_say_what_to_check(error: httpx.HTTPError, kind: type[HubError], text: str) -> None:
    told = connection_error(error, httpx.URL("https://hub.example/x?token=secret"))
    assert type(told) is kind
    assert text in str(told)
    assert "secret" not in str(told)
