"""Starts a server as a child process, waits until it answers, watches its memory and stops it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType

import httpx
import psutil

from vllm_mxext.errors import EngineDeadError

OUR_SERVER = (sys.executable, "-m", "vllm_mxext.entrypoints.openai.api_server")
"""Program of our server; flags follow."""

_POLL_S = 0.01


@contextmanager
def reserved_port() -> Iterator[int]:
    """Yields a port of the loopback interface that meanwhile nobody gets who does not ask for this very one.

    A socket that is bound and does not listen keeps the system from giving the port to others, also for connections of
    theirs; a server that sets SO_REUSEADDR or SO_REUSEPORT, as nearly all do, may listen on it all the same. Elsewhere
    than on Linux it could not: there the port is free when it is looked for, and no more is certain.
    """
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        port = int(holder.getsockname()[1])
        if sys.platform == "linux":
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        else:
            holder.close()
        yield port


class ServerProcess:
    """A server on a port of the loopback interface that is its own; a context manager that stops it.

    Args:
        command: program and flags; `--host` and `--port` are appended.
        log: file for its output.
        environ: its environment; this process's by default.

    Attributes:
        url: its address.
        process: the child.
    """

    def __init__(self, command: Sequence[str], log: Path, *, environ: Mapping[str, str] | None = None) -> None:
        self._reservation = ExitStack()
        port = self._reservation.enter_context(reserved_port())
        self.url = f"http://127.0.0.1:{port}"
        self._log = log
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [*command, "--host", "127.0.0.1", "--port", str(port)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=dict(os.environ if environ is None else environ),
            )

    def __enter__(self) -> ServerProcess:
        """Returns itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stops the server, at once after an error."""
        if self.process.poll() is None and error is not None:
            self.process.kill()
        self.stop()

    def wait_for(self, path: str = "/v1/health/ready", timeout_s: float = 600.0) -> None:
        """Returns when `path` answers 200.

        Raises:
            EngineDeadError: it ended, or did not answer in time; the text is the end of its log.
        """
        deadline = time.monotonic() + timeout_s
        with httpx.Client(base_url=self.url, timeout=5.0, trust_env=False) as client:
            while time.monotonic() < deadline:
                if self.process.poll() is not None:
                    raise EngineDeadError(f"The server ended with code {self.process.returncode}: {self._log_end()}")
                if _answers(client, path):
                    return
                time.sleep(_POLL_S)
        raise EngineDeadError(f"The server did not answer within {timeout_s:.0f} s: {self._log_end()}")

    def memory_bytes(self) -> int:
        """Returns the memory that the server and its children hold, shared pages divided among their users."""
        return sum(_proportional_bytes(process) for process in self.family())

    def peak_bytes(self) -> int:
        """Returns the most memory that one of the server's processes has held so far, shared pages included."""
        return max(peak_bytes(process.pid) for process in self.family())

    def family(self) -> list[psutil.Process]:
        """Returns the server's process and its children."""
        parent = psutil.Process(self.process.pid)
        return [parent, *parent.children(recursive=True)]

    def stop(self, timeout_s: float = 60.0) -> int:
        """Asks the server to end and returns its exit code; kills it when it does not."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()
        finally:
            self._reservation.close()

    def _log_end(self) -> str:
        return " | ".join(self._log.read_text(encoding="utf-8", errors="replace").splitlines()[-5:])


def peak_bytes(process_id: int) -> int:
    """Returns the most memory that a process has held so far, shared pages included; 0 where only Linux would know."""
    status = Path(f"/proc/{process_id}/status")
    lines = status.read_text(encoding="utf-8").splitlines() if status.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)


def _answers(client: httpx.Client, path: str) -> bool:
    try:
        return client.get(path).is_success
    except httpx.TransportError:
        return False


def _proportional_bytes(process: psutil.Process) -> int:
    try:
        info = process.memory_full_info()
    except psutil.NoSuchProcess:
        return 0
    return int(getattr(info, "pss", info.rss))
