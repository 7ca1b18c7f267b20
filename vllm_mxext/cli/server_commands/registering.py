"""`mxext server add`, `edit` and `rm`: changes to the registry."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from vllm_mxext.cli.server_commands.answer import Answer
from vllm_mxext.cli.server_commands.parsing import given_settings, unset_settings
from vllm_mxext.errors import ConfigError
from vllm_mxext.registry.backends import BACKENDS, check_settings, look
from vllm_mxext.registry.book import find
from vllm_mxext.registry.errors import NameTakenError, RegistryError
from vllm_mxext.registry.record import REMOTE_SETTINGS, SELF_HOSTED, ServerRecord, read_record
from vllm_mxext.registry.runs import read_run
from vllm_mxext.registry.servers import Servers

_LOCAL_HOSTS = ("127.0.0.1", "localhost", "::1")


def add(servers: Servers, arguments: argparse.Namespace) -> Answer:
    """Registers a server; if it exists, and neither address nor model is given, changes its settings instead."""
    name, settings = arguments.name, given_settings(arguments)
    with servers.changing(name) as records:
        known = records.get(name)
        is_change = known is not None and not arguments.replace and not {"endpoint_url", "model_path"} & set(settings)
        if known is not None and not arguments.replace and not (is_change and settings):
            raise NameTakenError(
                f"A server '{name}' is registered already; change it with 'mxext server edit {name}', or repeat 'add' "
                "with --replace."
            )
        before = known.as_mapping() if known is not None and is_change else {}
        records[name] = record = _checked(name, {**before, **settings})
    done = "Changed" if is_change else "Registered"
    return _registered(servers, record, f"{done} '{name}': {_summary(record)}.")


def edit(servers: Servers, arguments: argparse.Namespace) -> Answer:
    """Changes settings by flags, or in an editor."""
    name, settings, unset = arguments.name, given_settings(arguments), unset_settings(arguments)
    both = sorted(set(settings) & set(unset))
    if both:
        raise ConfigError(f"{both[0].replace('_', '-')} is both set and unset; do one of them.")
    known = servers.book.get(name)
    before, edited = known, None if settings or unset else _edited(known)
    with servers.changing(name) as records:
        known = find(records, name)
        if edited is not None and known != before:
            raise RegistryError(
                f"'{name}' was changed by another command meanwhile; nothing was changed. Edit it again."
            )
        content = edited if edited is not None else {**known.as_mapping(), **settings}
        kept = {key: value for key, value in content.items() if key not in unset}
        if settings.get("endpoint_url", SELF_HOSTED) != SELF_HOSTED:  # a remote server is not started here
            kept = {key: value for key, value in kept.items() if key in REMOTE_SETTINGS or key in settings}
        records[name] = record = _checked(name, kept)
    return _registered(servers, record, f"Changed '{name}': {_summary(record)}.")


def rm(servers: Servers, arguments: argparse.Namespace) -> Answer:
    """Removes a server from the registry."""
    servers.remove(arguments.name, force=arguments.force)
    return Answer({"name": arguments.name, "removed": True}, f"Removed '{arguments.name}' and its logs.")


def _checked(name: str, settings: Mapping[str, Any]) -> ServerRecord:
    record = read_record(name, settings)
    if not record.is_remote and record.backend is None:
        record = replace(record, backend=record.kind)
    check_settings(record)
    return record


def _summary(record: ServerRecord) -> str:
    if record.is_remote:
        return f"the server at {record.endpoint_url}"
    return f"{record.model_path or 'the built-in model'} on {record.kind}"


def _registered(servers: Servers, record: ServerRecord, text: str) -> Answer:
    notes = _notes(servers, record)
    value = {"name": record.name, **record.as_mapping(), "notes": notes}
    return Answer(value, "\n".join([text, *(f"note: {note}" for note in notes)]))


def _notes(servers: Servers, record: ServerRecord) -> list[str]:
    """Returns warnings that are better given now than by a failed start."""
    if record.is_remote:
        return [f"check that it answers with 'mxext server status {record.name}'."]
    notes = []
    found = look(BACKENDS[record.kind])
    if not found.is_installed:
        notes.append(f"{record.kind} {found.text}")
    if record.host not in _LOCAL_HOSTS and record.api_key_env is None:
        notes.append(f"with --host {record.host} anyone who can reach this machine can use it; set --api-key-env.")
    if record.model_path is not None and record.model_path.startswith("/") and not os.path.exists(record.model_path):
        notes.append(f"there is nothing at '{record.model_path}' yet.")
    run = read_run(servers.folders.run_file(record.name))
    if run is not None and run.server.is_alive():
        notes.append(f"it runs with its old settings until 'mxext server restart {record.name}'.")
    return notes


def _edited(record: ServerRecord) -> dict[str, Any]:
    """Returns the settings after the user has edited them."""
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR")
    if not editor or not sys.stdin.isatty():
        raise ConfigError(
            f"What is to change? Give flags, as in 'mxext server edit {record.name} --max-model-len 4k'"
            + ("." if editor else ", or set EDITOR.")
        )
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"{record.name}.json"
        file.write_text(json.dumps(record.as_mapping(), ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
        try:
            code = subprocess.run([*shlex.split(editor), str(file)], check=False).returncode
        except (OSError, ValueError) as error:
            raise ConfigError(f"The editor '{editor}' cannot be started ({error}); set VISUAL or EDITOR.") from None
        if code != 0:
            raise RegistryError(f"The editor '{editor}' ended with code {code}; nothing was changed.")
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ConfigError(f"The edited file is not valid JSON ({error}); nothing was changed.") from None
    if not isinstance(content, dict):
        raise ConfigError("The edited file is not a JSON object; nothing was changed.")
    return content
