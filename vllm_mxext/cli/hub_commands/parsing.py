"""Parsers of the commands of `mxext hub`; what they do not know is left for the flags of `mxext serve`."""

from __future__ import annotations

from pathlib import Path

from vllm_mxext.config.parser import Parser
from vllm_mxext.hub.exit_codes import MEANINGS

EXIT_CODES = "exit codes:\n" + "\n".join(f"  {code:>3}  {meaning}" for code, meaning in MEANINGS)


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
