"""`mxext server export` and `import`: registrations to and from a file."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from vllm_mxext.cli.server_commands.answer import Answer
from vllm_mxext.cli.tables import counted
from vllm_mxext.errors import ConfigError
from vllm_mxext.registry.book import as_document, find, parse_servers
from vllm_mxext.registry.errors import NameTakenError
from vllm_mxext.registry.files import write_json
from vllm_mxext.registry.servers import Servers


def export(servers: Servers, arguments: argparse.Namespace) -> Answer:
    """Writes registrations; they contain no keys, because the registry stores none."""
    records = servers.book.read()
    chosen = {name: find(records, name) for name in arguments.names} or records
    document = as_document(chosen)
    if arguments.output in (None, "-"):
        return Answer(document, Answer(document, "").as_json())
    write_json(Path(arguments.output), document)
    names = list(document["servers"])
    return Answer(
        {"file": arguments.output, "servers": names}, f"Wrote {counted(len(names), 'server')} to '{arguments.output}'."
    )


def import_servers(servers: Servers, arguments: argparse.Namespace) -> Answer:
    """Registers all servers of a file, or none."""
    try:
        text = sys.stdin.read() if arguments.file == "-" else Path(arguments.file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"'{arguments.file}' cannot be read: {reason}.") from None
    given = parse_servers(text, arguments.file, "export")
    with servers.changing(*given) as records:
        taken = sorted(set(given) & set(records))
        if taken and not arguments.replace:
            raise NameTakenError(
                f"{', '.join(taken)} {'is' if len(taken) == 1 else 'are'} registered already, so nothing was imported; "
                "repeat it with --replace, or rename them in the file."
            )
        records.update(given)
    return Answer(
        {"servers": sorted(given)}, f"Registered {counted(len(given), 'server')}: {', '.join(sorted(given))}."
    )
