"""`mxext hub config`: every setting of a start with where it comes from; nothing is started or downloaded for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vllm_mxext.cli.hub_commands.asking import Asked, read
from vllm_mxext.cli.hub_commands.parsing import add_choice, command_parser
from vllm_mxext.config.hub import model_needs_hub
from vllm_mxext.config.resolve import resolve
from vllm_mxext.config.table import Row, format_rows, rows
from vllm_mxext.hub.exit_codes import DONE
from vllm_mxext.hub.injection import inject
from vllm_mxext.hub.mx_download import Downloading, NeedsDownloadError
from vllm_mxext.hub.startup import choose, prepare


def config(argv: Sequence[str]) -> int:
    """Prints the table."""
    parser = command_parser(
        "config",
        "Print every setting of a start with where it comes from. Of a model that is not stored, what depends on its "
        "files is left open.",
    )
    add_choice(parser)
    asked = read(parser, argv)
    table, is_stored = _table(asked)
    value: dict[str, Any] = {"is_stored": is_stored, "settings": [row._asdict() for row in table]}
    note = "" if is_stored else "\nThe model is not stored; what depends on its files is left open."
    asked.answer(value, format_rows(table) + note)
    return DONE


def _table(asked: Asked) -> tuple[list[Row], bool]:
    hardware = asked.hardware() if model_needs_hub(asked.app) else None
    try:
        app = prepare(asked.app, Downloading(is_allowed=False), environ=asked.environ, hardware=hardware).app
    except NeedsDownloadError:
        pass
    else:
        resolved = resolve(app)
        return rows(resolved.app, resolved.decisions), True
    try:
        found = asked.find(may_download=False)
    except NeedsDownloadError:  # a source would have to be asked what the model is
        return rows(asked.app), False
    assert hardware is not None, "a folder of this machine needs no download"
    selection = choose(asked.app, asked.config, found, hardware)
    assert selection.chosen is not None, "choose() raises if nothing can run"
    return rows(inject(asked.app, found.entry, selection.chosen)), False
