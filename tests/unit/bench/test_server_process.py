"""A server as a child process: readiness, memory, orderly end, and a clear error when it dies."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from vllm_mxext.bench.server_process import ServerProcess
from vllm_mxext.errors import EngineDeadError

SERVER = """
import http.server, signal, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
address = (sys.argv[sys.argv.index("--host") + 1], int(sys.argv[sys.argv.index("--port") + 1]))
http.server.ThreadingHTTPServer(address, http.server.SimpleHTTPRequestHandler).serve_forever(0.01)
"""


def test_a_server_is_waited_for_and_ended_in_order(tmp_path: Path) -> None:
    with ServerProcess([sys.executable, "-c", SERVER], tmp_path / "log") as server:
        server.wait_for("/", timeout_s=60)
        assert server.memory_bytes() > 10**6
        assert [process.pid for process in server.family()] == [server.process.pid]
        assert server.stop() == 7


def test_a_server_that_dies_is_reported_with_the_end_of_its_log(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import sys; print('no such model'); sys.exit(3)"]
    died = pytest.raises(EngineDeadError, match="ended with code 3: no such model")
    with ServerProcess(command, tmp_path / "log") as server, died:
        server.wait_for("/", timeout_s=60)
