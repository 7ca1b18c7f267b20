"""`mxext hub`: finds the command, imports only its module, and turns errors into exit codes.

The codes and what they mean are `vllm_mxext.hub.exit_codes.MEANINGS`, which the help prints.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Sequence

from vllm_mxext.cli.commands import Command, group_parser, without_command
from vllm_mxext.cli.hub_commands.parsing import EXIT_CODES
from vllm_mxext.config.parser import Parser
from vllm_mxext.errors import MxError
from vllm_mxext.hub.exit_codes import USAGE, cause_name, exit_code

_PACKAGE = "vllm_mxext.cli.hub_commands"


COMMANDS = {  # `module.function(argv)` returns the exit code
    "list-profiles": Command("choosing", "list_profiles", "a model's profiles and what each is here; or all models"),
    "select": Command("choosing", "select", "the best profile, and the command line that serves it"),
    "explain": Command("choosing", "explain", "every rule, and why each profile won or lost"),
    "config": Command("settings", "config", "every setting of a start, with where it comes from"),
    "hardware": Command("choosing", "hardware", "what this machine is made of"),
    "pull": Command("pulling", "pull", "download a model, or what its source has that is newer"),
    "download-to-cache": Command("pulling", "download_to_cache", "the same, also for several profiles or all"),
    "create-model-store": Command("pulling", "create_model_store", "write a model as a plain folder of files"),
    "list": Command("stored", "list_stored", "what is stored, with sizes and pins"),
    "verify": Command("stored", "verify", "read stored files and compare them with their digests"),
    "repair": Command("stored", "repair", "download again what is damaged, and no more"),
    "gc": Command("stored", "gc", "remove what no stored model needs"),
    "rm": Command("stored", "rm", "remove a model, or one revision, with the files that only it has"),
    "pin": Command("stored", "pin", "keep a model whatever `gc` is told"),
    "unpin": Command("stored", "unpin", "take a pin away"),
    "lock": Command("moving", "lock", "write model.lock, which pins revisions and digests"),
    "export": Command("moving", "export", "write models into one file for a machine without a network"),
    "import": Command("moving", "import_bundle", "take models from such a file"),
    "init": Command("writing", "init", "write a manifest to start from"),
    "doctor": Command("examining", "doctor", "find what keeps models from being downloaded and started"),
}  # fmt: skip

ALIASES = {"list-model-profiles": "list-profiles"}
"""Names that NIM has for them."""


def run(argv: Sequence[str]) -> int:
    """Runs one command; returns the exit code."""
    name = argv[0] if argv else None
    command = COMMANDS.get(ALIASES.get(name, name)) if name is not None else None
    try:
        if command is None:
            without_command(_parser(), argv, COMMANDS)
            return USAGE
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


def _parser() -> Parser:
    return group_parser(
        "mxext hub",
        "mxext hub COMMAND [MODEL] [flags]",
        "A model's name in, the best profile for this machine out: chosen, explained, downloaded, verified.",
        f"Every command has --json and takes all flags of 'mxext serve'.\n\n{EXIT_CODES}",
        COMMANDS,
    )
