"""`mxext completion SHELL`: prints a completion script for every command of `mxext`, derived from their help."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import re
from collections.abc import Iterator, Sequence
from unittest import mock

from vllm_mxext.config.parser import Parser

WordLists = dict[str, list[str]]
"""Words typed so far, such as `server start` -> the words that can follow."""

NAMED = ("start", "stop", "restart", "rm", "status", "logs", "show", "edit", "export")
"""Commands of `mxext server` that take the name of a registered server."""

_LIST_OF_COMMANDS = re.compile(r"^commands:\n((?:  \S.*\n)+)", re.MULTILINE)
_POSITIONAL = re.compile(r"^positional arguments:\n(.*?)(?=^\S|\Z)", re.MULTILINE | re.DOTALL)
_INNER_COMMAND = re.compile(r"^ {4}([a-z][a-z-]*)(?:\s|$)", re.MULTILINE)
_FLAG = re.compile(r"(?<![\w-])(--?[A-Za-z][A-Za-z0-9-]*)")
_HOW = {
    "bash": "source <(mxext completion bash)    # in ~/.bashrc",
    "zsh": "mxext completion zsh > ~/.zfunc/_mxext    # a folder that fpath names",
    "fish": "mxext completion fish > ~/.config/fish/completions/mxext.fish",
}


def run(argv: Sequence[str]) -> int:
    """Prints a script; returns the exit code."""
    parser = Parser(
        prog="mxext completion",
        description="Print a script that completes commands and flags of mxext, and names of registered servers.",
        epilog="install:\n" + "\n".join(f"  {line}" for line in _HOW.values()),
    )
    parser.add_argument("shell", choices=list(_SCRIPTS), help="the shell that the script is for")
    shell = parser.parse_args(argv).shell
    print(f"# Completion of mxext; install it with: {_HOW[shell]}\n" if shell != "zsh" else "#compdef mxext\n")
    print(_SCRIPTS[shell](dict(word_lists())))
    return 0


def word_lists() -> Iterator[tuple[str, list[str]]]:
    """Yields every command with the sub-commands and flags that its help lists."""
    from vllm_mxext.cli.main import COMMANDS  # noqa: PLC0415 - which imports this module by name

    yield "", [*COMMANDS, "--help", "--version"]
    for name, command in COMMANDS.items():
        text = _help(command.module, [])
        listed = _LIST_OF_COMMANDS.search(text)
        positional = _POSITIONAL.search(text)
        inner = [line.split()[0] for line in listed[1].splitlines()] if listed else []
        inner = _INNER_COMMAND.findall(positional[1]) if positional and not inner else inner
        yield name, (list(_SCRIPTS) if name == "completion" else inner) + _flags(text)
        for one in inner:
            yield f"{name} {one}", _flags(_help(command.module, [one]))


def _help(module: str, arguments: list[str]) -> str:
    """Returns what a command prints for `--help`, on a terminal so wide that nothing is wrapped."""
    printed = io.StringIO()
    wide = mock.patch.dict(os.environ, COLUMNS="10000")
    with wide, contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        importlib.import_module(module).run([*arguments, "--help"])
    return printed.getvalue()


def _flags(text: str) -> list[str]:
    lines = (line.strip() for line in text.splitlines())
    # Only the beginning of a line names its flag; the text after two spaces may mention others.
    heads = (re.split(r" {2,}", line)[0] for line in lines if line.startswith("-"))
    return sorted({flag for head in heads for flag in _FLAG.findall(head) if flag.startswith("--")})


def _bash(lists: WordLists) -> str:
    cases = "\n".join(f'    "{place}") echo "{" ".join(words)}" ;;' for place, words in lists.items())
    return f"""_mxext_words() {{
  case "$1" in
{cases}
    *) return 1 ;;
  esac
}}
_mxext() {{
  local typed="${{COMP_WORDS[COMP_CWORD]}}" place="" next words i
  for ((i = 1; i < COMP_CWORD; i++)); do
    next="${{place:+$place }}${{COMP_WORDS[i]}}"
    _mxext_words "$next" > /dev/null || break
    place="$next"
  done
  words="$(_mxext_words "$place")"
  case "$place" in
    {_named("|", '"server {}"')}) words="$words $(mxext server list --quiet 2> /dev/null)" ;;
  esac
  COMPREPLY=($(compgen -W "$words" -- "$typed"))
}}
complete -o default -F _mxext mxext"""


def _zsh(lists: WordLists) -> str:
    cases = "\n".join(f"    '{place}') print -r -- '{' '.join(words)}' ;;" for place, words in lists.items())
    return f"""_mxext_words() {{
  case "$1" in
{cases}
    *) return 1 ;;
  esac
}}
_mxext() {{
  local place='' next found i
  for ((i = 2; i < CURRENT; i++)); do
    next="${{place:+$place }}${{words[i]}}"
    _mxext_words "$next" > /dev/null || break
    place="$next"
  done
  found="$(_mxext_words "$place")"
  case "$place" in
    {_named("|", "'server {}'")}) found="$found $(mxext server list --quiet 2> /dev/null)" ;;
  esac
  compadd -- ${{=found//$'\\n'/ }} || _files
}}
if [[ "${{funcstack[1]}}" == _mxext ]]; then _mxext "$@"; else compdef _mxext mxext; fi"""


def _fish(lists: WordLists) -> str:
    cases = "\n".join(
        f"    case '{place}'\n      string split -- ' ' '{' '.join(words)}'" for place, words in lists.items()
    )
    return f"""function __mxext_words
  switch "$argv[1]"
{cases}
    case '*'
      return 1
  end
end
function __mxext_complete
  set -l typed (commandline -opc)
  set -l place ''
  for word in $typed[2..-1]
    set -l next (string trim -- "$place $word")
    __mxext_words "$next" > /dev/null; or break
    set place $next
  end
  __mxext_words "$place"
  switch "$place"
    case {_named(" ", "'server {}'")}
      mxext server list --quiet 2> /dev/null
  end
end
function __mxext_has_names
  __mxext_complete | string match --quiet --invert -- '-*'
end
complete -c mxext --no-files -n __mxext_has_names -a '(__mxext_complete)'
complete -c mxext -n 'not __mxext_has_names' -a '(__mxext_complete)'"""


def _named(separator: str, form: str) -> str:
    return separator.join(form.format(name) for name in NAMED)


_SCRIPTS = {"bash": _bash, "zsh": _zsh, "fish": _fish}
