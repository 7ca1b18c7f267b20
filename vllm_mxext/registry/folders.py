"""`Folders`: where the registry keeps its file, and the state and logs of its servers (XDG base directories)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vllm_mxext.errors import ConfigError

PRIVATE = 0o700
"""Mode of folders: logs may hold what users asked."""


@dataclass(frozen=True, slots=True)
class Folders:
    """The user's folders.

    Attributes:
        config: of the registry's file.
        state: of what servers leave behind: process ids and logs.
    """

    config: Path
    state: Path

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> Folders:
        """Finds them.

        Raises:
            ConfigError: there is no home folder, and no variable names another one.
        """
        return cls(
            _base(environ, "XDG_CONFIG_HOME", ".config") / "vllm_mxext",
            _base(environ, "XDG_STATE_HOME", ".local/state") / "vllm_mxext",
        )

    @property
    def book(self) -> Path:
        """File of all registered servers."""
        return self.config / "servers.json"

    @property
    def servers(self) -> Path:
        """Folder with one folder per server."""
        return self.state / "servers"

    def of(self, name: str) -> Path:
        """Returns the folder of one server."""
        return self.servers / name

    def log(self, name: str) -> Path:
        """Returns the log of one server."""
        return self.of(name) / "server.log"

    def run_file(self, name: str) -> Path:
        """Returns the file that says which process is one server."""
        return self.of(name) / "run.json"


def make_private(folder: Path) -> None:
    """Makes a folder that only its owner can read, with those above it."""
    folder.mkdir(mode=PRIVATE, parents=True, exist_ok=True)


def _base(environ: Mapping[str, str], variable: str, default: str) -> Path:
    given = environ.get(variable, "")
    if os.path.isabs(given):  # the specification wants relative ones ignored
        return Path(given)
    try:
        return Path.home() / default
    except RuntimeError:
        raise ConfigError(f"There is no home folder; set {variable} to a folder that you may write.") from None
