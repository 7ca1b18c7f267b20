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

from vllm_mxext.cli.commands import group_parser, without_command
from vllm_mxext.cli.server_commands.answer import Answer
from vllm_mxext.cli.server_commands.parsing import COMMANDS, ELSEWHERE, EXIT_CODES, command_parser
from vllm_mxext.config.parser import Parser
from vllm_mxext.errors import ConfigError, MxError
from vllm_mxext.registry.errors import FAILED, INTERRUPTED, USAGE, RegistryError, StartFailedError
from vllm_mxext.registry.folders import Folders
from vllm_mxext.registry.servers import Servers

_PACKAGE = "vllm_mxext.cli.server_commands"

_GOES_ON = "Interrupted; if the server had been started already, it goes on: end it with 'mxext server stop'."
_INTERRUPTED = {
    "start": _GOES_ON,
    "restart": _GOES_ON,
    "stop": "Interrupted; the server still finishes its requests and ends, but is not killed if it does not.",
}
"""What Ctrl-C leaves behind, by command."""


def run(argv: Sequence[str]) -> int:
    """Runs one command; returns the exit code."""
    command = COMMANDS.get(argv[0]) if argv else None
    try:
        if command is None:
            without_command(_parser(), argv, COMMANDS, ELSEWHERE)
            return USAGE
        arguments = command_parser(argv[0]).parse_args(argv[1:])
        servers = Servers(Folders.from_environ(os.environ), os.environ)
        module = importlib.import_module(f"{_PACKAGE}.{command.module}")
        answer: Answer = getattr(module, command.function)(servers, arguments)
    except (MxError, KeyboardInterrupt) as error:
        return _failed(error, argv[0] if argv else "", is_json="--json" in argv)
    return answer.print(is_json=arguments.json)


def _failed(error: MxError | KeyboardInterrupt, command: str, *, is_json: bool) -> int:
    text = str(error) if isinstance(error, MxError) else _INTERRUPTED.get(command, "Interrupted.")
    code, cause = _code_and_cause(error)
    if is_json:
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


def _parser() -> Parser:
    return group_parser(
        "mxext server",
        "mxext server COMMAND [NAME] [flags]",
        "Named servers: registered once, then started in the background, watched and stopped.",
        f"Every command has --help and --json.\n\n{EXIT_CODES}",
        COMMANDS,
    )
