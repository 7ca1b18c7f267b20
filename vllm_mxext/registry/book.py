"""`Book`: the registry's file with all servers; locked while it changes, never overwritten if it is broken."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vllm_mxext.errors import ConfigError
from vllm_mxext.registry.errors import BookError, UnknownServerError
from vllm_mxext.registry.files import locked, write_json
from vllm_mxext.registry.folders import Folders
from vllm_mxext.registry.record import ServerRecord, read_record

SCHEMA_VERSION = 1

Records = dict[str, ServerRecord]


class Book:
    """The registry's file.

    Args:
        folders: the user's folders, one of which holds it.
    """

    def __init__(self, folders: Folders) -> None:
        self.path = folders.book
        self._lock = folders.state / "servers.lock"

    def read(self) -> Records:
        """Returns the servers by name, in the order of names.

        Raises:
            BookError: the file is broken, or of a newer version; it was left as it is.
        """
        try:
            text = self.path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return {}
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            raise BookError(
                f"The registry's file '{self.path}' cannot be read: {reason}; it was left as it is."
            ) from None
        return parse_servers(text, self.path)

    def get(self, name: str) -> ServerRecord:
        """Returns one server.

        Raises:
            BookError: the file is broken.
            UnknownServerError: no server has this name.
        """
        return find(self.read(), name)

    @contextlib.contextmanager
    def change(self) -> Iterator[Records]:
        """Yields the servers for changing in place, under a lock; writes them at the end, unless there was an error.

        Raises:
            BookError: the file is broken, or cannot be written.
        """
        with locked(self._lock):
            records = self.read()
            before = dict(records)
            yield records
            if records != before:
                write_json(self.path, as_document(records))


def find(records: Mapping[str, ServerRecord], name: str) -> ServerRecord:
    """Returns the server of this name.

    Raises:
        UnknownServerError: no server has this name; the message names the nearest one.
    """
    if name in records:
        return records[name]
    if not records:
        raise UnknownServerError(
            f"No server '{name}' is registered, nor any other; add one with 'mxext server add {name}'."
        )
    from vllm_mxext.config.sources import did_you_mean  # noqa: PLC0415 - slow to import, and rarely needed

    guess = did_you_mean(name, records)
    if "?" not in guess:
        guess = "; there are " + ", ".join(sorted(records)) + "."
    raise UnknownServerError(f"No server '{name}' is registered{guess}")


def as_document(records: Mapping[str, ServerRecord]) -> dict[str, Any]:
    """Returns servers as plain data, in the form of the file and of exports."""
    return {
        "schema_version": SCHEMA_VERSION,
        "servers": {name: records[name].as_mapping() for name in sorted(records)},
    }


def parse_servers(text: str, path: Path | str, kind: str = "registry's file") -> Records:
    """Reads a registry's file or an export.

    Args:
        text: its content.
        path: its path, for error messages.
        kind: what to call it in error messages.

    Raises:
        BookError: it is broken, or of a newer version.
    """
    remedy = "it was left as it is. Repair it by hand, or move it away to start over."
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BookError(f"The {kind} '{path}' is not valid JSON ({error}); {remedy}") from None
    servers = document.get("servers") if isinstance(document, dict) else None
    version = document.get("schema_version") if isinstance(document, dict) else None
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise BookError(
            f"The {kind} '{path}' was written by a newer version (schema {version}, this one reads "
            f"{SCHEMA_VERSION}); it was left as it is. Update vllm_mxext."
        )
    if (
        version != SCHEMA_VERSION
        or not isinstance(servers, dict)
        or not all(isinstance(settings, dict) for settings in servers.values())
    ):
        raise BookError(
            f"The {kind} '{path}' must hold 'schema_version': {SCHEMA_VERSION} and an object 'servers'; {remedy}"
        )
    try:
        return {name: read_record(name, servers[name], "") for name in sorted(servers)}
    except ConfigError as error:
        raise BookError(f"The {kind} '{path}' has a wrong entry ({str(error).rstrip('.')}); {remedy}") from None
