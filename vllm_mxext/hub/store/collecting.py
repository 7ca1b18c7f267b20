"""Removes old snapshots that nobody uses (`gc`) or named ones (`rm`), and blobs that no snapshot names.

`gc` also takes what dead downloads have left. Where locks work, nobody adds files meanwhile. Where they do not,
everything younger than a day stays, and what is removed is asked about once more right before: publishing makes its
blobs young first, and looks afterwards whether they are there.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from vllm_mxext.errors import StoreError
from vllm_mxext.hub.store import layout, linking, locks, names
from vllm_mxext.hub.store.failures import storing
from vllm_mxext.hub.store.in_use import is_in_use
from vllm_mxext.hub.store.model_store import NEW, OLD, USE_LOCK, ModelStore
from vllm_mxext.hub.store.pins import Pin
from vllm_mxext.hub.store.snapshot import Snapshot

_GRACE_WITHOUT_LOCKS_S = 86_400.0
_WAIT_S = 10.0
_PARTIAL = "partial"


@dataclass(frozen=True, slots=True)
class GcRule:
    """What may go.

    Attributes:
        num_kept: snapshots of each model that stay besides the current one and those that are pinned, newest first.
        grace_s: what is younger stays.
        partial_s: partial files stay so long after the last byte: somebody may go on with the download.
    """

    num_kept: int = 1
    grace_s: float = 3600.0
    partial_s: float = 7 * 86_400.0


@dataclass(frozen=True, slots=True)
class GcReport:
    """What was removed, or would be.

    Attributes:
        snapshots: that nobody needs.
        blobs: digest and bytes of files that no snapshot names.
        leftovers: files and folders of downloads and publications that died.
        unreadable: folders of models without a readable description; they and what they link to stay.
        num_bytes: that became free.
        is_dry_run: nothing was removed.
        locks_work: others were kept out; otherwise everything younger than a day stays.
    """

    snapshots: tuple[Snapshot, ...]
    blobs: tuple[tuple[str, int], ...]
    leftovers: tuple[Path, ...]
    unreadable: tuple[Path, ...]
    num_bytes: int
    is_dry_run: bool
    locks_work: bool


@dataclass(frozen=True, slots=True)
class Removal:
    """What was removed because somebody said so.

    Attributes:
        snapshots: they.
        num_bytes: that became free.
        locks_work: files that only these snapshots had are gone too; otherwise `gc` takes them in a day.
    """

    snapshots: tuple[Snapshot, ...]
    num_bytes: int
    locks_work: bool


def collect(store: ModelStore, rule: GcRule | None = None, *, is_dry_run: bool = False) -> GcReport:
    """Removes what a rule lets go, or only tells it.

    Raises:
        StoreError: somebody is adding files, or the store cannot be written.
    """
    layout.prepare(store.folder)
    with (
        locks.holding(store.folder, USE_LOCK, purpose="gc", timeout_s=_WAIT_S) as lock,
        storing(store.folder),
    ):
        rule = rule or GcRule()
        if not lock.works:
            rule = replace(rule, grace_s=max(rule.grace_s, _GRACE_WITHOUT_LOCKS_S))
        report = _plan(store, rule, is_dry_run=is_dry_run, locks_work=lock.works)
        if not is_dry_run:
            _remove(store, rule, report)
            if lock.works:
                _tidy(store)
        return report


def remove(store: ModelStore, snapshots: Sequence[Snapshot], *, is_forced: bool = False) -> Removal:
    """Removes snapshots, current or not, with the files that no other one names.

    Args:
        store: where they are.
        snapshots: all of them or, if one must stay, none.
        is_forced: also what is pinned or in use; the pins go too.

    Raises:
        StoreError: one is pinned or in use, somebody is adding files, or the store cannot be written.
    """
    with (
        locks.holding(store.folder, USE_LOCK, purpose="rm", timeout_s=_WAIT_S) as lock,
        storing(store.folder),
    ):
        for one in () if is_forced else snapshots:
            _check_free(store, one)
        num_bytes = sum(_own_bytes(one.folder) for one in snapshots)
        for one in snapshots:
            store.discard(one.folder)
        _forget_pins(store, snapshots)
        if lock.works:
            left = store.snapshots()
            needed = _needed(left, tuple(_unreadable(store, {one.folder for one in left})))
            for sha256 in _named_digests(snapshots) - needed:
                num_bytes += store.blobs.size(sha256) or 0
                store.blobs.remove(sha256)
            _tidy(store)
        return Removal(tuple(snapshots), num_bytes, lock.works)


def _check_free(store: ModelStore, snapshot: Snapshot) -> None:
    shown = f"{snapshot.name} at revision {snapshot.revision}"
    if store.pins.protects(snapshot):
        raise StoreError(f"{shown} is pinned; take the pin away with `mxext hub unpin`, or give --force.")
    if is_in_use(snapshot.folder):
        raise StoreError(f"{shown} is being served; stop the server first, or give --force.")


def _forget_pins(store: ModelStore, gone: Sequence[Snapshot]) -> None:
    """Takes away pins of what is gone, which nobody could name any more."""
    left = {one.name for one in store.snapshots()}
    for one in gone:
        store.pins.remove(Pin(one.name, one.revision))
        if one.name not in left:
            store.pins.remove(Pin(one.name))


def _plan(store: ModelStore, rule: GcRule, *, is_dry_run: bool, locks_work: bool) -> GcReport:
    now_s = store.clock()
    there = store.snapshots()
    gone = tuple(_superfluous(store, there, rule, now_s))
    kept = {one.folder for one in there} - {one.folder for one in gone}
    unreadable = tuple(_unreadable(store, {one.folder for one in there}))
    needed = _needed([one for one in there if one.folder in kept], unreadable)
    blobs = tuple(_unnamed(store, needed, now_s - rule.grace_s))
    leftovers = tuple(_leftovers(store, rule, now_s))
    num_bytes = sum(size for _, size in blobs)
    num_bytes += sum(_own_bytes(path) for path in (*leftovers, *(one.folder for one in gone)))
    return GcReport(gone, blobs, leftovers, unreadable, num_bytes, is_dry_run, locks_work)


def _remove(store: ModelStore, rule: GcRule, report: GcReport) -> None:
    for snapshot in report.snapshots:
        store.discard(snapshot.folder)
    for path in report.leftovers:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    needed = _named_digests(store.snapshots())
    still_old_s = store.clock() - rule.grace_s
    for sha256, _ in report.blobs:
        if sha256 not in needed and _changed_s(store.blobs.path(sha256)) <= still_old_s:
            store.blobs.remove(sha256)


def _superfluous(store: ModelStore, there: Sequence[Snapshot], rule: GcRule, now_s: float) -> Iterator[Snapshot]:
    for folder in sorted({one.folder.parent for one in there}):
        model = [one for one in there if one.folder.parent == folder]
        model.sort(key=lambda one: (store.is_current(one), linking.is_whole(one), one.created_s), reverse=True)
        others = [one for one in model[1:] if not store.pins.protects(one) and not is_in_use(one.folder)]
        yield from (one for one in others[rule.num_kept :] if one.created_s <= now_s - rule.grace_s)


def _needed(snapshots: Sequence[Snapshot], unreadable: Sequence[Path]) -> set[str]:
    """Returns the digests that snapshots name, and those that folders without a readable description link to."""
    return _named_digests(snapshots) | {sha256 for folder in unreadable for sha256 in _linked_names(folder)}


def _named_digests(snapshots: Sequence[Snapshot]) -> set[str]:
    return {file.sha256 for one in snapshots for file in one.files}


def _unreadable(store: ModelStore, known: set[Path]) -> Iterator[Path]:
    for model in layout.subfolders(store.models_folder):
        yield from (folder for folder in layout.subfolders(model) if folder not in known)


def _linked_names(folder: Path) -> Iterator[str]:
    """Yields the digests of blobs that links in a folder lead to."""
    for parent, _, files in os.walk(folder):
        for name in files:
            with suppress(OSError):
                yield os.path.basename(os.readlink(Path(parent, name))).removeprefix("sha256-")


def _unnamed(store: ModelStore, needed: set[str], old_s: float) -> Iterator[tuple[str, int]]:
    for sha256 in sorted(store.blobs.digests()):
        if sha256 not in needed:
            with suppress(FileNotFoundError):
                status = store.blobs.path(sha256).stat()
                if status.st_mtime <= old_s:
                    yield sha256, status.st_size


def _leftovers(store: ModelStore, rule: GcRule, now_s: float) -> Iterator[Path]:
    for model in layout.subfolders(store.models_folder):
        for path in _entries(model):
            if path.name.startswith((NEW, OLD, f".{names.CURRENT}-")) and _changed_s(path) <= now_s - rule.grace_s:
                yield path
    partial = store.folder / _PARTIAL
    for path in () if partial.is_symlink() else _entries(partial):  # a link leads to what is not ours
        newest_s = max(map(_changed_s, (path, *_entries(path))))
        if newest_s <= now_s - max(rule.partial_s, rule.grace_s):
            yield path


def _tidy(store: ModelStore) -> None:
    """Removes pointers to what is gone, and folders of models without a snapshot."""
    for model in layout.subfolders(store.models_folder):
        folders = {folder.name for folder in layout.subfolders(model)}
        for pointer in (*_entries(model / names.REFS), model / names.CURRENT):
            if layout.read_pointer(pointer) not in folders:
                pointer.unlink(missing_ok=True)
        for empty in (model / names.REFS, model):
            with suppress(OSError):
                empty.rmdir()


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _changed_s(path: Path) -> float:
    """When a file was written; now or later if it is gone."""
    try:
        return path.lstat().st_mtime
    except FileNotFoundError:
        return float("inf")


def _own_bytes(path: Path) -> int:
    """Bytes of files that have no other name."""
    found = [path, *(Path(parent, name) for parent, _, files in os.walk(path) for name in files)]
    sizes = 0
    for file in found:
        with suppress(FileNotFoundError):
            status = file.lstat()
            sizes += status.st_size if stat.S_ISREG(status.st_mode) and status.st_nlink == 1 else 0
    return sizes
