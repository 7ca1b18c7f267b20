"""The console script `mxext`: finds the command and imports only its module.

Exit codes: 0 = done; 1 = it was started and failed; 2 = wrong arguments, file, variable or checkpoint;
130 = interrupted with Ctrl-C. `mxext lora` exits with 3 if no server answers; `mxext hub` and `mxext server` have
a code per cause; `mxext bench serve` has 3 for missed objectives and 4 for a measurement that is not valid.
"""

from __future__ import annotations

import errno
import importlib
import io
import os
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

from vllm_mxext.cli.commands import group_parser, without_command
from vllm_mxext.errors import ConfigError, MxError

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130

_FULL = (errno.ENOSPC, errno.EDQUOT)

_ELSEWHERE = {
    "run": "mxext chat", "generate": "mxext complete", "start": "mxext server start", "stop": "mxext server stop",
    "ps": "mxext server ps", "status": "mxext server status", "logs": "mxext server logs", "pull": "mxext hub pull",
    "download": "mxext hub pull", "list": "mxext hub list", "ls": "mxext hub list", "rm": "mxext hub rm",
    "version": "mxext --version",
}  # fmt: skip
"""What other tools call a command."""


class Command(NamedTuple):
    """A sub-command; `module.run(argv)` returns its exit code."""

    module: str
    summary: str


COMMANDS = {
    "serve": Command("vllm_mxext.cli.serve", "serve a model through an OpenAI-compatible API"),
    "hub": Command("vllm_mxext.cli.hub", "choose, explain, download, verify and move models"),
    "server": Command("vllm_mxext.cli.server", "register servers under names; start, watch and stop them"),
    "chat": Command("vllm_mxext.cli.chat", "talk to a running server"),
    "complete": Command("vllm_mxext.cli.complete", "send one prompt to a running server"),
    "lora": Command("vllm_mxext.cli.lora", "load, list, try and unload adapters on a running server"),
    "parse": Command("vllm_mxext.cli.parse", "split a model's text into reasoning, tool calls and answer"),
    "bench": Command("vllm_mxext.cli.bench", "measure the engine, a running server, start-up or kernels"),
    "fit": Command("vllm_mxext.cli.fit", "print a model's memory plan and kernels without loading it"),
    "collect-env": Command("vllm_mxext.cli.collect_env", "print versions, CPU, kernels and memory"),
    "completion": Command("vllm_mxext.cli.completion", "print a completion script for bash, zsh or fish"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line and returns the exit code.

    Args:
        argv: arguments after the program's name; those of the process by default.
    """
    return with_exit_code(lambda: _run(list(sys.argv[1:] if argv is None else argv)))


def with_exit_code(action: Callable[[], int]) -> int:
    """Runs a command and returns its exit code; prints errors and returns theirs."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # do not fail for characters that the terminal cannot show
    try:
        try:
            return action()
        finally:
            if sys.stdout is not None:  # it is if the shell has closed it
                sys.stdout.flush()  # here, where a failure can be told
    except ConfigError as error:
        print(f"mxext: error: {error}", file=sys.stderr)
        return EXIT_USAGE
    except MxError as error:
        print(f"mxext: {error}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of our output has gone, as in `mxext ... | head`.
        _give_up_output()
        return EXIT_FAILED
    except OSError as error:
        if error.errno not in _FULL:
            raise
        where = f" '{error.filename}'" if error.filename else ""
        print(f"mxext: The output{where} cannot be written: {error.strerror}; make room there.", file=sys.stderr)
        _give_up_output()
        return EXIT_FAILED


def _give_up_output() -> None:
    """Leaves what is still to be written: Python would try again at the end, and print that it failed."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        with open(os.devnull, "w") as nothing:
            os.dup2(nothing.fileno(), sys.stdout.fileno())
    sys.stdout = None


def _run(arguments: list[str]) -> int:
    if arguments and arguments[0] in COMMANDS:
        module = importlib.import_module(COMMANDS[arguments[0]].module)
        code: int = module.run(arguments[1:])
        return code
    return _without_command(arguments)


def _without_command(arguments: Sequence[str]) -> int:
    parser = group_parser(
        "mxext",
        None,
        "An LLM inference server with its own engine.",
        "'mxext COMMAND --help' describes a command. Exit codes: 0 done, 1 failed, 2 wrong usage, 130 Ctrl-C.",
        COMMANDS,
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    if "--version" in arguments:
        print(_version())
        return 0
    without_command(parser, arguments, COMMANDS, _ELSEWHERE)
    return EXIT_USAGE


def _version() -> str:
    import importlib.metadata  # noqa: PLC0415 - slow to import, and only needed here

    try:
        return importlib.metadata.version("vllm_mxext")
    except importlib.metadata.PackageNotFoundError:
        return "unknown (run from a source folder that is not installed)"
