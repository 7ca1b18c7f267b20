"""`ServedHub`: what the hub knows of this server's model; some of it is looked up only when somebody asks."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from pathlib import Path

from vllm_mxext.hub.hardware import Hardware
from vllm_mxext.hub.judgement import Selection
from vllm_mxext.hub.manifest.model import Goal, Manifest, ModelEntry
from vllm_mxext.hub.served_model import ServedModel
from vllm_mxext.server.downloads import Downloads

_GOAL: Goal = "latency"


@dataclass(frozen=True, slots=True)
class KnownModel:
    """The model of a server, however it was found.

    Attributes:
        entry: what its manifest says.
        manifest: where that is written.
        folder: its files.
        served: how it was chosen and obtained; None if it is a folder and no profile was asked for.
    """

    entry: ModelEntry
    manifest: Manifest
    folder: Path
    served: ServedModel | None = None


class ServedHub:
    """The hub's side of one server.

    Args:
        folder: the model's files.
        name: what the model is called if its files do not tell.
        served: how it was chosen and obtained, if the hub did that.
        store_folder: where models are stored; None = nowhere.
        downloads: what had to be downloaded at the start.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        served: ServedModel | None = None,
        store_folder: Path | None = None,
        downloads: Downloads | None = None,
    ) -> None:
        self._folder = folder
        self._name = name
        self.store_folder = store_folder
        self.downloads = downloads or Downloads()
        self._model = None if served is None else KnownModel(served.entry, served.manifest, served.folder, served)
        self._judged: tuple[Selection, Hardware] | None = None
        if served is not None and served.selection is not None:
            self._judged = served.selection, served.hardware
        self._looking = asyncio.Lock()

    async def model(self) -> KnownModel:
        """Returns the model.

        Raises:
            ConfigError: its files cannot be read any more.
        """
        async with self._looking:
            if self._model is None:
                self._model = await asyncio.to_thread(self._look_at_folder)
            return self._model

    async def judged(self) -> tuple[Selection, Hardware]:
        """Returns what is thought of the model's profiles on this machine, as it was chosen or would be now.

        Raises:
            ConfigError: the model's files cannot be read any more.
        """
        model = await self.model()
        async with self._looking:
            if self._judged is None:
                self._judged = await asyncio.to_thread(self._judge, model.entry)
            return self._judged

    def _look_at_folder(self) -> KnownModel:
        entry = ModelEntry(self._name)
        if (self._folder / "config.json").is_file():
            from vllm_mxext.hub.model_free import entry_from_folder  # noqa: PLC0415 - few ask for it

            entry = entry_from_folder(self._folder)
        return KnownModel(entry, Manifest((entry,), f"made from {self._folder}"), self._folder)

    def _judge(self, entry: ModelEntry) -> tuple[Selection, Hardware]:
        from vllm_mxext.hub.hardware_inspect import inspect_hardware  # noqa: PLC0415 - few ask for it
        from vllm_mxext.hub.selection import Question, rank  # noqa: PLC0415

        hardware = _unused(inspect_hardware(self.store_folder))
        goal, origin = (_GOAL, "default") if entry.goal is None else (entry.goal, "manifest")
        return rank(entry, hardware, Question(goal, origin, is_stored=True)), hardware


def _unused(hardware: Hardware) -> Hardware:
    """Returns the machine as if nothing ran on it: the model that is asked about does."""
    host = replace(hardware.host, memory_available_bytes=hardware.host.memory_bytes)
    devices = tuple(replace(one, memory_available_bytes=one.memory_bytes) for one in hardware.devices)
    return replace(hardware, host=host, devices=devices)
