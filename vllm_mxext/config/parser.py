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

    def error(self, message: str) -> NoReturn:
        """Raises.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(f"{message[:1].upper()}{message[1:]}; see {self.prog} --help.")
