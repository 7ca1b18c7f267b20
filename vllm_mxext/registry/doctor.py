"""Finds what is wrong with registered servers and the registry's files, each with its remedy."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from shlex import quote

from vllm_mxext.errors import ConfigError
from vllm_mxext.findings import Finding, Level
from vllm_mxext.registry import logs, ports
from vllm_mxext.registry.backends import BACKENDS, look
from vllm_mxext.registry.errors import BookError
from vllm_mxext.registry.folders import Folders
from vllm_mxext.registry.record import NATIVE, ServerRecord
from vllm_mxext.registry.servers import Servers, Status

_SCARCE_BYTES = 2**30
_LARGE_LOGS_BYTES = 200 * 2**20


def examine(servers: Servers) -> list[Finding]:
    """Checks the files, the disk and every registered server; changes nothing."""
    try:
        found = servers.all()
    except BookError as error:
        return [
            Finding(
                Level.PROBLEM, "registry", str(error), f"Repair it, or mv {quote(str(servers.book.path))} elsewhere."
            ),
            *_folders(servers.folders),
        ]
    findings = [Finding(Level.OK, "registry", f"{len(found)} registered in '{servers.book.path}'.")]
    findings += _folders(servers.folders)
    findings += _shared_ports(found)
    holders = {one.run.port: one.record.name for one in found if one.is_alive and one.run is not None}
    for status in found:
        about = list(_server(status, servers.folders, holders))
        findings += about or [Finding(Level.OK, status.record.name, f"is {status.word}.")]
    findings += _left_behind(servers.folders, {status.record.name for status in found})
    return findings


def _folders(folders: Folders) -> Iterator[Finding]:
    wanted = (folders.config, folders.state, folders.servers)
    for nearest in dict.fromkeys(next(one for one in (want, *want.parents) if os.path.exists(one)) for want in wanted):
        if not os.access(nearest, os.W_OK | os.X_OK):
            yield Finding(
                Level.PROBLEM, "folder", f"'{nearest}' cannot be written.", f"chmod u+rwx {quote(str(nearest))}"
            )
    for path in (folders.book, *folders.servers.glob("*/run.json")):
        if os.path.exists(path) and not os.access(path, os.R_OK):
            yield Finding(Level.PROBLEM, "file", f"'{path}' cannot be read.", f"chmod u+rw {quote(str(path))}")
    nearest = next(one for one in (folders.state, *folders.state.parents) if os.path.exists(one))
    free = shutil.disk_usage(nearest).free
    if free < _SCARCE_BYTES:
        text = f"only {free / 2**20:.0f} MiB are free for logs in '{nearest}'."
        yield Finding(Level.WARNING, "disk", text, "Free some space; on a full disk, lines are missing in the logs.")


def _shared_ports(found: list[Status]) -> Iterator[Finding]:
    names: dict[tuple[str, int], list[str]] = {}
    for status in found:
        if status.record.port is not None:
            names.setdefault((status.record.host, status.record.port), []).append(status.record.name)
    for (_, port), sharing in names.items():
        if len(sharing) > 1:
            yield Finding(
                Level.WARNING,
                ", ".join(sharing),
                f"are all registered with port {port}, so only one of them can run.",
                f"mxext server edit {sharing[-1]} --unset port",
            )


def _server(status: Status, folders: Folders, holders: Mapping[int, str]) -> Iterator[Finding]:
    """Finds what is wrong with one server; `holders` says which of ours has a port."""
    name, record = status.record.name, status.record
    if status.trouble:
        port = record.known_port
        who = "" if port is None else f" Its port {port} is now used by {ports.owner(port)}."
        yield Finding(
            Level.PROBLEM,
            name,
            f"{status.trouble}{who}",
            f"End it if it runs, then rm {quote(str(folders.run_file(name)))}",
        )
    elif record.is_remote and not status.is_ready:
        problem = status.probe.problem if status.probe is not None else "it was not asked"
        yield Finding(
            Level.PROBLEM, name, f"{problem}.", "Ask whoever runs it, or correct it with 'mxext server edit'."
        )
    elif status.run is not None and status.word == "died":
        yield Finding(
            Level.PROBLEM, name, f"it {status.run.how_it_ended()}; its process {status.run.server.pid} is gone.",
            f"See 'mxext server logs {name}', then 'mxext server start {name}'; 'mxext server stop {name}' forgets it.",
        )  # fmt: skip
    elif status.is_alive and status.word == "not answering":
        yield Finding(
            Level.PROBLEM, name, "its process runs, but does not answer.",
            f"See 'mxext server logs {name}', then 'mxext server restart {name}'.",
        )  # fmt: skip
    elif status.word == "not ready" and status.probe is not None:
        yield Finding(
            Level.PROBLEM,
            name,
            f"{status.probe.problem}.",
            f"See 'mxext server logs {name}'; if it needs a key, export it.",
        )
    if status.run is not None and status.is_alive and not status.run.keeper.is_alive():
        yield Finding(
            Level.WARNING, name, "the process that writes its log was ended, so nothing is logged.",
            f"mxext server restart {name}",
        )  # fmt: skip
    if not record.is_remote:
        yield from _start_of(status, holders)
        yield from _logs_of(name, folders)


def _start_of(status: Status, holders: Mapping[int, str]) -> Iterator[Finding]:
    """Finds what would prevent a server's start."""
    record = status.record
    found = look(BACKENDS[record.kind])
    edit = f"mxext server edit {record.name}"
    if not found.is_installed:
        yield Finding(
            Level.PROBLEM, record.name, f"{record.kind} {found.text}", f"Install it, or {edit} --backend native"
        )
    elif record.kind != NATIVE:
        yield Finding(
            Level.WARNING, record.name, f"this version does not start {record.kind} itself ({found.text})",
            f"mxext server start {record.name} prints the command line to type instead.",
        )  # fmt: skip
    if record.model_path is not None and record.model_path.startswith("/") and not os.path.exists(record.model_path):
        yield Finding(
            Level.PROBLEM, record.name, f"there is no model at '{record.model_path}'.", f"{edit} --model-path MODEL"
        )
    if not status.is_alive and not status.trouble:
        yield from _port_of(record, edit, holders)


def _port_of(record: ServerRecord, edit: str, holders: Mapping[int, str]) -> Iterator[Finding]:
    try:
        is_free = record.port is None or ports.is_free(record.host, record.port)
    except ConfigError as error:
        yield Finding(Level.PROBLEM, record.name, str(error), f"{edit} --host 127.0.0.1, or {edit} --port N")
        return
    if record.port is not None and not is_free:
        holder = holders.get(record.port)
        owner = f"the server '{holder}'" if holder is not None else ports.owner(record.port)
        yield Finding(
            Level.PROBLEM, record.name, f"its port {record.port} is taken by {owner}.",
            f"End that one, or {edit} --port N",
        )  # fmt: skip


def _logs_of(name: str, folders: Folders) -> Iterator[Finding]:
    files = logs.log_files(folders.log(name))
    size = sum(file.stat().st_size for file in files)
    if size > _LARGE_LOGS_BYTES:
        remedy = f"rm {quote(str(folders.log(name)))}.*"
        yield Finding(Level.WARNING, name, f"its logs take {size / 2**20:.0f} MiB.", remedy)


def _left_behind(folders: Folders, names: set[str]) -> Iterator[Finding]:
    if not folders.servers.is_dir():
        return
    for folder in sorted(folders.servers.iterdir()):
        if folder.name not in names:
            yield Finding(
                Level.WARNING, folder.name, f"'{folder}' belongs to no registered server.",
                f"If nothing in it is needed and its server does not run, rm -r {quote(str(folder))}",
            )  # fmt: skip
