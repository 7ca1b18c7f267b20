"""The command lines of `mxext server`: a parser for each command."""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Callable
from typing import Any

from vllm_mxext.cli.commands import Command
from vllm_mxext.config.parser import Parser
from vllm_mxext.errors import ConfigError
from vllm_mxext.registry.errors import MEANINGS
from vllm_mxext.registry.record import BACKENDS, DTYPES, SELF_HOSTED, SETTINGS, absolute, flag_of
from vllm_mxext.registry.servers import STOP_TIMEOUT_S

EXIT_CODES = "exit codes:\n" + "\n".join(f"  {code:>3}  {meaning}" for code, meaning in MEANINGS)

START_TIMEOUT_S = 600.0
"""How long `start` waits: a model may have to be downloaded first."""


COMMANDS = {  # `module.function(servers, arguments)` returns an `Answer`
    "add": Command("registering", "add", "register a server under a name"),
    "start": Command("running", "start", "start it in the background and wait until it is ready"),
    "stop": Command("running", "stop", "let it finish its requests and end"),
    "restart": Command("running", "restart", "stop it, and start it as it is registered now"),
    "rm": Command("registering", "rm", "remove it from the registry, with its logs"),
    "list": Command("showing", "list_servers", "all registered servers"),
    "ps": Command("showing", "ps", "running servers: uptime, memory, requests, model"),
    "status": Command("showing", "status", "one server; the exit code says whether it is ready"),
    "logs": Command("showing", "logs", "the end of its log; -f follows it"),
    "show": Command("showing", "show", "how it is registered, and the command that starts it"),
    "edit": Command("registering", "edit", "change how it is registered"),
    "export": Command("moving", "export", "write registrations as JSON"),
    "import": Command("moving", "import_servers", "register the servers of an exported file"),
    "doctor": Command("examining", "doctor", "find what is wrong with servers, and how to fix it"),
}


ELSEWHERE = {
    "ls": "list", "create": "add", "register": "add", "remove": "rm", "delete": "rm", "inspect": "show",
    "log": "logs", "kill": "stop --timeout 0", "down": "stop", "up": "start", "run": "start", "reload": "restart",
}  # fmt: skip
"""Name of a command in other tools -> the command here."""


def command_parser(name: str) -> Parser:
    """Returns the parser of one command."""
    summary = COMMANDS[name].summary
    parser = Parser(prog=f"mxext server {name}", description=f"{summary[:1].upper()}{summary[1:]}.", epilog=EXIT_CODES)
    _FLAGS[name](parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def given_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns the settings that the flags give.

    Raises:
        ConfigError: an `--env` has no value, or a quotation mark in `--extra-args` is not closed.
    """
    found = {key: getattr(arguments, key) for key in SETTINGS if getattr(arguments, key) is not None}
    if "env" in found:
        found["env"] = dict(map(_name_and_value, found["env"]))
    if "extra_args" in found and len(found["extra_args"]) == 1:
        found["extra_args"] = _words(found["extra_args"][0])  # given as one text
    if "model_path" in found and os.path.exists(os.path.expanduser(found["model_path"])):
        found["model_path"] = absolute(found["model_path"])  # later commands may be typed in another folder
    return found


def _words(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise ConfigError(f"--extra-args cannot be split into words: {error}.") from None


def _name_and_value(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(
            f"--env {name} has no value; give --env {name}=VALUE, or export it before 'start', which passes it on."
        )
    return name, value


def _add_settings(parser: Parser) -> None:
    parser.add_argument(
        "--endpoint-url", metavar="URL", help=f"'{SELF_HOSTED}' (default), or the address of a remote server"
    )
    parser.add_argument(
        "--model-path", "--model", metavar="MODEL", help="folder, ORG/NAME, or the hub's name of a model"
    )
    parser.add_argument("--backend", metavar="NAME", help=f"{', '.join(BACKENDS)} (default: {BACKENDS[0]})")
    parser.add_argument("--tensor-parallel", metavar="N", help="devices that share each layer (default: 1)")
    parser.add_argument("--max-model-len", metavar="N", help="most tokens of prompt plus output, or auto")
    parser.add_argument("--gpu-memory-utilization", metavar="F", help="share of the memory that may be used")
    parser.add_argument("--dtype", metavar="T", help=", ".join(DTYPES))
    parser.add_argument("--host", help="address to listen on (default: 127.0.0.1, this machine only)")
    parser.add_argument("--port", metavar="N", help="port to listen on (default: a free one from 8000 on)")
    parser.add_argument(
        "--api-key-env", metavar="VAR", help="environment variable with the server's key; the key is never stored"
    )
    parser.add_argument(
        "--env", action="append", metavar="K=V", help="environment variable of the server; may be repeated"
    )
    parser.add_argument(
        "--extra-args",
        nargs=argparse.REMAINDER,
        metavar="ARG",
        help="passes everything after it to the server as it is",
    )


def _add_name(parser: Parser) -> None:
    parser.add_argument("name", metavar="NAME", help="name of the server")


def _add(parser: Parser) -> None:
    _add_name(parser)
    parser.add_argument("--replace", action="store_true", help="replace a server that has this name")
    _add_settings(parser)


def _add_waiting(parser: Parser) -> None:
    parser.add_argument("--no-wait", action="store_true", help="do not wait until it is ready")
    parser.add_argument(
        "--timeout", type=float, default=START_TIMEOUT_S, metavar="S",
        help=f"seconds to wait until it is ready (default: {START_TIMEOUT_S:g})",
    )  # fmt: skip


def _start(parser: Parser) -> None:
    _add_name(parser)
    _add_waiting(parser)


def _add_stop_timeout(parser: Parser, flag: str) -> None:
    parser.add_argument(
        flag, type=float, default=STOP_TIMEOUT_S, dest="stop_timeout", metavar="S",
        help=f"seconds to finish open requests in before it is killed (default: {STOP_TIMEOUT_S:g})",
    )  # fmt: skip


def _stop(parser: Parser) -> None:
    _add_name(parser)
    _add_stop_timeout(parser, "--timeout")


def _restart(parser: Parser) -> None:
    _start(parser)
    _add_stop_timeout(parser, "--stop-timeout")


def _rm(parser: Parser) -> None:
    _add_name(parser)
    parser.add_argument("--force", "-f", action="store_true", help="stop it first if it runs")


def _list(parser: Parser) -> None:
    parser.add_argument("--quiet", "-q", action="store_true", help="print only names, without asking the servers")


def _logs(parser: Parser) -> None:
    _add_name(parser)
    parser.add_argument("--follow", "-f", action="store_true", help="follow the log until the server ends")
    parser.add_argument(
        "--lines", "--tail", "-n", type=int, default=50, metavar="N", help="lines from the end (default: 50)"
    )


def _edit(parser: Parser) -> None:
    _add_name(parser)
    parser.add_argument(
        "--unset", action="append", default=[], metavar="SETTING",
        help="leave a setting to the backend, as in '--unset max-model-len'; may be repeated",
    )  # fmt: skip
    _add_settings(parser)
    parser.description = "Change how it is registered; without flags, $VISUAL or $EDITOR opens it."


def _export(parser: Parser) -> None:
    parser.add_argument("names", nargs="*", metavar="NAME", help="servers (default: all)")
    parser.add_argument("--output", "-o", metavar="FILE", help="write there instead of printing")


def _import(parser: Parser) -> None:
    parser.add_argument("file", metavar="FILE", help="a file that 'export' has written; - is standard input")
    parser.add_argument("--replace", action="store_true", help="replace servers that have the same names")


def _nothing(_parser: Parser) -> None:
    """No flags of its own."""


_FLAGS: dict[str, Callable[[Parser], None]] = {
    "add": _add,
    "start": _start,
    "stop": _stop,
    "restart": _restart,
    "rm": _rm,
    "list": _list,
    "ps": _nothing,
    "status": _add_name,
    "logs": _logs,
    "show": _add_name,
    "edit": _edit,
    "export": _export,
    "import": _import,
    "doctor": _nothing,
}


def unset_settings(arguments: argparse.Namespace) -> list[str]:
    """Returns the settings that `--unset` names.

    Raises:
        ConfigError: one does not exist.
    """
    found = []
    for one in arguments.unset:
        setting = one.removeprefix("--").replace("-", "_")
        if setting not in SETTINGS:
            raise ConfigError(
                f"--unset {one} is not a setting; choose one of {', '.join(flag_of(key)[2:] for key in SETTINGS)}."
            )
        found.append(setting)
    return found
