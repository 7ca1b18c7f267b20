"""`Folders`: where the registry's file and its servers' state and logs are (XDG base directories)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vllm_mxext.config.machine import config_folder, state_folder
from vllm_mxext.errors import ConfigError

PRIVATE = 0o700
"""Mode of new folders: logs may contain prompts."""


@dataclass(frozen=True, slots=True)
class Folders:
    """The user's folders.

    Attributes:
        config: where the registry's file is.
        state: where locks, and the process ids and logs of servers are.
    """

    config: Path
    state: Path

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> Folders:
        """Returns the folders of the user with this environment.

        Raises:
            ConfigError: there is no home folder, and no variable names another one.
        """
        config, state = config_folder(environ), state_folder(environ)
        if config is None or state is None:
            raise ConfigError(
                "There is no home folder; set XDG_CONFIG_HOME and XDG_STATE_HOME to folders that you can write to."
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
        """Returns the file that records which process a server is."""
        return self.of(name) / "run.json"


def make_private(folder: Path) -> None:
    """Creates a folder that only its owner can access, and its parents."""
    folder.mkdir(mode=PRIVATE, parents=True, exist_ok=True)
