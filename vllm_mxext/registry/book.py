"""`Book`: the file of all registered servers; locked while it changes, never overwritten if broken."""

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
    """All registered servers.

    Args:
        folders: where the file is.
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
            UnknownServerError: there is none of this name.
        """
        return find(self.read(), name)

    @contextlib.contextmanager
    def change(self) -> Iterator[Records]:
        """Yields the servers to be changed in place; they are written at the end, unless there was an error.

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
    """Returns one of some servers.

    Raises:
        UnknownServerError: there is none of this name.
    """
    if name in records:
        return records[name]
    if not records:
        raise UnknownServerError(
            f"No server '{name}' is registered, and no other; begin with 'mxext server add {name}'."
        )
    from vllm_mxext.config.sources import did_you_mean  # noqa: PLC0415 - slow to import, and rarely needed

    guess = did_you_mean(name, records)
    if "?" not in guess:
        guess = "; there are " + ", ".join(sorted(records)) + "."
    raise UnknownServerError(f"No server '{name}' is registered{guess}")


def as_document(records: Mapping[str, ServerRecord]) -> dict[str, Any]:
    """Returns servers as plain data, as the file and exports have them."""
    return {
        "schema_version": SCHEMA_VERSION,
        "servers": {name: records[name].as_mapping() for name in sorted(records)},
    }


def parse_servers(text: str, path: Path | str, kind: str = "registry's file") -> Records:
    """Reads a registry's file or an export.

    Args:
        text: its content.
        path: of it, for errors.
        kind: what it is, for errors.

    Raises:
        BookError: it is broken, or of a newer version.
    """
    mend = "it was left as it is. Repair it by hand, or move it away to begin anew."
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BookError(f"The {kind} '{path}' is not valid JSON ({error}); {mend}") from None
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
            f"The {kind} '{path}' must hold 'schema_version': {SCHEMA_VERSION} and an object 'servers'; {mend}"
        )
    try:
        return {name: read_record(name, servers[name], "") for name in sorted(servers)}
    except ConfigError as error:
        raise BookError(f"The {kind} '{path}' has a wrong entry: {error} The file {mend[3:]}") from None
