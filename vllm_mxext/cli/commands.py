"""Groups of commands: the help that lists them, and the error for a name that does not exist."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from vllm_mxext.config.parser import Parser
from vllm_mxext.errors import ConfigError


class Summarized(Protocol):
    """A command of any group."""

    @property
    def summary(self) -> str:
        """What it does, a phrase."""


class Command(NamedTuple):
    """A command of a group such as `mxext hub`; a function in a module that only this command imports."""

    module: str
    function: str
    summary: str


def group_parser(
    prog: str, usage: str | None, description: str, epilog: str, commands: Mapping[str, Summarized]
) -> Parser:
    """Returns the parser of a group, whose help lists its commands.

    Args:
        prog: the group, as it is typed.
        usage: what a command line looks like; None = argparse's.
        description: what the group is for.
        epilog: text after the list.
        commands: name -> command.
    """
    width = max(map(len, commands))
    listed = "\n".join(f"  {name:<{width}}  {command.summary}" for name, command in commands.items())
    parser = Parser(prog=prog, usage=usage, description=f"{description}\n\ncommands:\n{listed}", epilog=epilog)
    parser.add_argument("command", nargs="?", metavar="COMMAND", help="one of the above")
    return parser


def without_command(
    parser: Parser, argv: Sequence[str], commands: Mapping[str, Summarized], elsewhere: Mapping[str, str] | None = None
) -> None:
    """Prints the help of a group, for a command line that names none of its commands.

    Args:
        parser: the group's.
        argv: the command line after the group's name.
        commands: name -> command.
        elsewhere: name of a command in other tools -> what is typed here.

    Raises:
        ConfigError: it names an unknown command, or has an unknown flag.
    """
    name = parser.parse_known_args(argv)[0].command
    if elsewhere and name in elsewhere:
        raise ConfigError(f"There is no command '{parser.prog} {name}'; here it is '{elsewhere[name]}'.")
    if name is not None:
        from vllm_mxext.config.sources import did_you_mean  # noqa: PLC0415 - only after a mistake

        raise ConfigError(f"There is no command '{parser.prog} {name}'{did_you_mean(name, commands)}")
    parser.parse_args(argv)
    parser.print_help()
