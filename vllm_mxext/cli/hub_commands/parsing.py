"""`Parser`: argparse for the commands of `mxext hub`; what it does not know is left for the flags of `mxext serve`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NoReturn

from vllm_mxext.config.sources import did_you_mean
from vllm_mxext.errors import ConfigError
from vllm_mxext.hub.exit_codes import MEANINGS

EXIT_CODES = "exit codes:\n" + "\n".join(f"  {code:>3}  {meaning}" for code, meaning in MEANINGS)


class Parser(argparse.ArgumentParser):
    """argparse without abbreviations that raises `ConfigError` instead of leaving the process.

    Args:
        **facts: those of `argparse.ArgumentParser`.
    """

    def __init__(self, **facts: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **facts)

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
            raise ConfigError(f"Unknown flag {flag}{did_you_mean(flag, self._option_string_actions)}")
        raise ConfigError(f"'{unknown[0]}' is one argument too many; see {self.prog} --help.")

    def error(self, message: str) -> NoReturn:
        """Raises.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(f"{message[:1].upper()}{message[1:]}; see {self.prog} --help.")


def command_parser(name: str, summary: str, positional: str = "[MODEL]") -> Parser:
    """Returns the parser of one command, with the flags that all have.

    Args:
        name: of the command.
        summary: what it does, a sentence.
        positional: what it is given besides flags, for the usage.
    """
    parser = Parser(
        prog=f"mxext hub {name}",
        usage=f"mxext hub {name} {positional} [flags]".replace("  ", " "),
        description=summary,
        epilog="All flags of 'mxext serve' are taken too, from the command line, the environment and --config; see "
        f"'mxext serve --help'.\n\n{EXIT_CODES}",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def add_choice(parser: Parser) -> None:
    """Adds the flags that say for which machine and by what a profile is chosen."""
    parser.add_argument("--hardware", type=Path, metavar="FILE", help="choose for the machine of this file instead")
    parser.add_argument("--goal", metavar="GOAL", help="the same as --selection-goal: latency, throughput or memory")
    parser.add_argument("--profile", metavar="PROFILE", help="the same as --model-profile: name, alias or id")


def add_events(parser: Parser) -> None:
    """Adds the flags that say how progress is shown."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--json-events", action="store_true", help="print progress as JSON on standard error, an object per line"
    )
    group.add_argument("--quiet", action="store_true", help="print no progress")
