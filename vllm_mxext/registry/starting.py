"""Starts a server as a background process, and waits until it is ready or has failed."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, field
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
from vllm_mxext.registry.runs import KEEPER_S, Run, describe_exit, read_run

_POLL_S = 0.1
_TAIL_LINES = 15
_LINE_CHARACTERS = 500
_PACKAGE_ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a start has come.

    Attributes:
        seconds: time since it began.
        phase: what the server is doing, as it says itself; empty if it does not say.
        last_line: last line of its log.
    """

    seconds: float
    phase: str
    last_line: str


@dataclass(frozen=True, slots=True)
class Plan:
    """A start whose settings have been checked.

    Attributes:
        record: the server.
        backend: its backend.
        environ: the environment variables that it gets.
        port: the port to listen on; 0 until one is chosen.
    """

    record: ServerRecord
    backend: Backend
    environ: Mapping[str, str] = field(repr=False)
    port: int = 0


def plan(record: ServerRecord, backend: Backend, environ: Mapping[str, str]) -> Plan:
    """Prepares a start.

    Args:
        record: the server.
        backend: its backend.
        environ: the environment that the command runs with, to which the record's variables are added.

    Raises:
        ConfigError: the variable with its key is not set.
    """
    return Plan(record, backend, _environment(record, backend, environ))


def pick_port(
    record: ServerRecord, others: Mapping[tuple[str, int], str], avoid: Collection[int | None], held: int | None
) -> int:
    """Returns the port that a server is to listen on.

    Args:
        record: the server.
        others: address -> name of the registered server that has it now, even if it does not listen there yet.
        avoid: ports of other registered servers.
        held: port that the server itself has until it is stopped.

    Raises:
        ConfigError: the address or port cannot be used at all.
        PortTakenError: the requested port is taken; the text says by whom.
    """
    if record.known_port is not None and record.known_port == held:
        return held
    if record.port is None:
        return ports.choose(record.host, record.chosen_port, {*avoid, *(port for _, port in others)})
    other = others.get((record.host, record.port))
    if other is None and not ports.is_free(record.host, record.port):
        other = next((name for (_, port), name in others.items() if port == record.port), "")
    if other is None:
        return record.port
    owner = f"the server '{other}' ('mxext server stop {other}')" if other else ports.owner(record.port)
    raise PortTakenError(
        f"Port {record.port} is taken by {owner}; end that one, or choose another port with 'mxext server edit "
        f"{record.name} --port'."
    )


def launch(plan: Plan, folders: Folders) -> Run:
    """Starts a server with its keeper; returns as soon as its process has been recorded.

    Raises:
        StartFailedError: the program cannot be started.
    """
    record = plan.record
    folder = folders.of(record.name)
    job = Job(
        plan.backend.command(record, plan.port),
        plan.port,
        record.host,
        run_file=str(folders.run_file(record.name)),
        log=str(folders.log(record.name)),
    )
    try:
        make_private(folder)
        keeper = subprocess.Popen(
            [sys.executable, "-m", "vllm_mxext.registry.keeper"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            cwd=folder,  # not the user's, which could then not be unmounted
            env=plan.environ,
        )
    except OSError as error:
        raise StartFailedError(
            f"'{record.name}' could not be started: '{error.filename or folder}': {error.strerror}."
        ) from None
    assert keeper.stdin is not None
    assert keeper.stdout is not None
    assert keeper.stderr is not None
    with keeper.stdin as job_pipe, keeper.stdout as answers, keeper.stderr as complaints:
        with contextlib.suppress(BrokenPipeError):  # it has ended; why is on its standard error
            job_pipe.write(json.dumps(asdict(job)).encode())
            job_pipe.close()
        answer = answers.readline()  # not until the end of the file: the keeper goes on running
        complaint = "" if answer else complaints.read().decode(errors="replace").strip().rpartition("\n")[2]
    content = json.loads(answer) if answer else {"error": complaint or "its keeper did not answer"}
    if "error" in content:
        raise StartFailedError(f"'{record.name}' could not be started: {content['error']}")
    run = read_run(folders.run_file(record.name))
    assert run is not None, "the keeper answers only after writing the file"
    return run


def _environment(record: ServerRecord, backend: Backend, environ: Mapping[str, str]) -> dict[str, str]:
    found = {**environ, **record.env, "PYTHONUNBUFFERED": "1"}
    if _PACKAGE_ROOT.name not in (
        "site-packages",
        "dist-packages",
    ):  # `python main.py` in a folder that is not installed
        found["PYTHONPATH"] = os.pathsep.join([str(_PACKAGE_ROOT), *filter(None, [found.get("PYTHONPATH")])])
    if record.api_key_env is not None:
        key = environ.get(record.api_key_env)
        if not key:
            raise ConfigError(
                f"The environment variable {record.api_key_env}, which holds the key of '{record.name}', is not set; "
                "export it first."
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
        folders: the user's folders.
        timeout_s: how long it may take.
        report: called about ten times a second with the progress.

    Raises:
        StartFailedError: the server ended before it was ready.
        NotRunningError: it is not ready in time; it goes on starting.
    """
    began = time.monotonic()
    log = folders.log(record.name)
    url = record.url(run.port, run.host)
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
                f"'{record.name}' is not ready after {timeout_s:g} s and goes on starting; watch it with 'mxext server "
                f"logs -f {record.name}', or end it with 'mxext server stop {record.name}'."
            )
        report(Progress(seconds, phase, logs.last_line(log)))
        time.sleep(_POLL_S)


def start_failure(record: ServerRecord, run: Run, folders: Folders) -> StartFailedError:
    """Returns the error of a server that ended before it was ready, with the end of its log and what to do."""
    wait_for_end(run.keeper, KEEPER_S)  # then its last words and how it ended are written down
    last = read_run(folders.run_file(record.name))
    code = last.exit_code if last is not None and last.server == run.server else None
    lines = [line for line in logs.tail(folders.log(record.name), 400) if line.strip()]
    begin = max(
        (at for at, line in enumerate(lines) if line.startswith(logs.NOTE) and " starting on " in line), default=-1
    )
    said = tuple(_plain(line) for line in lines[begin + 1 :] if not line.startswith(logs.NOTE))[-_TAIL_LINES:]
    how = describe_exit(code) if code is not None else "ended"
    return StartFailedError(
        f"'{record.name}' {how} before it was ready.", log_tail=said, hint=hint(record, run.port, code, said)
    )


def _plain(line: str) -> str:
    """Returns a line that is safe to print: no terminal control codes, and of limited length."""
    return "".join(one for one in line.expandtabs() if one.isprintable())[:_LINE_CHARACTERS]
