"""`ModelStore`: snapshots of models on this machine, published by one rename, so that readers see whole ones only."""

from __future__ import annotations

import itertools
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

from vllm_mxext.errors import HubCause, StoreError
from vllm_mxext.hub.safety import check_paths
from vllm_mxext.hub.store import layout, linking, locks, names
from vllm_mxext.hub.store.blobs import BlobStore
from vllm_mxext.hub.store.failures import storing
from vllm_mxext.hub.store.pins import Pins
from vllm_mxext.hub.store.snapshot import Snapshot, StoredFile

USE_LOCK = "store"
"""Held shared by those who add files, and alone by `gc`."""

NEW = ".new-"
"""Start of folders that are being built."""

OLD = ".old-"
"""Start of folders that are being removed."""

_ABBREVIATION = re.compile(r"[0-9a-f]{4,}")
_HEXADECIMAL = re.compile(r"[0-9a-f]+")


class ModelStore:
    """Models in one folder: `blobs/`, `models/<org--name>/<revision>/`, `pins/`, `locks/`.

    Reading needs no lock and no right to write. Several processes may publish at the same time, also without working
    locks: everything becomes visible by one rename, and what is there is never changed.

    Args:
        folder: the store; made when something is published.
        clock: Unix time.
    """

    def __init__(self, folder: Path, *, clock: Callable[[], float] = time.time) -> None:
        self.folder = folder
        self.blobs = BlobStore(folder)
        self.clock = clock
        self.pins = Pins(folder)
        layout.check(folder)

    @property
    def models_folder(self) -> Path:
        """Where the folders of models are."""
        return self.folder / layout.MODELS

    def adding(self, purpose: str) -> AbstractContextManager[locks.Lock]:
        """Keeps `gc` away while files are added that no snapshot names yet.

        Args:
            purpose: told to those who wait: `pull`.

        Raises:
            StoreError: the store cannot be written, or `gc` does not end.
        """
        return locks.holding(self.folder, USE_LOCK, purpose=purpose, is_shared=True)

    def snapshot(self, name: str, revision: str | None = None, *, must_be_whole: bool = True) -> Snapshot | None:
        """Finds a snapshot; None if there is none.

        Args:
            name: of the model.
            revision: its revision, the first characters of a hexadecimal one, or a branch or tag that was asked for;
                None = the current one.
            must_be_whole: leave out those of which files are missing or have another size.

        Raises:
            StoreError: several revisions begin so, or the store cannot be read.
        """
        with storing(self.folder):
            found = [one for one in self._of_model(self._model(name)) if one.name == name]
            if must_be_whole:
                found = [one for one in found if linking.is_whole(one)]
            found.sort(key=lambda one: one.created_s, reverse=True)
            if revision is None:
                return self._pointed(found, self._model(name) / names.CURRENT) or next(iter(found), None)
            exact = [one for one in found if one.revision == revision]
            if exact:
                return self._pointed(exact, self._model(name) / names.CURRENT) or exact[0]
            asked = self._pointed(found, self._ref(name, revision))
            if asked is not None:
                return replace(asked, asked_revision=revision)
            return _abbreviated(found, name, revision)

    def snapshots(self) -> tuple[Snapshot, ...]:
        """Lists all published snapshots, by name and time, whole or not.

        Raises:
            StoreError: the store cannot be read.
        """
        with storing(self.folder):
            found = [one for model in layout.subfolders(self.models_folder) for one in self._of_model(model)]
        return tuple(sorted(found, key=lambda one: (one.name, one.created_s, one.folder.name)))

    def is_current(self, snapshot: Snapshot) -> bool:
        """Whether a snapshot is the one that its model's name stands for."""
        return layout.read_pointer(snapshot.folder.parent / names.CURRENT) == snapshot.folder.name

    def publish(
        self,
        name: str,
        revision: str,
        uri: str,
        files: Sequence[StoredFile],
        *,
        asked_revision: str = "",
        check: Callable[[Path], object] | None = None,
    ) -> Snapshot:
        """Makes blobs visible as a model, which becomes the current one of its name; does nothing twice.

        Args:
            name: of the model.
            revision: its name at the source; if other files were published under it, both stay and this is current.
            uri: source, without secrets.
            files: all of them; their blobs are in the store.
            asked_revision: branch or tag that was asked for.
            check: looks at the folder before anybody else can; what it raises keeps it from being published.

        Raises:
            UnsafeFileError: a path is.
            StoreError: the store cannot be written, or a blob is not there.
        """
        if not (name and revision):
            raise StoreError("A model is stored by a name and a revision; give both.")
        ordered = tuple(sorted(files, key=lambda file: file.path))
        check_paths((file.path for file in (*ordered, StoredFile(layout.SNAPSHOT, 0, ""))), ignores_case=False)
        layout.prepare(self.folder)
        with self.adding("publish"), storing(self.folder):
            made = Snapshot(name, revision, uri, ordered, self._model(name), asked_revision, self.clock())
            snapshot = self._publish(made, check)
            if asked_revision:
                self._point_ref(name, asked_revision, snapshot.folder)
            self._make_current(snapshot.folder)
        return replace(snapshot, asked_revision=asked_revision)

    def switch(self, snapshot: Snapshot) -> None:
        """Makes a snapshot the current one of its name.

        Raises:
            StoreError: the store cannot be written, or the snapshot is not whole.
        """
        with self.adding("switch"), storing(self.folder):
            if not linking.is_whole(snapshot):
                raise _incomplete(snapshot)
            self._make_current(snapshot.folder)

    def discard(self, folder: Path) -> None:
        """Removes a folder of this store, which nobody sees half gone.

        Raises:
            OSError: it cannot be removed.
        """
        hidden = folder.parent / f"{OLD}{secrets.token_hex(8)}"
        try:
            os.rename(folder, hidden)
        except FileNotFoundError:
            return
        shutil.rmtree(hidden)

    def _publish(self, made: Snapshot, check: Callable[[Path], object] | None) -> Snapshot:
        """Returns a whole snapshot with these files: one that is there, or a new one."""
        model, base = made.folder, names.revision_folder(made.revision)
        model.mkdir(parents=True, exist_ok=True)
        for number in itertools.count():
            folder = model / (base if number == 0 else f"{base}~{number}")
            if not os.path.lexists(folder):  # asked first: somebody may be publishing the same
                break
            there = layout.read_snapshot(folder)
            if there is not None and _has_same_files(there, made) and linking.is_whole(there):
                if check is not None:
                    check(folder)
                return there
        if not self._build(made, folder, check):
            return self._publish(made, check)
        snapshot = replace(made, folder=folder)
        if not linking.is_whole(snapshot):  # without locks, gc may have taken a blob meanwhile
            raise _incomplete(snapshot)
        return snapshot

    def _build(self, made: Snapshot, folder: Path, check: Callable[[Path], object] | None) -> bool:
        """Builds a folder beside and renames it; false if somebody was faster."""
        hidden = folder.parent / f"{NEW}{os.getpid()}-{secrets.token_hex(8)}"
        try:
            linking.build(made, hidden, self.blobs, self.folder)
            if check is not None:
                check(hidden)
            try:
                os.rename(hidden, folder)
            except OSError:
                if os.path.lexists(folder):
                    return False
                raise
            layout.sync(folder.parent)
            return True
        finally:
            shutil.rmtree(hidden, ignore_errors=True)

    def _point_ref(self, name: str, asked_revision: str, folder: Path) -> None:
        ref = self._ref(name, asked_revision)
        ref.parent.mkdir(exist_ok=True)
        layout.write_pointer(ref, f"{folder.name}\n{asked_revision}", is_link=False)

    @staticmethod
    def _make_current(folder: Path) -> None:
        layout.write_pointer(folder.parent / names.CURRENT, folder.name, is_link=True)

    def _model(self, name: str) -> Path:
        return self.models_folder / names.model_folder(name)

    def _ref(self, name: str, asked_revision: str) -> Path:
        return self._model(name) / names.REFS / names.revision_folder(asked_revision)

    def _of_model(self, model: Path) -> Iterator[Snapshot]:
        asked = _asked_revisions(model)
        for folder in layout.subfolders(model):
            snapshot = layout.read_snapshot(folder)
            if snapshot is not None:
                yield replace(snapshot, asked_revision=asked.get(folder.name, ""))

    @staticmethod
    def _pointed(found: Sequence[Snapshot], pointer: Path) -> Snapshot | None:
        target = layout.read_pointer(pointer)
        return next((one for one in found if one.folder.name == target), None)


def _asked_revisions(model: Path) -> dict[str, str]:
    """Returns folder -> a branch or tag that leads to it."""
    try:
        refs = sorted(os.listdir(model / names.REFS))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    lines = [layout.read_lines(model / names.REFS / ref) for ref in refs if not ref.startswith(".")]
    return {line[0]: line[1] for line in reversed(lines) if len(line) == 2}


def _abbreviated(found: Sequence[Snapshot], name: str, revision: str) -> Snapshot | None:
    """Returns the newest snapshot of the only revision that begins so; only hexadecimal ones have short forms."""
    if not _ABBREVIATION.fullmatch(revision):
        return None
    long = [one for one in found if one.revision.startswith(revision) and _HEXADECIMAL.fullmatch(one.revision)]
    revisions = sorted({one.revision for one in long})
    if len(revisions) > 1:
        raise StoreError(
            f"Several revisions of {name} begin with {revision} ({', '.join(revisions[:5])}); give more of it.",
            cause=HubCause.NOT_FOUND,
        )
    return long[0] if long else None


def _has_same_files(one: Snapshot, other: Snapshot) -> bool:
    return (one.name, one.revision, one.files) == (other.name, other.revision, other.files)


def _incomplete(snapshot: Snapshot) -> StoreError:
    return StoreError(
        f"Files of {snapshot.name} at revision {snapshot.revision} are missing in the store; pull the model again.",
        cause=HubCause.DAMAGED,
    )
