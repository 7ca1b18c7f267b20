"""Whatever answers at an address is described, and neither ends the command nor writes to the terminal."""

from __future__ import annotations

import contextlib
import select
import socketserver
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from vllm_mxext.registry.probe import Probe, is_ready, probe

MODELS = b'{"data": [{"id": "m\\u001b]0;title\\u0007"}]}'


@contextlib.contextmanager
def answering(bodies: dict[str, bytes], headers: dict[str, str] | None = None, *, status: int = 200) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *words: object) -> None:
            """Says nothing."""

        def do_GET(self) -> None:
            self.send_response(status if self.path in bodies else 404)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(bodies.get(self.path, b""))

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("listing", [b"[" * 100_000, b"<html>", b'{"data": [null]}', b'{"data": 3}', b"\xff\x00"])
def test_a_listing_that_is_none_is_a_problem_in_words(listing: bytes) -> None:
    with answering({"/v1/models": listing}) as url:
        found = probe(url)
    assert (found.is_reachable, found.is_ready) == (True, False)
    assert "not like an OpenAI-compatible server" in found.problem


def test_an_answer_that_cannot_be_decoded_is_a_problem_in_words() -> None:
    with answering({"/v1/models": MODELS, "/health": b"not compressed"}, {"Content-Encoding": "gzip"}) as url:
        assert "cannot be decoded" in probe(url).problem
        assert is_ready(url) == (False, "")


def test_an_answer_without_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vllm_mxext.registry.probe._MAX_BYTES", 1000)
    with answering({"/v1/models": b" " * 2000}) as url:
        assert "does not end" in probe(url).problem


@contextlib.contextmanager
def dripping(begin: bytes, slow: Sequence[str] = ()) -> Iterator[str]:
    """Yields the address of a server that answers some paths, or all, byte by byte, for as long as somebody waits."""

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            with contextlib.suppress(OSError):
                while words := self.rfile.readline().split():
                    while self.rfile.readline().strip():
                        pass
                    if not slow or words[1].decode() in slow:
                        self._drip()
                    body = MODELS if words[1] == b"/v1/models" else b"{}"
                    self.wfile.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))

        def _drip(self) -> None:
            self.wfile.write(begin)
            while not select.select([self.connection], [], [], 0.005)[0]:
                self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n" if not begin else b" ")

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.promise("REGISTRY-6")
@pytest.mark.parametrize("begin", [b"HTTP/1.1 200 OK\r\nx-drip: x", b"HTTP/1.1 200 OK\r\n\r\n", b""])
def test_a_server_that_sends_byte_by_byte_without_end_is_given_up_in_time(begin: bytes) -> None:
    with dripping(begin) as url:
        assert "no whole answer within 0.1 s" in probe(url, timeout_s=0.1).problem
        assert is_ready(url, timeout_s=0.1) == (False, "")


def test_a_server_whose_figures_do_not_come_is_ready_without_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vllm_mxext.registry.probe._FIGURES_S", 0.1)
    with dripping(b"HTTP/1.1 200 OK\r\n\r\n", slow=["/version", "/metrics"]) as url:
        assert probe(url, timeout_s=60) == Probe(is_reachable=True, is_ready=True, models=("m]0;title",))


@pytest.mark.parametrize("number", ["1e999", "1.2.3"])
def test_a_number_of_requests_that_is_none_is_left_out_and_names_hold_no_codes(number: str) -> None:
    with answering({"/v1/models": MODELS, "/metrics": f"vllm:num_requests_running {number}\n".encode()}) as url:
        assert probe(url) == Probe(is_reachable=True, is_ready=True, models=("m]0;title",))


@pytest.mark.promise("REGISTRY-3")
@pytest.mark.parametrize("key", ["S3CRET\r", "S3CRET\n", "S3CRET\N{LATIN SMALL LETTER E WITH ACUTE}"])
def test_a_key_that_cannot_be_sent_is_not_repeated(key: str) -> None:
    with answering({"/v1/models": MODELS}) as url:
        found = probe(url, key)
    assert "S3CRET" not in found.problem
    assert "--api-key-env" in found.problem


def test_llama_cpp_s_server_says_that_it_loads_and_how_many_requests_it_has() -> None:
    loading = b'{"error":{"message":"Loading model","type":"unavailable_error","code":503}}'
    with answering({"/health": loading}, status=503) as url:
        assert probe(url) == Probe(is_reachable=True, phase="Loading model", problem="not ready: Loading model")
        assert is_ready(url) == (False, "Loading model")
    listing = b'{"models":[{"name":"m"}],"object":"list","data":[{"id":"m","owned_by":"llamacpp"}]}'
    metrics = (
        b"# TYPE llamacpp:requests_processing gauge\nllamacpp:requests_processing 2\nllamacpp:requests_deferred 1\n"
    )
    with answering({"/health": b'{"status":"ok"}', "/v1/models": listing, "/metrics": metrics}) as url:
        assert probe(url) == Probe(is_reachable=True, is_ready=True, models=("m",), running=2, waiting=1)


def test_a_server_that_is_not_ready_need_not_say_why() -> None:
    with answering({"/health": b'{"error": "no"}'}, status=503) as url:
        assert probe(url) == Probe(is_reachable=True, problem="not ready yet")
