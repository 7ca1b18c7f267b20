"""`mxext hub`: finds the command, imports only its module, and turns errors into exit codes.

The codes and what they mean are `vllm_mxext.hub.exit_codes.MEANINGS`, which the help prints.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Sequence
from typing import NamedTuple

from vllm_mxext.cli.hub_commands.parsing import EXIT_CODES, Parser
from vllm_mxext.config.sources import did_you_mean
from vllm_mxext.errors import ConfigError, MxError
from vllm_mxext.hub.exit_codes import USAGE, cause_name, exit_code

_PACKAGE = "vllm_mxext.cli.hub_commands"


class HubCommand(NamedTuple):
    """A command; `module.function(argv)` returns its exit code."""

    module: str
    function: str
    summary: str


COMMANDS = {
    "list-profiles": HubCommand("choosing", "list_profiles", "a model's profiles and what each is here; or all models"),
    "select": HubCommand("choosing", "select", "the best profile, and the command line that serves it"),
    "explain": HubCommand("choosing", "explain", "every rule, and why each profile won or lost"),
    "config": HubCommand("settings", "config", "every setting of a start, with where it comes from"),
    "hardware": HubCommand("choosing", "hardware", "what this machine is made of"),
    "pull": HubCommand("pulling", "pull", "download a model, or what its source has that is newer"),
    "download-to-cache": HubCommand("pulling", "download_to_cache", "the same, also for several profiles or all"),
    "create-model-store": HubCommand("pulling", "create_model_store", "write a model as a plain folder of files"),
    "list": HubCommand("stored", "list_stored", "what is stored, with sizes and pins"),
    "verify": HubCommand("stored", "verify", "read stored files and compare them with their digests"),
    "repair": HubCommand("stored", "repair", "download again what is damaged, and no more"),
    "gc": HubCommand("stored", "gc", "remove what no stored model needs"),
    "pin": HubCommand("stored", "pin", "keep a model whatever `gc` is told"),
    "unpin": HubCommand("stored", "unpin", "take a pin away"),
    "lock": HubCommand("moving", "lock", "write model.lock, which pins revisions and digests"),
    "export": HubCommand("moving", "export", "write models into one file for a machine without a network"),
    "import": HubCommand("moving", "import_bundle", "take models from such a file"),
    "init": HubCommand("writing", "init", "write a manifest to start from"),
    "doctor": HubCommand("examining", "doctor", "find what keeps models from being downloaded and started"),
}  # fmt: skip

ALIASES = {"list-model-profiles": "list-profiles"}
"""Names that NIM has for them."""


def run(argv: Sequence[str]) -> int:
    """Runs one command; returns the exit code."""
    name = argv[0] if argv else None
    command = COMMANDS.get(ALIASES.get(name, name)) if name is not None else None
    try:
        if command is None:
            return _without_command(argv)
        module = importlib.import_module(f"{_PACKAGE}.{command.module}")
        code: int = getattr(module, command.function)(list(argv[1:]))
    except (MxError, KeyboardInterrupt) as error:
        return _failed(error, is_json="--json" in argv)
    return code


def _failed(error: MxError | KeyboardInterrupt, *, is_json: bool) -> int:
    text = str(error) if isinstance(error, MxError) else "Interrupted; nothing is half done."
    code = exit_code(error)
    if is_json:
        print(json.dumps({"error": {"cause": cause_name(error), "message": text}}, ensure_ascii=False))
    else:
        print(f"mxext: {'error: ' if code == USAGE else ''}{text}", file=sys.stderr)
    return code


def _without_command(argv: Sequence[str]) -> int:
    width = max(map(len, COMMANDS))
    parser = Parser(
        prog="mxext hub",
        usage="mxext hub COMMAND [MODEL] [flags]",
        description="A model's name in, the best profile for this machine out: chosen, explained, downloaded, verified."
        "\n\ncommands:\n" + "\n".join(f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()),
        epilog=f"Every command has --json and takes all flags of 'mxext serve'.\n\n{EXIT_CODES}",
    )
    parser.add_argument("command", nargs="?", metavar="COMMAND", help="one of the above")
    name = parser.parse_known_args(argv)[0].command
    if name is not None:
        raise ConfigError(f"There is no command 'mxext hub {name}'{did_you_mean(name, COMMANDS)}")
    parser.print_help()
    return USAGE
