"""`mxext hub lock`, `export` and `import`: models are pinned, and carried to machines without a network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vllm_mxext.cli.hub_commands.asking import Asked, read, read_models
from vllm_mxext.cli.hub_commands.events import showing
from vllm_mxext.cli.hub_commands.parsing import add_events, command_parser
from vllm_mxext.errors import ConfigError, HubCause, StoreError
from vllm_mxext.hub.as_json import snapshot_as_json
from vllm_mxext.hub.exit_codes import DONE
from vllm_mxext.hub.store.model_store import ModelStore
from vllm_mxext.hub.store.snapshot import Snapshot
from vllm_mxext.hub.stored_names import stored_snapshots


def lock(argv: Sequence[str]) -> int:
    """Pins models as they are stored; pins of others stay."""
    from vllm_mxext.hub.store.lock_file import LockFile, read_lock_file, write_lock_file  # noqa: PLC0415 - few use it

    parser = command_parser(
        "lock",
        "Write revision and digests of stored models into model.lock (or the file of --lock-file), which 'mxext serve "
        "--frozen' holds them to; pins of other models stay.",
        "MODEL...",
    )
    asked = read_models(parser, argv)
    snapshots = _current(asked, ModelStore(asked.config.folder))
    path = asked.config.lock_file
    pins = read_lock_file(path) if path.exists() else LockFile(path=path)
    for snapshot in snapshots:
        pins = pins.with_snapshot(snapshot)
    write_lock_file(pins)
    value = {"file": str(path.absolute()), "models": [snapshot_as_json(one, has_files=True) for one in snapshots]}
    lines = [f"{one.name} is pinned at {one.revision} in '{path}' ({len(one.files)} files)." for one in snapshots]
    asked.answer(value, "\n".join(lines))
    return DONE


def export(argv: Sequence[str]) -> int:
    """Writes models into one file."""
    from vllm_mxext.hub.store.bundle import export_bundle  # noqa: PLC0415 - few use it

    parser = command_parser(
        "export",
        "Write stored models into one file, which 'mxext hub import' takes on a machine without a network.",
        "MODEL... -o FILE",
    )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="file to write")
    add_events(parser)
    asked = read_models(parser, argv)
    snapshots = _current(asked, ModelStore(asked.config.folder))
    file = asked.own.output.expanduser().absolute()
    with showing(asked) as listener:
        export_bundle(snapshots, file, listener=listener)
    value = {"file": str(file), "size": file.stat().st_size, "models": [snapshot_as_json(one) for one in snapshots]}
    asked.answer(value, str(file))
    return DONE


def import_bundle(argv: Sequence[str]) -> int:
    """Takes models from a file; none if anything is wrong with it."""
    from vllm_mxext.hub.store.bundle import import_bundle as take  # noqa: PLC0415 - few use it

    parser = command_parser(
        "import", "Take the models of a file that 'mxext hub export' has written; none if anything is wrong.", "FILE"
    )
    add_events(parser)
    asked = read(parser, argv)
    if asked.app.origins.get("model") != "command line":
        raise ConfigError("Which file? Name it behind the command.")
    file = Path(asked.require_model()).expanduser()
    unsafe = asked.config.allows_unsafe
    with showing(asked) as listener:
        snapshots = take(
            ModelStore(asked.config.folder), file, allows_pickle=unsafe, allows_code=unsafe,
            listener=listener,
        )  # fmt: skip
    value = {"models": [snapshot_as_json(one, has_files=True) for one in snapshots]}
    asked.answer(value, "\n".join(str(one.folder) for one in snapshots))
    return DONE


def _current(asked: Asked, store: ModelStore) -> list[Snapshot]:
    """Returns the stored revision of each model that a start would take.

    Raises:
        StoreError: one is not stored.
    """
    snapshots = []
    for model in asked.models:
        names = dict.fromkeys(one.name for one in stored_snapshots(store, asked.config, model))
        found = [one for name in names if (one := store.snapshot(name, asked.config.revision)) is not None]
        if not found:
            raise StoreError(
                f"{model} is not stored in '{store.folder}'; download it with `mxext hub pull {model}`.",
                cause=HubCause.NOT_FOUND,
            )
        snapshots += found
    return snapshots
