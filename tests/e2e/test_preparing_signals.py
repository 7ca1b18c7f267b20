"""Signals while the model is still being downloaded end the process in order, or at once if one insists."""

from __future__ import annotations

import signal
import subprocess
import sys

import httpx
import pytest

pytestmark = pytest.mark.e2e

WAIT_S = 60

PROGRAM = """
import sys, threading
from vllm_mxext.config.server import ServerConfig
from vllm_mxext.errors import ConfigError
from vllm_mxext.server.listen import open_socket
from vllm_mxext.server.preparing import StoppedError, serve_while

def work(listener, must_stop):
    must_stop.wait()
    print("told to stop", flush=True)
    if sys.argv[1] == "obeys":
        return "too late"
    if sys.argv[1] == "raises":
        raise ConfigError("interrupted")
    threading.Event().wait()

config = ServerConfig(port=0)
with open_socket(config) as sock:
    print(sock.getsockname()[1], flush=True)
    try:
        serve_while(work, config, sock)
    except StoppedError:
        print("stopped", flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("kind", ["obeys", "raises", "ignores"])
def test_the_first_signal_waits_for_the_work_and_the_second_one_does_not(kind: str, number: signal.Signals) -> None:
    with subprocess.Popen([sys.executable, "-c", PROGRAM, kind], stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        url = f"http://127.0.0.1:{int(program.stdout.readline())}"
        assert httpx.get(f"{url}/v1/health/live", timeout=WAIT_S).json()["phase"] == "choosing"
        program.send_signal(number)
        assert program.stdout.readline() == "told to stop\n"
        if kind == "ignores":
            assert httpx.get(f"{url}/v1/health/live", timeout=WAIT_S).json()["phase"] == "draining"
            assert "shutting down" in httpx.get(f"{url}/health", timeout=WAIT_S).text
            program.send_signal(number)
        output, _ = program.communicate(timeout=WAIT_S)
        assert (output, program.returncode) == ("stopped\n", 0)
