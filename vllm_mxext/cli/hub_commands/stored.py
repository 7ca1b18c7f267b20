"""`mxext hub list`, `verify`, `repair`, `gc`, `rm`, `pin`, `unpin`: what is stored, whole or not, and what stays."""

from __future__ import annotations

import argparse
import datetime as dt
from collections.abc import Sequence
from typing import Any

from vllm_mxext.cli.hub_commands.asking import Asked, read
from vllm_mxext.cli.hub_commands.events import showing
from vllm_mxext.cli.hub_commands.parsing import add_events, command_parser
from vllm_mxext.cli.tables import columns, counted
from vllm_mxext.config.memory_plan import format_bytes
from vllm_mxext.errors import ConfigError, HubCause, StoreError
from vllm_mxext.hub.as_json import snapshot_as_json
from vllm_mxext.hub.exit_codes import DONE, code_of
from vllm_mxext.hub.store.model_store import ModelStore
from vllm_mxext.hub.store.pins import Pin
from vllm_mxext.hub.store.snapshot import Snapshot
from vllm_mxext.hub.stored_names import stored_snapshots


def list_stored(argv: Sequence[str]) -> int:
    """Prints what is stored."""
    parser = command_parser("list", "Print what is stored, with sizes and pins; of one model, its files too.")
    asked = read(parser, argv)
    store = ModelStore(asked.config.folder)
    snapshots = _wanted(asked, store, may_be_none=True)
    on_disk = sum(store.blobs.size(sha256) or 0 for sha256 in store.blobs.digests())
    entries: list[dict[str, Any]] = []
    rows = [("model", "revision", "size", "stored", "", "source")]
    for snapshot in snapshots:
        is_current, is_pinned = store.is_current(snapshot), store.pins.protects(snapshot)
        marks = [name for name, is_set in (("current", is_current), ("pinned", is_pinned)) if is_set]
        stored = dt.datetime.fromtimestamp(snapshot.created_s, tz=dt.timezone.utc).astimezone()
        rows.append((
            snapshot.name, _short(snapshot), format_bytes(snapshot.size), f"{stored:%Y-%m-%d %H:%M}", ", ".join(marks),
            snapshot.uri,
        ))  # fmt: skip
        facts = snapshot_as_json(snapshot, has_files=asked.app.model.model is not None)
        entries.append({**facts, "is_current": is_current, "is_pinned": is_pinned})
    value = {"folder": str(store.folder), "bytes_on_disk": on_disk, "models": entries}
    total = f"{counted(len(entries), 'revision')}, {format_bytes(on_disk)} in '{store.folder}'"
    of_what = "" if asked.app.model.model is None else f" of {asked.app.model.model}"
    asked.answer(value, f"{columns(rows)}\n{total}" if entries else f"Nothing{of_what} is stored in '{store.folder}'.")
    return DONE


def verify(argv: Sequence[str]) -> int:
    """Compares stored files with their digests; the code says if one is damaged."""
    from vllm_mxext.hub.store.verifying import verify as compare  # noqa: PLC0415 - few commands read all files

    parser = command_parser("verify", "Read stored files, of all models or one, and compare them with their digests.")
    parser.add_argument("--quick", action="store_true", help="look only whether they are there in their sizes")
    add_events(parser)
    asked = read(parser, argv)
    store = ModelStore(asked.config.folder)
    snapshots = _wanted(asked, store)
    with showing(asked) as listener:
        report = compare(store, snapshots, is_quick=asked.own.quick, listener=listener)
    faults = [
        {"model": one.snapshot.name, "revision": one.snapshot.revision, "path": one.file.path, "state": one.state.value,
         "bad_chunks": None if one.bad_chunks is None else list(one.bad_chunks)}
        for one in report.faults
    ]  # fmt: skip
    lines = [f"{fault['model']} at {fault['revision']}: {fault['path']} is {fault['state']}" for fault in faults]
    if faults:
        lines.append("Run `mxext hub repair` to download what is damaged.")
    elif snapshots:
        lines.append(
            f"{counted(len(report.files), 'file')} of {counted(len(snapshots), 'revision')}: all is as it should be."
        )
    else:
        lines.append(f"Nothing is stored in '{store.folder}'.")
    value = {"num_files": len(report.files), "num_revisions": len(snapshots), "faults": faults}
    asked.answer(value, "\n".join(lines))
    return code_of(HubCause.DAMAGED) if faults else DONE


def repair(argv: Sequence[str]) -> int:
    """Downloads what is damaged."""
    from vllm_mxext.hub.repairing import repair_stored  # noqa: PLC0415 - few commands download

    parser = command_parser("repair", "Read stored files, and download again what is damaged: only the bad parts.")
    add_events(parser)
    asked = read(parser, argv)
    store = ModelStore(asked.config.folder)
    snapshots = _wanted(asked, store)
    with showing(asked) as listener:
        repaired = repair_stored(store, snapshots, asked.config, listener=listener)
    files = [{"model": one.snapshot.name, "path": one.file.path, "state": one.state.value} for one in repaired]
    lines = [f"{one['model']}: {one['path']} was {one['state']}, and is whole again." for one in files]
    asked.answer({"repaired": files}, "\n".join(lines) or "Nothing is damaged.")
    return DONE


def gc(argv: Sequence[str]) -> int:
    """Removes what is not needed."""
    from vllm_mxext.hub.store.collecting import GcRule, collect  # noqa: PLC0415 - only this command removes

    parser = command_parser(
        "gc",
        "Remove old revisions, files that no stored model needs, and downloads that nobody goes on with; pinned models "
        "and what is younger than an hour stay.",
        "",
    )
    parser.add_argument("--dry-run", action="store_true", help="only tell what would be removed")
    parser.add_argument(
        "--keep", type=_count, default=GcRule().num_kept, metavar="N",
        help=f"older revisions of each model that stay (default: {GcRule().num_kept})",
    )  # fmt: skip
    asked = read(parser, argv)
    if asked.app.origins.get("model") == "command line":
        raise ConfigError(f"`mxext hub gc` is about all that is stored; leave '{asked.require_model()}' out.")
    store = ModelStore(asked.config.folder)
    report = collect(store, GcRule(num_kept=asked.own.keep), is_dry_run=asked.own.dry_run)
    value = {
        "is_dry_run": report.is_dry_run,
        "num_bytes": report.num_bytes,
        "snapshots": [snapshot_as_json(snapshot) for snapshot in report.snapshots],
        "blobs": [{"sha256": sha256, "size": size} for sha256, size in report.blobs],
        "leftovers": [str(path) for path in report.leftovers],
        "unreadable": [str(path) for path in report.unreadable],
        "locks_work": report.locks_work,
    }
    verb = "Would remove" if report.is_dry_run else "Removed"
    lines = [f"{verb} {one.name} at {_short(one)}." for one in report.snapshots]
    lines += [f"'{path}' has no readable description and stays." for path in report.unreadable]
    lines.append(
        f"{verb} {counted(len(report.snapshots), 'revision')}, {counted(len(report.blobs), 'file')} and "
        f"{counted(len(report.leftovers), 'leftover')}: {format_bytes(report.num_bytes)}."
    )
    if not report.locks_work:
        lines.append("Locks do not work here, so what is younger than a day stays.")
    asked.answer(value, "\n".join(lines))
    return DONE


def rm(argv: Sequence[str]) -> int:
    """Removes a model."""
    from vllm_mxext.hub.store.collecting import remove  # noqa: PLC0415 - few commands remove

    parser = command_parser(
        "rm", "Remove a model, all revisions or the one of --revision, with the files that no other one has.", "MODEL"
    )
    parser.add_argument("--force", "-f", action="store_true", help="also what is pinned or being served")
    asked = read(parser, argv)
    if asked.app.origins.get("model") != "command line":
        raise ConfigError("`mxext hub rm` removes only what its own command line names; give a MODEL.")
    store = ModelStore(asked.config.folder)
    removed = remove(store, _wanted(asked, store), is_forced=asked.own.force)
    lines = [f"Removed {one.name} at {_short(one)}." for one in removed.snapshots]
    lines.append(f"{format_bytes(removed.num_bytes)} became free.")
    if not removed.locks_work:
        lines.append("Locks do not work here, so the files themselves stay until `mxext hub gc` in a day.")
    asked.answer(
        {"removed": [snapshot_as_json(one) for one in removed.snapshots], "num_bytes": removed.num_bytes},
        "\n".join(lines),
    )
    return DONE


def pin(argv: Sequence[str]) -> int:
    """Keeps a model."""
    return _pin(argv, "pin", "Keep a model, all revisions or the one of --revision, whatever 'mxext hub gc' is told.")


def unpin(argv: Sequence[str]) -> int:
    """Takes a pin away."""
    return _pin(argv, "unpin", "Take the pin of a model away.")


def _pin(argv: Sequence[str], name: str, summary: str) -> int:
    parser = command_parser(name, summary, "MODEL")
    asked = read(parser, argv)
    asked.require_model()
    store = ModelStore(asked.config.folder)
    models = dict.fromkeys(snapshot.name for snapshot in _wanted(asked, store, any_revision=name == "unpin"))
    lines = []
    for model in models:
        pinned = Pin(model, _exact_revision(store, model, asked.config.revision))
        shown = model if pinned.revision is None else f"{model} at {pinned.revision}"
        if name == "pin":
            store.pins.add(pinned)
            lines.append(f"{shown} stays.")
        elif store.pins.remove(pinned):
            lines.append(f"{shown} is not pinned any more.")
        else:
            raise StoreError(f"{shown} is not pinned; `mxext hub list` shows what is.", cause=HubCause.NOT_FOUND)
    pins = [{"name": one.name, "revision": one.revision} for one in store.pins.list()]
    asked.answer({"models": list(models), "pins": pins}, "\n".join(lines))
    return DONE


def _exact_revision(store: ModelStore, model: str, revision: str | None) -> str | None:
    """Returns the full name of a revision that is stored, since pins go by that."""
    found = store.snapshot(model, revision) if revision is not None else None
    return revision if found is None else found.revision


def _wanted(
    asked: Asked, store: ModelStore, *, may_be_none: bool = False, any_revision: bool = False
) -> tuple[Snapshot, ...]:
    """Returns the snapshots that a command is about.

    Raises:
        StoreError: there are none.
    """
    model = asked.app.model.model
    revision = None if any_revision else asked.config.revision
    found = store.snapshots() if model is None else stored_snapshots(store, asked.config, model, revision)
    if not found and not may_be_none and model is not None:
        at = f" at revision {revision}" if revision else ""
        raise StoreError(
            f"{model}{at} is not stored in '{store.folder}'; `mxext hub list` shows what is, and `mxext hub pull` "
            "downloads it.",
            cause=HubCause.NOT_FOUND,
        )
    return found


def _short(snapshot: Snapshot) -> str:
    asked = f" ({snapshot.asked_revision})" if snapshot.asked_revision not in ("", snapshot.revision) else ""
    return f"{snapshot.revision[:12]}{asked}"


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a number from 0 on, got '{text}'")
    return int(text)
