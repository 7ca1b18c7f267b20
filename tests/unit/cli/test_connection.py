"""`mxext chat` and `mxext complete` against a small HTTP server that plays its part."""

from __future__ import annotations

import contextlib
import io
import json
import select
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from vllm_mxext.cli.connection import Connection, UnreachableError
from vllm_mxext.cli.main import main


class FakeServer:
    """Answers from a script and remembers the requests."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, dict[str, Any], str | None]] = []
        self.lines: list[str] = []
        self.status = 200
        self.models = [{"id": "tiny"}]
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer(json.dumps({"object": "list", "data": fake.models}))

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                fake.requests.append((self.path, body, self.headers.get("Authorization")))
                self._answer("".join(f"{line}\n\n" for line in fake.lines))

            def _answer(self, text: str) -> None:
                data = text.encode()
                self.send_response(fake.status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the overridden name
                pass

        self.httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.httpd.server_port}"

    def script(self, *events: dict[str, Any] | str) -> None:
        """Sets the lines of the next stream."""
        self.lines = [event if isinstance(event, str) else f"data: {json.dumps(event)}" for event in events]


@pytest.fixture
def server() -> Iterator[FakeServer]:
    fake = FakeServer()
    thread = threading.Thread(target=fake.httpd.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield fake
    fake.httpd.shutdown()
    thread.join()
    fake.httpd.server_close()


def chunk(text: str) -> dict[str, Any]:
    return {"choices": [{"delta": {"content": text}}]}


def type_lines(monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))


def test_complete_streams_the_text_of_the_first_model(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.script(
        ": keep-alive", {"choices": [{"text": "4"}]}, {"choices": [{"text": "2"}]}, {"choices": []}, "data: [DONE]"
    )
    argv = ["complete", "6 * 7 =", "--url", f"{server.url}/v1/", "--api-key", "k", "--max-tokens", "5"]
    assert main(argv) == 0
    assert capsys.readouterr().out == "42\n"
    path, body, authorization = server.requests[0]
    assert (path, authorization) == ("/v1/completions", "Bearer k")
    assert body.pop("stream_options") == {"include_usage": True, "continuous_usage_stats": True}
    assert body == {"model": "tiny", "prompt": "6 * 7 =", "max_tokens": 5, "stream": True}


@pytest.mark.parametrize(("piped", "asked"), [("from a pipe", "from a pipe"), ("a\nfile\n\n", "a\nfile\n")])
def test_complete_reads_the_prompt_from_standard_input_without_its_last_newline(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, piped: str, asked: str
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(piped))
    server.script("data: [DONE]")
    assert main(["complete", "--url", server.url]) == 0
    assert server.requests[0][1]["prompt"] == asked


def test_a_refusal_is_shown_as_the_server_said_it(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.status = 401
    assert main(["complete", "x", "--url", server.url, "--model-name", "m"]) == 1
    assert "The server answered 401" in capsys.readouterr().err


def test_a_server_that_lists_no_model_is_no_foreign_one(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.models = []  # as transformers' server does, which answers for its model all the same
    for argv in (["complete", "x"], ["bench", "serve", "--no-save"]):
        assert main([*argv, "--url", server.url]) == 1
        assert "lists no model; name the one that it serves" in capsys.readouterr().err


def test_an_error_inside_the_stream_ends_the_command(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.script({"choices": [{"text": "4"}]}, {"error": {"message": "engine died"}}, "data: [DONE]")
    assert main(["complete", "x", "--url", server.url]) == 1
    assert "engine died" in capsys.readouterr().err


def test_characters_that_python_takes_for_ends_of_lines_stay_in_the_text(
    server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "one\u2028two\x85three"
    server.script(f"data: {json.dumps({'choices': [{'text': text}]}, ensure_ascii=False)}", "data: [DONE]")
    assert main(["complete", "x", "--url", server.url]) == 0
    assert capsys.readouterr().out == f"{text}\n"


@pytest.mark.parametrize("event", ["data: {broken", "data: [1]"])
def test_an_event_that_is_none_ends_the_command_with_a_sentence(
    server: FakeServer, capsys: pytest.CaptureFixture[str], event: str
) -> None:
    server.script({"choices": [{"text": "4"}], "error": None}, event, "data: [DONE]")
    assert main(["complete", "x", "--url", server.url]) == 1
    printed = capsys.readouterr()
    assert printed.out == "4"
    assert "an event is not a JSON object" in printed.err


def test_chat_keeps_the_history_until_it_is_cleared(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.script(chunk("Hel"), chunk("lo"), "data: [DONE]")
    type_lines(monkeypatch, "hi", "", "again", "/clear", "new", "/exit", "never sent")
    assert main(["chat", "--url", server.url, "--system", "be short"]) == 0
    system, answer = {"role": "system", "content": "be short"}, {"role": "assistant", "content": "Hello"}
    sent = [body["messages"] for _, body, _ in server.requests]
    assert sent == [
        [system, {"role": "user", "content": "hi"}],
        [system, {"role": "user", "content": "hi"}, answer, {"role": "user", "content": "again"}],
        [system, {"role": "user", "content": "new"}],
    ]


def test_a_failed_turn_is_not_part_of_the_history(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server.script({"error": {"message": "try later"}})
    type_lines(monkeypatch, "one", "two")
    assert main(["chat", "--url", server.url]) == 0
    assert capsys.readouterr().err.count("try later") == 2
    assert server.requests[1][1]["messages"] == [{"role": "user", "content": "two"}]


def test_ctrl_c_stops_only_the_answer(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Interrupting(io.StringIO):
        def write(self, text: str) -> int:
            if text == "lo":
                raise KeyboardInterrupt
            return super().write(text)

    server.script(chunk("Hel"), chunk("lo"), chunk("!"), "data: [DONE]")
    type_lines(monkeypatch, "hi", "/exit")
    output = Interrupting()
    monkeypatch.setattr("sys.stdout", output)
    assert main(["chat", "--url", server.url]) == 0
    assert "Hel" in output.getvalue()
    assert "!" not in output.getvalue()
    assert "(stopped, " in capsys.readouterr().err


BEGUN = b'HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\ndata: {"choices": []}\n\n'


@contextlib.contextmanager
def answering(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """Yields the address of a server that answers one connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with contextlib.suppress(OSError), server.accept()[0] as connection:
                connection.recv(10_000)
                answer(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        thread.join()


def drip(connection: socket.socket) -> None:
    """Sends an answer's headers byte by byte, for as long as somebody waits for them."""
    connection.sendall(b"HTTP/1.1 200 OK\r\nx-drip: ")
    while not select.select([connection], [], [], 0.005)[0]:
        connection.sendall(b"x")


def test_a_server_that_never_says_which_models_it_has_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vllm_mxext.cli.connection._LIST_S", 0.1)
    with (
        answering(drip) as url,
        Connection(url, None) as connection,
        pytest.raises(UnreachableError, match=r"did not answer within 0\.1 s"),
    ):
        connection.first_model()


@pytest.mark.promise("CLI-4")
def test_an_interrupt_that_wakes_nobody_ends_a_stream_of_which_nothing_comes_any_more() -> None:
    was_given = threading.Event()

    def begin_and_interrupt(connection: socket.socket) -> None:
        connection.sendall(BEGUN)
        was_given.wait()
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)  # noted for the main thread, which it does not wake
        select.select([connection], [], [])  # until the client has left

    with answering(begin_and_interrupt) as url, Connection(url, None) as connection:
        events = connection.stream("/v1/completions", {})
        next(events)
        was_given.set()
        with pytest.raises(KeyboardInterrupt):
            next(events)
