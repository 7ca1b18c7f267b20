"""`mxext server start`, `stop` and `restart`."""

from __future__ import annotations

import argparse

from vllm_mxext.cli.server_commands.answer import Answer
from vllm_mxext.cli.server_commands.waiting import Waiting
from vllm_mxext.errors import ConfigError
from vllm_mxext.registry.servers import Servers, Started


def start(servers: Servers, arguments: argparse.Namespace) -> Answer:
    """Starts a server."""
    with Waiting(arguments.name, is_silent=arguments.json) as waiting:
        started = servers.start(arguments.name, timeout_s=_start_timeout(arguments), report=waiting.report)
    return _outcome(started, "Started")


def stop(servers: Servers, arguments: argparse.Namespace) -> Answer:
    """Stops a server; it is no error if it does not run."""
    name = arguments.name
    is_gentle = servers.stop(name, timeout_s=_seconds(arguments.stop_timeout))
    how = {True: "ended", False: "killed", None: "not running"}[is_gentle]
    text = {
        True: f"Stopped '{name}'.",
        False: f"Killed '{name}', which had not ended within {arguments.stop_timeout:g} s.",
        None: f"'{name}' was not running.",
    }[is_gentle]
    return Answer({"name": name, "result": how}, text)


def restart(servers: Servers, arguments: argparse.Namespace) -> Answer:
    """Stops a server if it runs, and starts it."""
    stop_timeout_s = _seconds(arguments.stop_timeout)
    with Waiting(arguments.name, is_silent=arguments.json) as waiting:
        started = servers.restart(
            arguments.name, stop_timeout_s=stop_timeout_s, timeout_s=_start_timeout(arguments), report=waiting.report
        )
    return _outcome(started, "Restarted")


def _start_timeout(arguments: argparse.Namespace) -> float | None:
    return None if arguments.no_wait else _seconds(arguments.timeout)


def _outcome(started: Started, verb: str) -> Answer:
    record, run = started.record, started.run
    url = record.url(run.port, run.host)
    value = {
        "name": record.name,
        "url": url,
        "port": run.port,
        "pid": run.server.pid,
        "was_running": started.was_running,
        "ready": started.seconds is not None,
        "seconds": None if started.seconds is None else round(started.seconds, 3),
    }
    if started.was_running:
        state = "is running already" if started.seconds is not None else "has been started already"
        return Answer(value, f"'{record.name}' {state} at {url} (process {run.server.pid}).")
    text = f"{verb} '{record.name}' at {url} (process {run.server.pid})"
    if started.seconds is None:
        return Answer(value, f"{text}; check with 'mxext server status {record.name}' when it is ready.")
    return Answer(value, f"{text}; it was ready after {started.seconds:.1f} s.")


def _seconds(given: float) -> float:
    if not 0 <= given < float("inf"):
        raise ConfigError(f"A timeout must be a number of seconds, 0 or more, got {given:g}.")
    return given
