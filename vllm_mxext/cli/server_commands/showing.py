"""`mxext server list`, `ps`, `status`, `logs` and `show`."""

from __future__ import annotations

import argparse
import json
import shlex
import time
from typing import Any

from vllm_mxext.cli.server_commands.answer import Answer, duration, size
from vllm_mxext.cli.tables import columns, counted
from vllm_mxext.errors import ConfigError
from vllm_mxext.registry import logs as log_files
from vllm_mxext.registry.backends import BACKENDS
from vllm_mxext.registry.errors import DONE, NOT_RUNNING, NotRunningError
from vllm_mxext.registry.ports import FIRST
from vllm_mxext.registry.runs import Run, read_run
from vllm_mxext.registry.servers import Servers, Status

_BUILT_IN = "built-in"


def list_servers(servers: Servers, arguments: argparse.Namespace) -> Answer:
    """Shows all registered servers."""
    if arguments.quiet:
        names = list(servers.book.read())
        return Answer({"servers": names}, "\n".join(names))
    found = servers.all()
    if not found:
        return Answer(
            {"servers": []}, "No server is registered; begin with 'mxext server add NAME --model-path MODEL'."
        )
    rows = [("NAME", "BACKEND", "MODEL", "ADDRESS", "STATE"), *map(_list_row, found)]
    ready = sum(one.is_ready for one in found)
    note = f"{counted(len(found), 'server')}, {ready} ready. Logs: 'mxext server logs NAME'."
    return Answer({"servers": [_facts(servers, one) for one in found]}, f"{columns(rows)}\n{note}")


def _list_row(status: Status) -> tuple[str, ...]:
    record = status.record
    model = record.model_path or ("-" if record.is_remote else _BUILT_IN)
    return record.name, record.kind, model, status.url or "-", status.word


def ps(servers: Servers, _arguments: argparse.Namespace) -> Answer:
    """Shows the servers that run on this machine."""
    found = [one for one in servers.all() if one.is_alive]
    value = {"servers": [_facts(servers, one) for one in found]}
    if not found:
        return Answer(value, "No registered server runs.")
    head = ("NAME", "STATE", "PID", "PORT", "UPTIME", "MEMORY", "RUNNING", "WAITING", "MODEL")
    return Answer(value, columns([head, *map(_ps_row, found)]))


def _ps_row(status: Status) -> tuple[str, ...]:
    run, probe = status.run, status.probe
    assert run is not None, "only servers whose process runs are shown"
    counts = (None, None) if probe is None else (probe.running, probe.waiting)
    running, waiting = ("-" if count is None else str(count) for count in counts)
    return (
        status.record.name, status.word, str(run.server.pid), str(run.port), duration(_uptime(run)),
        size(status.memory), running, waiting, status.record.model_path or _BUILT_IN,
    )  # fmt: skip


def _uptime(run: Run) -> float:
    return max(0.0, time.time() - run.started_at)  # the clock may have been set back


def status(servers: Servers, arguments: argparse.Namespace) -> Answer:
    """Shows one server; the exit code says whether it is ready."""
    found = servers.status(arguments.name)
    facts = _facts(servers, found)
    lines = [f"{found.record.name}: {found.word}"]
    shown = (
        ("address", facts["url"]),
        ("models", ", ".join(facts["models"])),
        ("backend", " ".join(filter(None, [found.record.kind, facts["version"]]))),
        ("process", facts["pid"]),
        ("up for", None if facts["uptime_s"] is None else duration(facts["uptime_s"])),
        ("memory", None if found.memory is None else size(found.memory)),
        ("requests", _requests(found)),
        ("log", facts["log"]),
        ("problem", facts["problem"]),
    )
    lines += [f"  {name:<9} {value}" for name, value in shown if value]
    return Answer(facts, "\n".join(lines), DONE if found.is_ready else NOT_RUNNING)


def _requests(found: Status) -> str | None:
    if found.probe is None or found.probe.running is None:
        return None
    return f"{found.probe.running} running, {found.probe.waiting or 0} waiting"


def _facts(servers: Servers, found: Status) -> dict[str, Any]:
    """Returns everything about a server for programs."""
    record, run, probe = found.record, found.run, found.probe
    log = servers.folders.log(record.name)
    return {
        "name": record.name,
        "state": found.word,
        "ready": found.is_ready,
        "backend": record.kind,
        "model": record.model_path,
        "url": found.url,
        "port": run.port if run is not None else record.known_port,
        "pid": run.server.pid if run is not None and found.is_alive else None,
        "uptime_s": round(_uptime(run), 3) if run is not None and found.is_alive else None,
        "memory_bytes": found.memory,
        "requests_running": probe.running if probe is not None else None,
        "requests_waiting": probe.waiting if probe is not None else None,
        "models": list(probe.models) if probe is not None else [],
        "version": probe.version if probe is not None else None,
        "log": str(log) if log.exists() else None,
        "problem": _problem(found),
    }


def _problem(found: Status) -> str | None:
    if found.trouble:
        return found.trouble
    if found.probe is None:
        return f"it {found.run.how_it_ended()}" if found.run is not None else None
    expected = found.record.model_path if found.record.is_remote else None
    if found.is_ready and expected is not None and expected not in found.probe.models:
        return f"it does not serve '{expected}'"
    return found.probe.problem or None


def logs(servers: Servers, arguments: argparse.Namespace) -> Answer:
    """Prints the end of a log, and follows it with `-f`."""
    record = servers.book.get(arguments.name)
    path = servers.folders.log(record.name)
    if record.is_remote:
        raise ConfigError(f"'{record.name}' is a remote server; its log is on the machine where it runs.")
    if arguments.lines < 0:
        raise ConfigError(f"--lines must be 0 or more, got {arguments.lines}.")
    if not log_files.log_files(path):
        raise NotRunningError(
            f"'{record.name}' has written nothing yet; start it with 'mxext server start {record.name}'."
        )
    if arguments.follow:
        _follow(servers, record.name, arguments.lines, is_json=arguments.json)
        return Answer({}, "")
    lines = log_files.tail(path, arguments.lines)
    return Answer({"name": record.name, "log": str(path), "lines": lines}, "\n".join(lines))


def _follow(servers: Servers, name: str, count: int, *, is_json: bool) -> None:
    def is_over() -> bool:
        run = read_run(servers.folders.run_file(name))
        return run is None or not run.keeper.is_alive()

    for line in log_files.follow(servers.folders.log(name), count, is_over):
        print(json.dumps({"line": line}, ensure_ascii=False) if is_json else line, flush=True)


def show(servers: Servers, arguments: argparse.Namespace) -> Answer:
    """Shows how a server is registered, and the command that starts it."""
    record = servers.book.get(arguments.name)
    settings = record.as_mapping()
    command = None
    if not record.is_remote:
        command = shlex.join(BACKENDS[record.kind].command(record, record.known_port or FIRST))
    value = {"name": record.name, **settings, "command": command, "file": str(servers.book.path)}
    rows = [("name", record.name), *((key.replace("_", "-"), _shown(text)) for key, text in settings.items())]
    rows += [("command", command)] if command is not None else []
    rows += [("file", str(servers.book.path))]
    return Answer(value, columns(rows))


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(f"{name}={shlex.quote(text)}" for name, text in value.items())
    return shlex.join(value) if isinstance(value, list) else str(value)
