"""`FolderWatcher`: the sub-folders of one folder as adapters, which come, change and go with their files."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Protocol

from vllm_mxext.engine.client import AdapterInfo, AdapterSource, EnginePhase, EngineStatus
from vllm_mxext.errors import AdapterNotFoundError, EngineError, RequestError
from vllm_mxext.logger import init_logger
from vllm_mxext.server.clock import Clock

logger = init_logger(__name__)

Fingerprint = tuple[tuple[str, int, int], ...]
"""Names, sizes and times of change of an adapter's files."""


_MAX_FILES = 1000
"""Files of a folder that are looked at: a link to a whole disk is no adapter, and must not hold up the others."""


class AdapterLoader(Protocol):
    """Serves adapters and takes them away."""

    @property
    def paths(self) -> Mapping[str, str]:
        """Loaded adapters and where they came from."""
        ...

    @property
    def status(self) -> EngineStatus:
        """Where the engine stands."""
        ...

    async def load(self, source: AdapterSource, *, replaces: bool = False) -> AdapterInfo:
        """Serves an adapter; with `replaces`, one of the same name gives way."""
        ...

    async def unload(self, name: str) -> AdapterInfo:
        """Takes an adapter's name away."""
        ...


class FolderWatcher:
    """Serves every sub-folder of a folder as an adapter of the same name.

    What has changed is read once it has stayed as it is between two looks, so that no half-copied files are. An adapter
    that somebody has loaded under such a name from another path is left alone.

    Args:
        loader: what adapters are loaded with.
        folder: what is watched.
        refresh_s: seconds between two looks.
        clock: time.
    """

    def __init__(self, loader: AdapterLoader, folder: Path, refresh_s: float, clock: Clock) -> None:
        self._loader = loader
        self._folder = Path(os.path.abspath(folder))
        self._refresh_s = refresh_s
        self._clock = clock
        self._seen: dict[str, Fingerprint] = {}
        self._tried: dict[str, Fingerprint] = {}
        self._served: set[str] = set()
        self._is_unreadable = False

    async def watch(self) -> None:
        """Looks again and again until it is cancelled."""
        while True:
            await self._clock.sleep(self._refresh_s)
            if self._loader.status.phase is EnginePhase.READY:
                await self.look()

    async def look(self, *, is_first: bool = False) -> None:
        """Loads, reloads and unloads what has come, changed and gone.

        Args:
            is_first: take everything for complete: the server is starting.
        """
        try:
            found = await asyncio.to_thread(_scan, self._folder)
        except OSError as error:
            if not self._is_unreadable:
                logger.warning("The folder '%s' of --lora-dir cannot be read: %s", self._folder, error.strerror)
            self._is_unreadable = True
            return
        self._is_unreadable = False
        paths = self._loader.paths
        self._served = {name for name in self._served if paths.get(name) == str(self._folder / name)}
        for name in sorted(self._served - found.keys()):
            await self._unload(name)
        for name in self._tried.keys() - found.keys():
            del self._tried[name]
        for name, fingerprint in sorted(found.items()):
            is_settled = is_first or self._seen.get(name) == fingerprint
            if is_settled and self._tried.get(name) != fingerprint:
                await self._load(name, fingerprint)
        self._seen = found

    async def _load(self, name: str, fingerprint: Fingerprint) -> None:
        path = self._folder / name
        try:
            await self._loader.load(AdapterSource(name, str(path)), replaces=name in self._served)
        except RequestError as error:
            kept = "; its old weights are served further" if name in self._served else ""
            logger.warning("The adapter in '%s' is left out until it changes%s: %s", path, kept, error)
        except EngineError as error:
            logger.warning("The adapter in '%s' could not be loaded now: %s", path, error)
            return
        else:
            self._served.add(name)
        self._tried[name] = fingerprint

    async def _unload(self, name: str) -> None:
        self._served.discard(name)
        try:
            await self._loader.unload(name)
        except AdapterNotFoundError:
            logger.debug("The adapter '%s', whose folder is gone, had been unloaded by hand", name)


def _scan(folder: Path) -> dict[str, Fingerprint]:
    """Returns the sub-folders that hold files, by name.

    Raises:
        OSError: the folder cannot be read.
    """
    names = [entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith(".")]
    fingerprints = {name: _fingerprint(folder / name) for name in names}
    return {name: fingerprint for name, fingerprint in fingerprints.items() if fingerprint}


def _fingerprint(folder: Path) -> Fingerprint:
    entries = []
    paths = (os.path.join(parent, file) for parent, _, files in os.walk(folder) for file in files)
    for path in islice(paths, _MAX_FILES):
        try:
            stat = os.stat(path)
        except OSError:  # it has gone meanwhile, or is a link to nothing
            continue
        entries.append((os.path.relpath(path, folder), stat.st_size, stat.st_mtime_ns))
    return tuple(sorted(entries))
