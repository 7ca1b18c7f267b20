"""`Parser`: argparse as all command lines here use it."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

from vllm_mxext.errors import ConfigError


class Parser(argparse.ArgumentParser):
    """argparse without abbreviations that raises `ConfigError` instead of leaving the process.

    Args:
        **facts: those of `argparse.ArgumentParser`; descriptions keep their lines unless a formatter is given.
    """

    def __init__(self, **facts: Any) -> None:
        super().__init__(**{"allow_abbrev": False, "formatter_class": argparse.RawDescriptionHelpFormatter, **facts})

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parses a command line that nothing else reads.

        Raises:
            ConfigError: it is wrong, or has something that the command does not know.
        """
        arguments, unknown = self.parse_known_args(args, namespace)
        if not unknown:
            return arguments
        flag = unknown[0].partition("=")[0]
        if flag.startswith("-"):
            from vllm_mxext.config.sources import did_you_mean  # noqa: PLC0415 - only after a mistake

            raise ConfigError(f"Unknown flag {flag}{did_you_mean(flag, self._option_string_actions)}")
        raise ConfigError(f"'{unknown[0]}' is one argument too many; see {self.prog} --help.")

    def error(self, message: str) -> NoReturn:
        """Raises.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(f"{message[:1].upper()}{message[1:]}; see {self.prog} --help.")
