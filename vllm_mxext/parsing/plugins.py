"""Parsers from a file of the user's."""

from __future__ import annotations

import runpy
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

from vllm_mxext.errors import ConfigError
from vllm_mxext.parsing.registry import ParserRegistry, ReasoningParserEntry, ToolParserEntry

_TOOL_PARSERS, _REASONING_PARSERS = "TOOL_PARSERS", "REASONING_PARSERS"

Entry = TypeVar("Entry", ToolParserEntry, ReasoningParserEntry)


def load_plugin(path: Path | None) -> ParserRegistry:
    """Returns the parsers that ship and those of a Python file.

    The file is run; its variables `TOOL_PARSERS` and `REASONING_PARSERS` list what it adds, as `ToolParserEntry` and
    `ReasoningParserEntry`. A parser is any class with the methods of `OutputParser`.

    Args:
        path: the file; None = only the parsers that ship.

    Raises:
        ConfigError: the file cannot be read, fails, or does not list parsers.
    """
    if path is None:
        return ParserRegistry()
    variables = _run(path)
    tool_parsers = _listed(path, variables, _TOOL_PARSERS, ToolParserEntry)
    reasoning_parsers = _listed(path, variables, _REASONING_PARSERS, ReasoningParserEntry)
    if not tool_parsers and not reasoning_parsers:
        raise ConfigError(
            f"--tool-parser-plugin {path} adds no parser; list them in {_TOOL_PARSERS} or {_REASONING_PARSERS}."
        )
    return ParserRegistry(tool_parsers, reasoning_parsers)


def _run(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ConfigError(f"--tool-parser-plugin names '{path}', which is no file on this machine.")
    try:
        return runpy.run_path(str(path), run_name=f"mxext_plugin_{path.stem}")
    except Exception as error:  # the file is the user's, it can raise anything
        raise ConfigError(
            f"--tool-parser-plugin {path} fails with {type(error).__name__}: {error}; repair the file."
        ) from error


def _listed(path: Path, variables: dict[str, Any], name: str, kind: type[Entry]) -> list[Entry]:
    entries = variables.get(name, ())
    if not isinstance(entries, Iterable) or not all(isinstance(entry, kind) for entry in entries):
        raise ConfigError(f"{name} in --tool-parser-plugin {path} must be a list of {kind.__name__}.")
    return list(entries)
