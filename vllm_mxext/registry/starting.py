"""Starts a server as a process of its own, and waits until it is ready or has failed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from vllm_mxext.errors import ConfigError
from vllm_mxext.registry import logs, ports
from vllm_mxext.registry.backends import Backend
from vllm_mxext.registry.errors import NotRunningError, PortTakenError, StartFailedError
from vllm_mxext.registry.folders import Folders, make_private
from vllm_mxext.registry.hints import hint
from vllm_mxext.registry.keeper import Job
from vllm_mxext.registry.probe import is_ready
from vllm_mxext.registry.processes import wait_for_end
from vllm_mxext.registry.record import ServerRecord
from vllm_mxext.registry.runs import Run, describe_exit, read_run

_POLL_S = 0.1
_TAIL_LINES = 15
_PACKAGE_ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a start is.

    Attributes:
        seconds: since it began.
        phase: what the server does, in its own words; empty if it does not say.
        last_line: of its log.
    """

    seconds: float
    phase: str
    last_line: str


def pick_port(record: ServerRecord, avoid: Collection[int]) -> int:
    """Returns the port for a start: the one that was asked for, the last one, or a free one.

    Args:
        record: the server.
        avoid: ports of other registered servers.

    Raises:
        ConfigError: the address cannot be used.
        PortTakenError: somebody has the port that was asked for; the text says who.
    """
    if record.port is None:
        return ports.choose(record.host, record.chosen_port, avoid)
    if not ports.is_free(record.host, record.port):
        raise PortTakenError(
            f"Port {record.port} is taken by {ports.owner(record.port)}; end that one, or choose another port with "
            f"'mxext server edit {record.name} --port'."
        )
    return record.port


def launch(record: ServerRecord, backend: Backend, port: int, folders: Folders, environ: Mapping[str, str]) -> Run:
    """Starts a server with its keeper; returns as soon as its process is written down.

    Args:
        record: the server.
        backend: of it.
        port: to listen on.
        folders: of the user.
        environ: variables that it gets, with those of the record added.

    Raises:
        ConfigError: the variable with its key is not set.
        StartFailedError: the program cannot be started.
    """
    folder = folders.of(record.name)
    make_private(folder)
    job = Job(
        backend.command(record, port),
        port,
        run_file=str(folders.run_file(record.name)),
        log=str(folders.log(record.name)),
    )
    keeper = subprocess.Popen(
        [sys.executable, "-m", "vllm_mxext.registry.keeper"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        cwd=folder,  # not where the user happens to be: that folder could not be unmounted
        env=_environment(record, backend, environ),
    )
    assert keeper.stdin is not None
    assert keeper.stdout is not None
    assert keeper.stderr is not None
    with keeper.stdin as job_pipe, keeper.stdout as answers, keeper.stderr as complaints:
        job_pipe.write(json.dumps(asdict(job)).encode())
        job_pipe.close()
        answer = answers.readline()  # it goes on living, so that nobody waits for its end
        complaint = "" if answer else complaints.read().decode(errors="replace").strip().rpartition("\n")[2]
    content = json.loads(answer) if answer else {"error": complaint or "its keeper did not answer"}
    if "error" in content:
        raise StartFailedError(f"'{record.name}' could not be started: {content['error']}")
    run = read_run(folders.run_file(record.name))
    assert run is not None, "the keeper answers after it has written the file"
    return run


def _environment(record: ServerRecord, backend: Backend, environ: Mapping[str, str]) -> dict[str, str]:
    found = {**environ, **record.env, "PYTHONUNBUFFERED": "1"}
    if _PACKAGE_ROOT.name not in (
        "site-packages",
        "dist-packages",
    ):  # `python main.py` in a folder that is not installed
        found["PYTHONPATH"] = os.pathsep.join([str(_PACKAGE_ROOT), *filter(None, [environ.get("PYTHONPATH")])])
    if record.api_key_env is not None:
        key = environ.get(record.api_key_env)
        if not key:
            raise ConfigError(
                f"{record.api_key_env}, which is to hold the key of '{record.name}', is not set; export it first."
            )
        if backend.key_variable is None:
            raise ConfigError(
                f"{backend.name} takes no key; remove it with 'mxext server edit {record.name} --unset api-key-env'."
            )
        found[backend.key_variable] = key
    return found


def wait_until_ready(
    record: ServerRecord, run: Run, folders: Folders, timeout_s: float, report: Callable[[Progress], None]
) -> float:
    """Waits until a server answers requests; returns how long that took.

    Args:
        record: the server.
        run: its process.
        folders: of the user.
        timeout_s: how long it may take.
        report: told about ten times a second how far it is.

    Raises:
        StartFailedError: it ended before.
        NotRunningError: it is still not ready; it goes on.
    """
    began = time.monotonic()
    log = folders.log(record.name)
    url = record.url(run.port)
    assert url is not None
    while True:
        is_alive = run.server.is_alive()
        ready, phase = is_ready(url) if is_alive else (False, "")
        seconds = time.monotonic() - began
        if ready and run.server.is_alive():
            return seconds
        if not is_alive:
            raise start_failure(record, run, folders)
        if seconds >= timeout_s:
            raise NotRunningError(
                f"'{record.name}' is not ready after {timeout_s:g} s and goes on starting; see 'mxext server logs -f "
                f"{record.name}', or end it with 'mxext server stop {record.name}'."
            )
        report(Progress(seconds, phase, logs.last_line(log)))
        time.sleep(_POLL_S)


def start_failure(record: ServerRecord, run: Run, folders: Folders) -> StartFailedError:
    """Returns the error of a server that ended before it was ready, with the end of its log and what to do."""
    wait_for_end(run.keeper, 5.0)  # then its last words and how it ended are written down
    last = read_run(folders.run_file(record.name))
    code = last.exit_code if last is not None and last.server == run.server else None
    lines = [line for line in logs.tail(folders.log(record.name), 400) if line.strip()]
    begin = max(
        (at for at, line in enumerate(lines) if line.startswith("--- ") and " starting on " in line), default=-1
    )
    said = tuple(line for line in lines[begin + 1 :] if not line.startswith("--- "))[-_TAIL_LINES:]
    how = describe_exit(code) if code is not None else "ended"
    return StartFailedError(
        f"'{record.name}' {how} before it was ready.", log_tail=said, hint=hint(record, run.port, code, said)
    )
