"""The example scripts end with 1 and a sentence when a server is absent, breaks off or answers something else."""

from __future__ import annotations

import importlib
import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType

import pytest

EXAMPLES = Path(__file__).parents[3] / "examples"
MODELS = b'{"data": [{"id": "gpt2", "owned_by": "vllm"}]}'
EVENT = b'data: {"choices": [{"delta": {"content": "hi"}, "finish_reason": null}]}\n\n'


class BadServer(ThreadingHTTPServer):
    models: bytes = MODELS
    status: int = 200
    answer: bytes = b""
    missing: int = 0
    """Bytes of the answer that are announced and do not come."""


class Handler(BaseHTTPRequestHandler):
    server: BadServer

    def log_message(self, *words: object) -> None:
        """Says nothing."""

    def do_GET(self) -> None:
        self._send(200, self.server.models, 0)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self._send(self.server.status, self.server.answer, self.server.missing)

    def _send(self, status: int, body: bytes, missing: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) + missing))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def server() -> Iterator[BadServer]:
    with BadServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def examples(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.delitem(sys.modules, "chat_server", raising=False)
    return importlib.import_module("chat_server")


def stream_once(server: object, _checks: object) -> None:
    server.stream([])  # type: ignore[attr-defined]


def ask_once(server: object, _checks: object) -> None:
    server.ask([])  # type: ignore[attr-defined]


@pytest.mark.promise("REGISTRY-7")
@pytest.mark.parametrize(
    ("facts", "sentence"),
    [
        ({"models": b"<html>"}, "does not speak like"),
        ({"models": b"[]"}, "does not speak like"),
        ({"models": b'{"data": []}'}, "does not serve 'gpt2' but nothing"),
        ({"status": 500, "answer": b"boom"}, "answered 500: boom"),
        ({"answer": EVENT, "missing": 1000}, "broke: peer closed connection"),
        ({"answer": EVENT}, "ended without [DONE]"),
        ({"answer": EVENT + b"data: {oops\n\n"}, "does not speak like"),
        ({"answer": EVENT + b'data: {"error": {"message": "x"}}\n\n'}, "ended the stream with an error"),
    ],
)
def test_a_stream_that_is_not_whole_is_told(
    server: BadServer, examples: ModuleType, capsys: pytest.CaptureFixture[str], facts: dict[str, object], sentence: str
) -> None:
    for name, value in facts.items():
        setattr(server, name, value)
    assert examples.run("", ["--port", str(server.server_port)], stream_once) == 1
    assert sentence in capsys.readouterr().err


def test_characters_that_python_takes_for_ends_of_lines_stay_in_the_text(
    server: BadServer, examples: ModuleType
) -> None:
    server.answer = EVENT.replace(b"hi", "one\u2028two\x85".encode()).replace(b"{", b'{"error": null, ', 1)
    server.answer += b"data: [DONE]\n\n"
    answers = []

    def stream(asked: object, _checks: object) -> None:
        answers.append(asked.stream([]))  # type: ignore[attr-defined]

    assert examples.run("", ["--port", str(server.server_port)], stream) == 0
    assert answers[0].text == "one\u2028two\x85"


@pytest.mark.promise("REGISTRY-7")
@pytest.mark.parametrize(
    ("answer", "sentence"), [({"error": {"message": "bad"}}, "answered 200"), ({"choices": []}, "does not speak like")]
)
def test_an_answer_that_is_none_is_told(
    server: BadServer, examples: ModuleType, capsys: pytest.CaptureFixture[str], answer: object, sentence: str
) -> None:
    server.answer = json.dumps(answer).encode()
    assert examples.run("", ["--port", str(server.server_port)], ask_once) == 1
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize("port", ["0", "65536", "x"])
def test_a_port_that_is_none_is_wrong_usage(
    examples: ModuleType, capsys: pytest.CaptureFixture[str], port: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        examples.run("", ["--port", port], ask_once)
    assert caught.value.code == 2
    assert "--port" in capsys.readouterr().err
