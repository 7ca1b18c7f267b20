"""Writes docs/configuration.md from the registry of flags and variables: `python docs/make_configuration.py`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from vllm_mxext import envs
from vllm_mxext.config.flags import Flag
from vllm_mxext.config.options import GROUPS, all_flags
from vllm_mxext.config.refused import refused_flags
from vllm_mxext.config.table import format_value

TARGET = Path(__file__).parent / "configuration.md"

INTRODUCTION = """\
# Configuration

<!-- Written by docs/make_configuration.py from vllm_mxext/config/options.py; a test keeps it in step. -->

Every value can be given in five ways; the first one that names it wins:

1. a flag on the command line: `mxext serve --max-num-seqs 64` (underscores may stand for dashes),
2. an environment variable: `VLLM_MXEXT_MAX_NUM_SEQS=64` (lists are separated by commas, API keys are a JSON list),
3. a key of the YAML file named by `--config`: `max-num-seqs: 64`,
4. the profile that the MX Hub has chosen for a model that is named, not a folder ([hub.md](hub.md)),
5. the default.

Switches are turned off by `--no-...`, or by `false` in a file or variable. Whole numbers may end in `k`, `m`, `g`
(thousands) or `K`, `M`, `G` (powers of 1,024), sizes in `GB`, `GiB` and so on. At start the server logs every value
with its origin; API keys are hidden. Flags marked *offline* are also keyword arguments of `vllm_mxext.LLM`.

An unknown flag, key or argument is an error that names the nearest known one. Flags of vLLM that this version does not
have are refused with a sentence that says what to do (list at the end), except where they ask for what happens anyway,
such as `--pipeline-parallel-size 1`.
"""

VARIABLES = """
## Other environment variables

| variable | default | meaning |
|---|---|---|
"""

EXIT_CODES = """
## Exit codes

| code | meaning |
|---|---|
| 0 | done; for `serve`: a signal came and open requests were finished or aborted |
| 1 | it was started and failed |
| 2 | wrong flag, file, variable or checkpoint; nothing was started |
| 130 | interrupted with Ctrl-C |
"""

REFUSED = """
## Flags of vLLM that are refused

"""


def render() -> str:
    """Returns the whole page."""
    return "".join(_parts())


def _parts() -> Iterator[str]:
    yield INTRODUCTION
    flags = list(all_flags())
    for name, options in GROUPS:
        summary = (options.__doc__ or "").partition("\n")[0]
        yield f"\n## {name.capitalize()}\n\n{summary}\n\n| flag | value | default | meaning |\n|---|---|---|---|\n"
        yield from (_row(flag) for flag in flags if flag.group == name)
    yield VARIABLES
    for variable in envs.VARIABLES:
        names = ", ".join(f"`{name}`" for name in (variable.name, *variable.aliases))
        yield f"| {names} | {_shown(variable.default)} | {variable.help} |\n"
    yield EXIT_CODES + REFUSED
    for refused in sorted(refused_flags().values(), key=lambda flag: flag.name):
        yield f"- `--{refused.name}`: {refused.sentence}.\n"


def _row(flag: Flag) -> str:
    kind = flag.facts.kind
    value = "on or off" if kind.arity == "switch" else f"`{kind.metavar}`" + (" ..." if kind.arity == "many" else "")
    notes = ["*offline*"] if flag.facts.is_offline else []
    notes += [f"also `{name}`" for name in flag.facts.variables]
    text = flag.facts.help + (f" ({', '.join(notes)})" if notes else "")
    return f"| `--{flag.name}` | {_escaped(value)} | {_shown(flag.default)} | {_escaped(text)} |\n"


def _shown(value: object) -> str:
    text = format_value(value)
    return "" if text == "-" else f"`{_escaped(text)}`"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    TARGET.write_text(render(), encoding="utf-8")
    sys.stdout.write(f"{TARGET}\n")
