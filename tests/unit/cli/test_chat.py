"""`mxext chat` and `complete`: commands, input of several lines, figures, a model loaded here, and a real terminal."""

from __future__ import annotations

import io
import itertools
import json
import os
import pty
import select
import subprocess
import sys
import threading
from collections.abc import Generator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.engine_fakes import write_tiny_checkpoint
from vllm_mxext.cli.chat import Conversation
from vllm_mxext.cli.main import main
from vllm_mxext.cli.talkers import Message, Piece
from vllm_mxext.errors import InvalidRequestError

pytestmark = pytest.mark.promise("CLI-4")


class Parrot:
    """Repeats the last message in two pieces, and keeps what it was asked."""

    name = "parrot"

    def __init__(self) -> None:
        self.asked: list[tuple[list[Message], dict[str, Any]]] = []

    def __enter__(self) -> Parrot:
        return self

    def __exit__(self, *exc_info: object) -> None:
        pass

    def chat(self, messages: Sequence[Message], fields: dict[str, Any]) -> Generator[Piece, None, None]:
        self.asked.append((list(messages), dict(fields)))
        text = messages[-1]["content"]
        if text == "fail":
            raise InvalidRequestError("temperature must be in [0, 2], got 9.")
        yield Piece(text[:1], 1)
        if text == "long":
            raise KeyboardInterrupt
        yield Piece(text[1:], 3)

    def complete(self, prompt: str, fields: dict[str, Any]) -> Generator[Piece, None, None]:
        yield Piece(prompt, 1)


def talk(monkeypatch: pytest.MonkeyPatch, *lines: str, system: str | None = None) -> Parrot:
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
    parrot = Parrot()
    Conversation(parrot, {"seed": 1}, system).run()
    return parrot


def said(parrot: Parrot) -> list[str]:
    return [messages[-1]["content"] for messages, _ in parrot.asked]


def test_an_answer_is_followed_by_its_speed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seconds = itertools.count(step=0.5)
    monkeypatch.setattr("vllm_mxext.cli.chat.time", SimpleNamespace(monotonic=lambda: next(seconds)))
    talk(monkeypatch, "abc")
    printed = capsys.readouterr()
    assert "abc\n" in printed.out
    assert "(3 tokens, 4.0 tokens/s, first after 0.50 s)" in printed.err


def test_the_speed_of_what_came_all_at_once_is_not_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seconds = itertools.count(step=0.001)
    monkeypatch.setattr("vllm_mxext.cli.chat.time", SimpleNamespace(monotonic=lambda: next(seconds)))
    talk(monkeypatch, "abc")
    assert "(3 tokens, first after 0.00 s)" in capsys.readouterr().err


def test_ctrl_c_keeps_what_was_said_in_the_history(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parrot = talk(monkeypatch, "long", "next")
    assert [m["content"] for m in parrot.asked[1][0]] == ["long", "l", "next"]
    assert "(stopped, 1 tokens" in capsys.readouterr().err


def test_lines_are_joined_by_backslashes_and_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    parrot = talk(monkeypatch, "one\\", "two\\", "three", '"""four', "", '  five"""', '"""six"""')
    assert said(parrot) == ["one\ntwo\nthree", "four\n\n  five", "six"]


def test_a_block_that_never_ends_ends_with_the_input(monkeypatch: pytest.MonkeyPatch) -> None:
    assert said(talk(monkeypatch, '"""four', "five")) == []


def test_fields_are_set_shown_and_removed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    parrot = talk(
        monkeypatch, "/set temperature 0.7", "/set stop END", "a", "/set", "/set seed", "/set temperature 0", "b"
    )
    assert parrot.asked[0][1] == {"seed": 1, "temperature": 0.7, "stop": "END"}
    assert parrot.asked[1][1] == {"temperature": 0, "stop": "END"}
    assert '"temperature": 0.7' in capsys.readouterr().out


def test_the_system_message_is_changed_and_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    parrot = talk(monkeypatch, "a", "/system be brief", "b", "/clear", "c", "/system", "d", system="be kind")
    firsts = [messages[0] for messages, _ in parrot.asked]
    assert [(first["role"], first["content"]) for first in firsts] == [
        ("system", "be kind"),
        ("system", "be brief"),
        ("system", "be brief"),
        ("user", "c"),
    ]
    assert [len(messages) for messages, _ in parrot.asked] == [2, 4, 2, 3]


def test_a_conversation_is_saved_and_loaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "talk.json"
    talk(monkeypatch, "aé", f"/save {file}", system="s")
    assert json.loads(file.read_text()) == [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "aé"},
        {"role": "assistant", "content": "aé"},
    ]
    parrot = talk(monkeypatch, f"/load {file}", "b")
    assert [m["content"] for m in parrot.asked[0][0]] == ["s", "aé", "aé", "b"]
    (tmp_path / "bad.json").write_text('{"a": 1}')
    talk(monkeypatch, f"/load {tmp_path}/bad.json", f"/load {tmp_path}/none", f"/save {tmp_path}/no/where")
    complaints = capsys.readouterr().err
    for complaint in ("is no conversation", "cannot be read", "cannot be written"):
        assert complaint in complaints


def test_help_names_every_command_and_mistakes_are_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parrot = talk(monkeypatch, "/help", "/hepl", "/2 is half", "fail", "after", "/quit", "never")
    printed = capsys.readouterr()
    for name in ("/help", "/clear", "/system", "/save", "/load", "/set", "/quit"):
        assert name in printed.out
    assert "There is no command /hepl" in printed.err
    assert "temperature must be" in printed.err
    assert said(parrot) == ["/2 is half", "fail", "after"]
    assert [m["content"] for m in parrot.asked[-1][0]] == ["/2 is half", "/2 is half", "after"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("model"))


ENGINE = ("--load-format", "dummy", "--num-threads", "1", "--dtype", "float32", "--max_num_seqs", "2")


def test_a_model_is_loaded_here(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--model", str(checkpoint), "--max-tokens", "5", "--temperature", "0", "--seed", "1", *ENGINE]
    assert main(["complete", "hello", *argv]) == 0
    assert capsys.readouterr().out
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n/set temperature 9\nhello\n/set top_logprobs 2\nhello\n"))
    assert main(["chat", *argv]) == 0
    printed = capsys.readouterr()
    assert f"Talking to {checkpoint}" in printed.err
    assert "tokens, " in printed.err
    assert "temperature must be in [0, 2]" in printed.err
    assert "has no field top_logprobs" in printed.err


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["--model", "m", "--url", "http://x"], "use one of them"),
        (["--max-num-seqs", "2"], "need --model"),
        (["--model", "m", "--port", "1"], "concerns servers"),
        (["--model", "m", "--no-such-flag"], "Unknown flag"),
    ],
)
def test_flags_that_contradict_each_other_are_refused(
    argv: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["chat", *argv]) == 2
    assert sentence in capsys.readouterr().err


class EndlessServer:
    """Begins an answer and leaves it open until the client goes."""

    def __init__(self) -> None:
        self.left = threading.Event()
        endless = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._send('{"data": [{"id": "tiny"}]}')

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                self.send_response(200)
                self.end_headers()
                self.wfile.write(b'data: {"choices": [{"delta": {"content": "begun"}}]}\n\n')
                self.wfile.flush()
                select.select([self.connection], [], [])
                endless.left.set()  # the client has closed the connection

            def _send(self, text: str) -> None:
                self.send_response(200)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the overridden name
                pass

        self.httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.httpd.server_port}"


IN_A_TERMINAL = """
import fcntl, signal, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts background jobs without it
from vllm_mxext.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


class Terminal:
    """The outer end of a terminal."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._unread = b""

    def type(self, keys: bytes) -> None:
        os.write(self._descriptor, keys)

    def read_until(self, text: bytes) -> None:
        while text not in self._unread:
            self._unread += os.read(self._descriptor, 1000)
        self._unread = self._unread.partition(text)[2]


@pytest.mark.e2e
def test_in_a_terminal_ctrl_c_stops_the_answer_and_the_conversation_goes_on() -> None:
    server = EndlessServer()
    thread = threading.Thread(target=server.httpd.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    outer, inner = pty.openpty()
    terminal = Terminal(outer)
    child = subprocess.Popen(
        [sys.executable, "-c", IN_A_TERMINAL, "chat", "--url", server.url],
        stdin=inner,
        stdout=inner,
        stderr=inner,
        start_new_session=True,
    )
    os.close(inner)
    try:
        terminal.read_until(b"> ")
        terminal.type(b"hello\n")
        terminal.read_until(b"begun")
        terminal.type(b"\x03")
        terminal.read_until(b"(stopped, ")
        assert server.left.wait(60)
        terminal.read_until(b"> ")
        terminal.type(b"/quit\n")
        assert child.wait(60) == 0
    finally:
        child.kill()
        child.wait()
        os.close(outer)
        server.httpd.shutdown()
        thread.join()
        server.httpd.server_close()
