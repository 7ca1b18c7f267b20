"""`Run`: the process of a server's last start, as its keeper recorded it."""

from __future__ import annotations

import json
import signal
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from vllm_mxext.registry.errors import RegistryError
from vllm_mxext.registry.files import write_json
from vllm_mxext.registry.processes import Identity

SCHEMA_VERSION = 1

KEEPER_S = 30.0
"""How long a keeper may take, on a busy machine, to write down its server's last words and end."""


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a server.

    Attributes:
        server: its process.
        keeper: the process that writes its log.
        port: the port that it was told to listen on.
        host: the address that it was told to listen on.
        command: its program and flags.
        started_at: when it started, in Unix time.
        ended_at: when it ended; None if it runs, or nobody saw its end.
        exit_code: how it ended; negative is the number of a signal; None as for `ended_at`.
    """

    server: Identity
    keeper: Identity
    port: int
    host: str
    command: tuple[str, ...]
    started_at: float
    ended_at: float | None = None
    exit_code: int | None = None

    def write(self, path: Path) -> None:
        """Writes it to a file.

        Raises:
            RegistryError: the file cannot be written.
        """
        write_json(path, {"schema_version": SCHEMA_VERSION, **asdict(self)})

    def ended(self, at: float, exit_code: int) -> Run:
        """Returns the run with its end filled in."""
        return replace(self, ended_at=at, exit_code=exit_code)

    def how_it_ended(self) -> str:
        """Returns how it ended, in words."""
        if self.exit_code is None:
            return "was lost (it was killed together with its keeper, or the machine was restarted)"
        return describe_exit(self.exit_code)


def read_run(path: Path) -> Run | None:
    """Reads a run; returns None if the server was never started, or was stopped.

    Raises:
        RegistryError: the file is broken.
    """
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
        if content["schema_version"] > SCHEMA_VERSION:
            raise RegistryError(f"'{path}' was written by a newer version; update vllm_mxext.")
        return Run(
            server=Identity(**content["server"]),
            keeper=Identity(**content["keeper"]),
            port=int(content["port"]),
            host=str(content["host"]),
            command=tuple(content["command"]),
            started_at=float(content["started_at"]),
            ended_at=content["ended_at"],
            exit_code=content["exit_code"],
        )
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RegistryError(f"'{path}' cannot be read: {error.strerror}.") from None
    except (ValueError, LookupError, TypeError, RecursionError):
        raise RegistryError(
            f"'{path}', which records the server's process, is damaged; 'mxext server doctor' says which process "
            "uses its port: end that one, then remove the file."
        ) from None


def describe_exit(code: int) -> str:
    """Returns how a process ended, in words."""
    if code >= 0:
        return f"ended with code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"
