"""The keeper, a process beside every server: starts it, writes and rotates its log, and records how it ended.

`start` passes it a job as JSON on standard input and reads one line of JSON back. It runs in a session of its own, so
that closing a terminal does not end it, and forwards SIGTERM and SIGINT to the server. If it is killed, the server goes
on, without a log.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from vllm_mxext.registry.errors import RegistryError
from vllm_mxext.registry.logs import RotatingLog
from vllm_mxext.registry.processes import Identity, boot_id, identify
from vllm_mxext.registry.runs import Run, describe_exit

_POLL_S = 0.5


@dataclass(frozen=True, slots=True)
class Job:
    """The server to start.

    Attributes:
        command: its program and flags.
        port: the port in these flags.
        host: the address in these flags.
        run_file: where to record its process.
        log: where to write its log.
    """

    command: list[str]
    port: int
    host: str
    run_file: str
    log: str


def main() -> int:
    """Runs the job on standard input until its server ends; returns 0, or 1 if the server could not be started."""
    job = Job(**json.load(sys.stdin))
    log = RotatingLog(Path(job.log))
    log.note(f"starting on port {job.port}")
    try:
        # Without `restore_signals`, writing to a broken pipe is an error that the server can ignore, not its death.
        child = subprocess.Popen(
            job.command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            restore_signals=False,
        )
    except OSError as error:
        _answer({"error": f"'{job.command[0]}' cannot be started: {error.strerror}."})
        return 1
    _forward_signals(child)
    keeper = identify(os.getpid())
    assert keeper is not None
    # If it has ended already, it is a zombie until we reap it, so its pid cannot have been reused.
    server = identify(child.pid) or Identity(child.pid, 0.0, boot_id())
    run = Run(server, keeper, job.port, job.host, tuple(job.command), time.time())
    try:
        run.write(Path(job.run_file))
    except RegistryError as error:
        child.kill()
        _answer({"error": str(error)})
        return 1
    _answer({"pid": child.pid})
    assert child.stdout is not None
    _copy(child, child.stdout, log)
    code = child.wait()
    log.note(f"the server {describe_exit(code)}")
    log.close()
    with contextlib.suppress(RegistryError):
        run.ended(time.time(), code).write(Path(job.run_file))
    return 0


def _answer(content: dict[str, Any]) -> None:
    """Answers the process that started us, even if it has ended, and detaches from the terminal."""
    with contextlib.suppress(BrokenPipeError):
        os.write(1, json.dumps(content).encode() + b"\n")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)


def _forward_signals(child: subprocess.Popen[bytes]) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda got, _frame: child.send_signal(got))


def _copy(child: subprocess.Popen[bytes], output: IO[bytes], log: RotatingLog) -> None:
    """Copies the server's output until it has ended, even if a child of its own still holds the pipe open."""
    with selectors.DefaultSelector() as selector:
        selector.register(output, selectors.EVENT_READ)
        while True:
            has_ended = child.poll() is not None
            if selector.select(_POLL_S if not has_ended else 0.1):
                data = os.read(output.fileno(), 65536)
                if not data:
                    return
                log.write(data)
            elif has_ended:
                return


if __name__ == "__main__":
    sys.exit(main())
