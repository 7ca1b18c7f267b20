"""A user with folders of their own, whose native backend is a fake server that starts at once."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from vllm_mxext.bench.server_process import reserved_port
from vllm_mxext.cli.main import main
from vllm_mxext.registry import backends, ports
from vllm_mxext.registry.folders import Folders
from vllm_mxext.registry.servers import Servers

FAKE = Path(__file__).parents[2] / "fake_llm_server.py"


@contextmanager
def reserved_ports(count: int) -> Iterator[int]:
    """The first of so many ports in a row, held as `reserved_port` holds one, below those that the system gives."""
    for first in range(20_000, 30_000, count):
        with ExitStack() as held:
            try:
                for port in range(first, first + count):
                    holder = held.enter_context(socket.socket())
                    holder.bind(("127.0.0.1", port))
                    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            except OSError:
                continue
            if sys.platform != "linux":
                held.close()
            yield first
            return


@dataclass
class User:
    """Somebody who types `mxext server ...`."""

    folders: Folders
    servers: Servers
    capsys: pytest.CaptureFixture[str]
    held: ExitStack = field(default_factory=ExitStack)

    def port(self) -> str:
        """A port that nobody else gets before the test has ended."""
        return str(self.held.enter_context(reserved_port()))

    def types(self, *words: str, code: int = 0) -> str:
        """What a command prints; it must end with the code."""
        self.capsys.readouterr()
        ended = main(["server", *words])
        printed = self.capsys.readouterr()
        assert ended == code, printed.out + printed.err
        return printed.out + printed.err

    def asks(self, *words: str, code: int = 0) -> Any:
        """What a command prints for programs."""
        return json.loads(self.types(*words, "--json", code=code))


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[User]:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    fake = replace(
        backends.BACKENDS["native"],
        command=lambda record, port: [sys.executable, str(FAKE), "--port", str(port), *record.extra_args],
    )
    monkeypatch.setitem(backends.BACKENDS, "native", fake)
    folders = Folders.from_environ(os.environ)
    servers = Servers(folders, os.environ)
    user = User(folders, servers, capsys)
    with user.held:
        monkeypatch.setattr(ports, "FIRST", user.held.enter_context(reserved_ports(3)))
        yield user
        if folders.book.exists() and folders.book.read_text().startswith("{"):
            for name, record in servers.book.read().items():
                if not record.is_remote:
                    servers.stop(name, timeout_s=0.5)
