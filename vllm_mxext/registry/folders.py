"""`Folders`: where the registry keeps its file, and the state and logs of its servers (XDG base directories)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vllm_mxext.config.machine import config_folder, state_folder
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
        config, state = config_folder(environ), state_folder(environ)
        if config is None or state is None:
            raise ConfigError(
                "There is no home folder; set XDG_CONFIG_HOME and XDG_STATE_HOME to folders that you may write."
            )
        return cls(config, state)

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
