"""While the model is being downloaded the port answers, and it changes hands without anybody noticing."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import ssl
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from tests.certificates import make_certificate
from vllm_mxext.config.server import CorsConfig, ServerConfig
from vllm_mxext.engine.backends.fake import FakeEngineClient
from vllm_mxext.hub.progress import Listener, Phase, Progress
from vllm_mxext.server import handover
from vllm_mxext.server.app import create_app
from vllm_mxext.server.context import package_version
from vllm_mxext.server.downloads import Downloads
from vllm_mxext.server.lifecycle import ServerProcess
from vllm_mxext.server.listen import open_socket
from vllm_mxext.server.preparing import explain_progress, serve_while

WAIT_S = 60
NUM_HANDOVERS = 200 if os.environ.get("VLLM_MXEXT_TEST_LONG") == "1" else 8

HALF = Progress("qwen3-4b", Phase.DOWNLOADING, 500, 1000, 1, 3, rate_bytes_s=100.0, eta_s=5.0, detail="from hf://x")
HALF_SAID = "The model is loading: downloading qwen3-4b, 1 of 3 files, from hf://x, 50%"


@dataclass
class Work:
    """Work that ends when the test says so."""

    may_end: threading.Event = field(default_factory=threading.Event)
    has_begun: threading.Event = field(default_factory=threading.Event)
    outcome: Any = "the model"
    listener: Listener | None = None

    def __call__(self, listener: Listener, must_stop: threading.Event) -> Any:
        self.listener = listener
        listener(HALF)
        self.has_begun.set()
        self.may_end.wait()
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        return self.outcome


@asynccontextmanager
async def preparing(
    config: ServerConfig | None = None, work: Work | None = None
) -> AsyncIterator[tuple[httpx.AsyncClient, Work, asyncio.Future[Any], socket.socket]]:
    """A little server and what serves while the test runs; it has ended when the test has."""
    config, work = config or ServerConfig(port=0), work or Work()
    with open_socket(config) as sock:
        serving = asyncio.ensure_future(asyncio.to_thread(serve_while, work, config, sock))
        await asyncio.to_thread(work.has_begun.wait)
        url = "http://x" if config.uds else f"http://127.0.0.1:{sock.getsockname()[1]}"
        transport = httpx.AsyncHTTPTransport(uds=str(config.uds) if config.uds else None)
        async with httpx.AsyncClient(base_url=url, transport=transport, timeout=WAIT_S) as http:
            try:
                yield http, work, serving, sock
            finally:
                work.may_end.set()
                await asyncio.wait((serving,))


@asynccontextmanager
async def real_server(sock: socket.socket) -> AsyncIterator[None]:
    engine, config = FakeEngineClient(), ServerConfig(port=0)
    process = ServerProcess(engine, create_app(engine, config), config, sock)
    task = asyncio.create_task(process.run())
    try:
        yield
    finally:
        process.handle_signal()
        process.handle_signal()
        await asyncio.wait((task,))


@pytest.mark.promise("HUB-SERVER-1")
async def test_the_port_answers_at_once_and_health_says_phase_and_percentage():
    async with preparing() as (http, _, _, _):
        live = await http.get("/v1/health/live")
        assert (live.status_code, live.json()) == (200, {"status": "live", "phase": "downloading"})
        for method, path in (
            ("GET", "/health"), ("GET", "/v1/health/ready"), ("GET", "/nope"), ("POST", "/v1/chat/completions"),
            ("POST", "/v1/version"), ("DELETE", "/v1/hub/downloads"),
        ):  # fmt: skip
            response = await http.request(method, path)
            assert (response.status_code, response.headers["retry-after"]) == (503, "1")
            assert response.json()["error"] == {
                "message": HALF_SAID, "type": "ServiceUnavailableError", "param": None, "code": 503,
            }  # fmt: skip
        for path, status in (("/v1/health/live", 200), ("/health", 503), ("/v1/health/ready", 503)):
            head = await http.head(path)
            assert (head.status_code, head.content) == (status, b"")


async def test_version_downloads_and_metrics_are_there_before_the_model():
    async with preparing() as (http, _, _, _):
        assert (await http.get("/v1/version")).json() == {"release": package_version(), "api": package_version()}
        (entry,) = (await http.get("/v1/hub/downloads")).json()["data"]
        assert entry == {
            "model": "qwen3-4b", "phase": "downloading", "done_bytes": 500, "total_bytes": 1000, "num_files_done": 1,
            "num_files": 3, "rate_bytes_s": 100.0, "eta_s": 5.0, "detail": "from hf://x", "fraction": 0.5,
            "phase_seconds": {},
        }  # fmt: skip
        figures = (await http.get("/metrics")).text
        assert 'vllm_mxext:hub_download_bytes{model_name="qwen3-4b"} 500.0' in figures
        assert 'vllm_mxext:hub_download_phase{model_name="qwen3-4b",phase="downloading"} 1.0' in figures
        assert "process_resident_memory_bytes" in figures


async def test_what_the_work_returns_or_raises_comes_out_and_the_socket_stays_open():
    async with preparing() as (http, work, serving, sock):
        work.may_end.set()
        assert await serving == "the model"
        assert sock.fileno() >= 0
    async with preparing(work=Work(outcome=ValueError("no such model"))) as (http, work, serving, _):
        assert (await http.get("/health")).status_code == 503
        work.may_end.set()
        with pytest.raises(ValueError, match="no such model"):
            await serving


async def test_keys_are_asked_for_where_the_real_server_asks():
    async with preparing(ServerConfig(port=0, api_keys=("key",))) as (http, _, _, _):
        for path in ("/metrics", "/v1/hub/downloads", "/v1/version", "/v1/models"):
            assert (await http.get(path)).status_code == 401, path
        assert (await http.get("/v1/health/live")).status_code == 200
        assert (await http.get("/health")).status_code == 503
        assert (await http.get("/v1/version", headers={"Authorization": "Bearer key"})).status_code == 200


async def test_metrics_need_no_key_where_they_need_none_later():
    async with preparing(ServerConfig(port=0, api_keys=("key",), metrics_need_key=False)) as (http, _, _, _):
        assert (await http.get("/metrics")).status_code == 200


async def test_paths_below_a_proxys_prefix_are_understood():
    async with preparing(ServerConfig(port=0, root_path="/llm/")) as (http, _, _, _):
        assert (await http.get("/llm/v1/health/live")).status_code == 200
        assert (await http.get("/v1/health/live")).status_code == 200


async def test_browsers_of_allowed_origins_may_look():
    config = ServerConfig(port=0, cors=CorsConfig(allowed_origins=("https://a.example",)))
    async with preparing(config) as (http, _, _, _):
        response = await http.get("/v1/health/live", headers={"Origin": "https://a.example"})
        assert response.headers["access-control-allow-origin"] == "https://a.example"


async def test_a_unix_socket_stays_for_the_real_server_and_goes_when_there_will_be_none(tmp_path):
    config = ServerConfig(uds=tmp_path / "server.sock")
    async with preparing(config) as (http, work, serving, _):
        assert (await http.get("/v1/health/live")).status_code == 200
        work.may_end.set()
        await serving
        assert config.uds.exists()
    config.uds.unlink()
    async with preparing(config, Work(outcome=ValueError())) as (http, work, serving, _):
        work.may_end.set()
        with pytest.raises(ValueError):
            await serving
        assert not config.uds.exists()


async def test_https_is_spoken_from_the_first_moment(tmp_path):
    certificate = make_certificate(tmp_path)
    async with preparing(ServerConfig(port=0, tls=certificate)) as (_, _, _, sock):
        trust = ssl.create_default_context(cafile=str(certificate.certfile))
        url = f"https://127.0.0.1:{sock.getsockname()[1]}"
        async with httpx.AsyncClient(verify=trust, base_url=url, timeout=WAIT_S) as http:
            assert (await http.get("/v1/health/live")).status_code == 200
            with pytest.raises(httpx.HTTPError):  # no TLS on this one, and the server goes on
                await http.get(url.replace("https", "http"))
            assert (await http.get("/v1/health/ready")).status_code == 503


async def test_a_large_body_is_read_before_the_answer_so_that_no_reset_overtakes_it():
    async with preparing() as (http, _, _, _):
        for _ in range(5):
            response = await http.post("/v1/chat/completions", content=b"x" * 3_000_000)
            assert response.status_code == 503


async def test_a_connection_that_has_asked_half_is_answered_after_the_work_is_done(monkeypatch):
    monkeypatch.setattr(handover, "LAST_ANSWERS_S", WAIT_S)
    is_closing = threading.Event()
    shutdown = handover.HandoverServer.shutdown

    async def saying_so(self: handover.HandoverServer, sockets: Any = None) -> None:
        is_closing.set()
        await shutdown(self, sockets)

    monkeypatch.setattr(handover.HandoverServer, "shutdown", saying_so)
    async with preparing() as (http, work, serving, sock):
        half = await asyncio.open_connection("127.0.0.1", sock.getsockname()[1])
        silent = await asyncio.open_connection("127.0.0.1", sock.getsockname()[1])
        half[1].write(b"GET /v1/health/ready HTTP/1.1\r\nHost: x\r\n")
        await http.get("/health")  # came later, so both have been accepted
        work.may_end.set()
        await asyncio.to_thread(is_closing.wait)
        half[1].write(b"\r\n")
        silent[1].write(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        for reader, writer in (half, silent):
            assert (await reader.read()).startswith(b"HTTP/1.1 503 ")
            writer.close()
        assert await serving == "the model"


@pytest.mark.promise("HUB-SERVER-2")
async def test_what_connects_between_the_servers_is_served_by_the_next_one():
    async with preparing() as (_, work, serving, sock):
        work.may_end.set()
        await serving
        reader, writer = await asyncio.open_connection("127.0.0.1", sock.getsockname()[1])
        writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        await writer.drain()
        async with real_server(sock):
            assert (await reader.read()).startswith(b"HTTP/1.1 200 ")
        writer.close()


async def test_a_silent_connection_does_not_hold_up_the_next_server(monkeypatch):
    monkeypatch.setattr(handover, "LAST_ANSWERS_S", 0.05)
    async with preparing() as (http, work, serving, sock):
        reader, writer = await asyncio.open_connection("127.0.0.1", sock.getsockname()[1])
        await http.get("/health")  # came later, so the other one has been accepted
        work.may_end.set()
        await serving
        assert await reader.read() == b""
        writer.close()


class PoorSocket(socket.socket):
    """The process has no file descriptor left when the first connection comes."""

    num_refusals = 0

    def accept(self) -> Any:
        if PoorSocket.num_refusals == 0:
            PoorSocket.num_refusals += 1
            raise OSError(errno.EMFILE, "Too many open files")
        return super().accept()


async def test_without_file_descriptors_connections_wait_until_there_are_some(monkeypatch):
    monkeypatch.setattr(handover, "_RETRY_S", 0.01)
    work = Work()
    with PoorSocket(fileno=open_socket(ServerConfig(port=0)).detach()) as sock:
        serving = asyncio.ensure_future(asyncio.to_thread(serve_while, work, ServerConfig(), sock))
        await asyncio.to_thread(work.has_begun.wait)
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{sock.getsockname()[1]}", timeout=WAIT_S) as http:
            assert (await http.get("/v1/health/live")).status_code == 200
        work.may_end.set()
        assert await serving == "the model"
    assert PoorSocket.num_refusals == 1


@pytest.mark.promise("HUB-SERVER-2")
async def test_clients_that_never_stop_asking_see_503_and_then_answers_and_nothing_else(monkeypatch):
    monkeypatch.setattr(handover, "LAST_ANSWERS_S", WAIT_S)
    config = ServerConfig(port=0)
    with open_socket(config) as sock:
        url = f"http://127.0.0.1:{sock.getsockname()[1]}"
        seen: asyncio.Queue[int] = asyncio.Queue()
        asking = [asyncio.create_task(_ask_until_served(url, seen)) for _ in range(12)]
        statuses = []
        for _ in range(NUM_HANDOVERS):
            work = Work()
            serving = asyncio.ensure_future(asyncio.to_thread(serve_while, work, config, sock))
            statuses += [await seen.get() for _ in range(20)]
            work.may_end.set()
            await serving
        async with real_server(sock):
            await asyncio.gather(*asking)
    statuses += [seen.get_nowait() for _ in range(seen.qsize())]
    assert set(statuses) == {200, 503}
    assert statuses.count(200) == len(asking)


async def _ask_until_served(url: str, seen: asyncio.Queue[int]) -> None:
    async with httpx.AsyncClient(base_url=url, timeout=WAIT_S) as http:
        status = 0
        while status != 200:
            status = (await http.post("/v1/completions", json={"prompt": "x" * 2000})).status_code
            seen.put_nowait(status)


@pytest.mark.parametrize(
    ("progress", "said"),
    [
        (Progress("", Phase.CHOOSING), "The model is loading: choosing, 0%"),
        (Progress("m", Phase.LISTING, detail="hf://a/b"), "The model is loading: listing m, hf://a/b, 0%"),
        (Progress("m", Phase.VERIFYING, 7, 7, 2, 2), "The model is loading: verifying m, 2 of 2 files, 100%"),
    ],
)
def test_the_sentence_has_what_is_known(progress, said):
    assert explain_progress(progress) == said


def test_seconds_of_phases_add_up_however_often_they_come_back():
    times_s = iter((1.0, 2.0, 7.0, 8.0, 9.0))  # asked for when a phase begins
    downloads = Downloads(lambda: next(times_s))
    assert (downloads.progress, downloads.listing()["data"]) == (None, [])
    for phase in ("listing", "downloading", "downloading", "listing", "downloading", "done"):
        downloads.listen(Progress("m", Phase(phase)))
    assert downloads.phase_seconds == {"listing": 2.0, "downloading": 6.0}
    assert downloads.listing()["data"][0]["fraction"] == 1.0
