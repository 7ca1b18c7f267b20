"""`mxext server`: finds the command, imports only its module, and turns errors into exit codes.

The codes and what they mean are `vllm_mxext.registry.errors.MEANINGS`, which the help prints.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from vllm_mxext.cli.hub_commands.parsing import Parser
from vllm_mxext.cli.server_commands.answer import Answer
from vllm_mxext.cli.server_commands.parsing import COMMANDS, EXIT_CODES, command_parser
from vllm_mxext.config.sources import did_you_mean
from vllm_mxext.errors import ConfigError, MxError
from vllm_mxext.registry.errors import FAILED, INTERRUPTED, USAGE, RegistryError, StartFailedError
from vllm_mxext.registry.folders import Folders
from vllm_mxext.registry.servers import Servers

_PACKAGE = "vllm_mxext.cli.server_commands"


def run(argv: Sequence[str]) -> int:
    """Runs one command; returns the exit code."""
    command = COMMANDS.get(argv[0]) if argv else None
    try:
        if command is None:
            return _without_command(argv)
        arguments = command_parser(argv[0]).parse_args(argv[1:])
        servers = Servers(Folders.from_environ(os.environ), os.environ)
        module = importlib.import_module(f"{_PACKAGE}.{command.module}")
        answer: Answer = getattr(module, command.function)(servers, arguments)
    except (MxError, KeyboardInterrupt) as error:
        return _failed(error, argv)
    return answer.print(is_json=arguments.json)


def _failed(error: MxError | KeyboardInterrupt, argv: Sequence[str]) -> int:
    goes_on = "; the server that was being started goes on" if argv[0] in ("start", "restart") else ""
    text = str(error) if isinstance(error, MxError) else f"Interrupted{goes_on}."
    code, cause = _code_and_cause(error)
    if "--json" in argv:
        content: dict[str, Any] = {"cause": cause, "message": text}
        if isinstance(error, StartFailedError):
            content |= {"log_tail": list(error.log_tail), "hint": error.hint}
        print(json.dumps({"error": content}, ensure_ascii=False, indent=2))
        return code
    print(f"mxext: {'error: ' if code == USAGE else ''}{text}", file=sys.stderr)
    if isinstance(error, StartFailedError):
        for line in error.log_tail:
            print(f"  | {line}", file=sys.stderr)
        if error.hint:
            print(f"-> {error.hint}", file=sys.stderr)
    return code


def _code_and_cause(error: MxError | KeyboardInterrupt) -> tuple[int, str]:
    if isinstance(error, RegistryError):
        return error.exit_code, error.cause
    if isinstance(error, ConfigError):
        return USAGE, "usage"
    return (INTERRUPTED, "interrupted") if isinstance(error, KeyboardInterrupt) else (FAILED, "failed")


def _without_command(argv: Sequence[str]) -> int:
    width = max(map(len, COMMANDS))
    parser = Parser(
        prog="mxext server",
        usage="mxext server COMMAND [NAME] [flags]",
        description="Servers under names: registered once, then started in the background, watched and stopped."
        "\n\ncommands:\n" + "\n".join(f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()),
        epilog=f"Every command has --help and --json.\n\n{EXIT_CODES}",
    )
    parser.add_argument("command", nargs="?", metavar="COMMAND", help="one of the above")
    name = parser.parse_known_args(argv)[0].command
    if name is not None:
        raise ConfigError(f"There is no command 'mxext server {name}'{did_you_mean(name, COMMANDS)}")
    parser.print_help()
    return USAGE
