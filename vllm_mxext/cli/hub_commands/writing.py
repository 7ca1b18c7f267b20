"""`mxext hub init`: a manifest to start from, of a model that a source, a folder or the packaged manifest has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from vllm_mxext.cli.hub_commands.asking import read
from vllm_mxext.cli.hub_commands.parsing import command_parser
from vllm_mxext.cli.tables import counted
from vllm_mxext.errors import ConfigError
from vllm_mxext.hub.exit_codes import DONE
from vllm_mxext.hub.manifest.lookup import FILE_NAME
from vllm_mxext.hub.manifest.model import Manifest
from vllm_mxext.hub.manifest.writing import write_manifest


def init(argv: Sequence[str]) -> int:
    """Writes the manifest; one that is there is left alone."""
    parser = command_parser(
        "init",
        "Write a manifest to start from: of a name of the packaged manifest, a source's URI or ORG/NAME, or a folder.",
        "MODEL_OR_FOLDER",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path(FILE_NAME),
        metavar="FILE",
        help=f"file to write (default: {FILE_NAME})",
    )
    asked = read(parser, argv)
    asked.require_model()
    found = asked.find()
    entry = found.entry
    if found.folder is not None and not entry.sources:
        entry = replace(entry, sources=(found.folder.absolute().as_uri(),))
    path = asked.own.output.expanduser()
    text = write_manifest(Manifest((entry,), str(path)))
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise ConfigError(f"'{path}' is there already and is left alone; name another file with --output.") from None
    except OSError as error:
        raise ConfigError(f"'{path}' cannot be written: {error.strerror}; name another file with --output.") from None
    profiles = [profile.name for profile in entry.profiles]
    value = {"file": str(path.absolute()), "model": entry.name, "profiles": profiles}
    asked.answer(
        value, f"Wrote {path} ({counted(len(profiles), 'profile')} of {entry.name}); use it with --manifest {path}."
    )
    return DONE
