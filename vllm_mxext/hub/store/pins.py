"""Pins: models and revisions that stay in the store whatever `gc` is told."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from vllm_mxext.hub.store import layout, names
from vllm_mxext.hub.store.failures import storing
from vllm_mxext.hub.store.snapshot import Snapshot

_FOLDER = "pins"


@dataclass(frozen=True, slots=True, order=True)
class Pin:
    """What stays.

    Attributes:
        name: of the model.
        revision: None = all that there are.
    """

    name: str
    revision: str | None = None


class Pins:
    """The pins of a store, a small file each.

    Args:
        store: folder of the store.
    """

    def __init__(self, store: Path) -> None:
        self._store = store
        self._folder = store / _FOLDER

    def add(self, pin: Pin) -> None:
        """Pins; does nothing twice.

        Raises:
            StoreError: the store cannot be written.
        """
        with storing(self._store):
            self._folder.mkdir(parents=True, exist_ok=True)
            content = json.dumps({"name": pin.name, "revision": pin.revision}, ensure_ascii=False)
            layout.replace_file(self._file(pin), f"{content}\n".encode())

    def remove(self, pin: Pin) -> bool:
        """Takes a pin away; false if there is none.

        Raises:
            StoreError: the store cannot be written.
        """
        with storing(self._store):
            try:
                self._file(pin).unlink()
            except FileNotFoundError:
                return False
        return True

    def list(self) -> tuple[Pin, ...]:
        """Lists all pins.

        Raises:
            StoreError: the store cannot be read.
        """
        with storing(self._store):
            try:
                files = [file for file in self._folder.iterdir() if not file.name.startswith(".")]
            except FileNotFoundError:
                return ()
            return tuple(sorted((_read(file) for file in files), key=lambda pin: (pin.name, pin.revision or "")))

    def protects(self, snapshot: Snapshot) -> bool:
        """Whether a snapshot is pinned; the names of the files say so, so that a damaged one still does.

        Raises:
            StoreError: the store cannot be read.
        """
        pins = (Pin(snapshot.name), Pin(snapshot.name, snapshot.revision))
        with storing(self._store):
            return any(self._file(pin).exists() for pin in pins)

    def _file(self, pin: Pin) -> Path:
        name = names.model_folder(pin.name)
        return self._folder / (name if pin.revision is None else f"{name}~{names.revision_folder(pin.revision)}")


def _read(file: Path) -> Pin:
    try:
        content = json.loads(file.read_bytes())
        return Pin(str(content["name"]), None if content["revision"] is None else str(content["revision"]))
    except (ValueError, KeyError, TypeError):
        name, _, revision = file.name.partition("~")
        return Pin(name, revision or None)
