"""`ServedAdapters`: what names of adapters mean to this server, and how adapters come and go while it runs."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from vllm_mxext.config.server import LoRAModule, LoRAServingConfig
from vllm_mxext.engine.client import AdapterInfo, AdapterSource, EngineClient, EnginePhase, EngineStatus
from vllm_mxext.errors import (
    AdapterError,
    AdapterNotFoundError,
    ConfigError,
    HubError,
    ModelNotFoundError,
    RequestError,
    UnsupportedFeatureError,
)
from vllm_mxext.logger import init_logger
from vllm_mxext.server.clock import Clock
from vllm_mxext.server.lora_watcher import FolderWatcher

logger = init_logger(__name__)

BASE_ALIAS = "base_model"
"""Stands for the served model in names such as `base_model:adapter`."""

UPDATES_VARIABLE = "VLLM_ALLOW_RUNTIME_LORA_UPDATING"

OFF = "This server serves no adapters; start it with --enable-lora."

MAX_SHOWN_CHARS = 200
MAX_NAMES_SHOWN = 20


class ServedAdapters:
    """The adapters of one server.

    Args:
        client: the engine, which holds them.
        config: which there are from the start, and which folder is watched.
        clock: time between two looks at the folder.
        fetch: makes a folder of this machine of a URI, called in a thread; None = URIs are refused.
    """

    def __init__(
        self, client: EngineClient, config: LoRAServingConfig, clock: Clock, fetch: Callable[[str], Path] | None = None
    ) -> None:
        self._client = client
        self._fetch = fetch
        self._modules = {module.name: module for module in config.modules}
        self._waiting = [module.name for module in config.modules if module.is_loaded_at_start]
        self._num_at_start = len(self._waiting)
        self._watcher = None if config.folder is None else FolderWatcher(self, config.folder, config.refresh_s, clock)
        self._has_looked = self._watcher is None

    @property
    def status(self) -> EngineStatus:
        """Where the engine stands; it counts as loading until the adapters of the start are there."""
        status = self._client.status
        if status.phase is not EnginePhase.READY or (self._has_looked and not self._waiting):
            return status
        done = self._num_at_start - len(self._waiting)
        progress = done / max(1, self._num_at_start)
        return replace(status, phase=EnginePhase.LOADING, progress=progress, detail="loading adapters")

    @property
    def is_on(self) -> bool:
        """Whether the engine serves adapters at all."""
        return self._client.model.max_loras > 0

    @property
    def available(self) -> list[LoRAModule]:
        """Adapters that can be loaded by their names, and are not."""
        return [module for name, module in self._modules.items() if not self._client.has_adapter(name)]

    @property
    def paths(self) -> dict[str, str]:
        """Loaded adapters and where they came from."""
        return {info.name: info.source.path for info in self._client.adapters}

    def resolve(self, asked: str | None) -> str | None:
        """Returns the adapter that a model's name stands for; None for the model itself, also without a name.

        Raises:
            ModelNotFoundError: nothing of this name is served.
        """
        served = self._client.model.served_names
        if not asked or asked in served:
            return None
        for prefix in ("", *(f"{base}:" for base in (*served, BASE_ALIAS))):
            name = asked.removeprefix(prefix)
            if asked.startswith(prefix) and self._client.has_adapter(name):
                return name
        raise ModelNotFoundError(self._explain_unknown(asked[:MAX_SHOWN_CHARS]), param="model")

    def _explain_unknown(self, asked: str) -> str:
        name = asked.rpartition(":")[2]
        if name in self._modules:
            return (
                f"The adapter `{name}` is known but not loaded; load it with POST /v1/load_lora_adapter, or ask the "
                "operator to."
            )
        adapters = [info.name for info in self._client.adapters]
        shown = [*self._client.model.served_names, *adapters[:MAX_NAMES_SHOWN]]
        more = f" and {len(adapters) - MAX_NAMES_SHOWN} more adapters" if len(adapters) > MAX_NAMES_SHOWN else ""
        return f"The model `{asked}` does not exist. Served here: {', '.join(f'`{name}`' for name in shown)}{more}."

    def find(self, name: str | None, adapter_id: int | None) -> AdapterInfo:
        """Returns the loaded adapter with that name and id, of which one may be left open.

        Raises:
            AdapterNotFoundError: there is none.
        """
        for info in self._client.adapters:
            if name in (None, info.name) and adapter_id in (None, info.adapter_id):
                return info
        if name is None:
            raise AdapterNotFoundError(f"There is no lora adapter with the id {adapter_id}.", param="lora_int_id")
        with_id = "" if adapter_id is None else f" with the id {adapter_id}"
        raise AdapterNotFoundError(f"The lora adapter '{name}'{with_id} cannot be found.", param="lora_name")

    async def load(self, source: AdapterSource, *, replaces: bool = False, pins: bool = False) -> AdapterInfo:
        """Serves an adapter.

        Args:
            source: which one; an empty path means the one of that name that the server knows from its start.
            replaces: an adapter of the same name gives way.
            pins: it stays in memory.

        Raises:
            AdapterError: name or path cannot be used, or the files cannot.
            AdapterConflictError: the name is taken.
            AdapterNotFoundError: there is nothing at the path.
            UnsupportedFeatureError: the engine serves no adapters.
        """
        if not self.is_on:
            raise UnsupportedFeatureError(OFF)
        if not source.name or (not source.path and source.name not in self._modules):
            known = f" No adapter '{source.name}' is known here without its path." if source.name else ""
            raise AdapterError(f"Both 'lora_name' and 'lora_path' must be provided.{known}", param="lora_path")
        if not source.path:
            source = self._completed(source)
        source = await asyncio.to_thread(self._at_home, source)  # the path may be a URI, or on a disk that is slow
        info = await self._client.load_adapter(source, replaces=replaces, pins=pins)
        logger.info("Loaded the adapter '%s' (%s, rank %d)", info.name, info.source.path, info.rank)
        return info

    def _completed(self, source: AdapterSource) -> AdapterSource:
        module = self._modules[source.name]
        return AdapterSource(
            module.name,
            module.path,
            source.format or module.format,
            source.base_model_name or module.base_model_name,
            source.description or module.description,
        )

    def _at_home(self, source: AdapterSource) -> AdapterSource:
        """Returns the source with its path as the engine process is to read it."""
        shown = source.path[:MAX_SHOWN_CHARS]
        path = os.path.abspath(os.path.expanduser(source.path))
        if "://" in source.path:
            if self._fetch is None:
                raise AdapterError(f"'{shown}' is no path, and this server downloads no adapters.", param="lora_path")
            try:
                path = str(self._fetch(source.path))
            except (ConfigError, HubError) as error:
                raise AdapterError(f"The adapter {source.name} cannot be had: {error}", param="lora_path") from None
        if not os.path.exists(path):
            raise AdapterNotFoundError(
                f"Loading lora {source.name} failed: No adapter found for {shown}"
                + ("" if path == source.path else f" (this server looked for {path[:MAX_SHOWN_CHARS]})"),
                param="lora_path",
            )
        return replace(source, path=path)

    async def unload(self, name: str | None, adapter_id: int | None = None) -> AdapterInfo:
        """Takes an adapter's name away; requests that use it go on.

        Raises:
            AdapterNotFoundError: there is no such adapter.
        """
        info = await self._client.unload_adapter(self.find(name, adapter_id).name)
        logger.info("Unloaded the adapter '%s'", info.name)
        return info

    async def load_at_start(self) -> None:
        """Loads what is to be there when the server becomes ready: listed adapters, and those of the folder.

        Raises:
            ConfigError: a listed one cannot be loaded; broken ones in the folder are only reported.
            EngineError: the engine could not do it.
        """
        for name in self._waiting:  # what is missing is said before the first one waits for the engine
            with _naming(name):
                self._at_home(self._completed(AdapterSource(name, "")))
        while self._waiting:
            with _naming(self._waiting[0]):
                await self.load(AdapterSource(self._waiting[0], ""))
            del self._waiting[0]
        if self._watcher is not None:
            await self._watcher.look(is_first=True)
        self._has_looked = True

    async def watch(self) -> None:
        """Follows the folder until it is cancelled; returns at once if there is none."""
        if self._watcher is not None:
            await self._watcher.watch()


@contextlib.contextmanager
def _naming(name: str) -> Iterator[None]:
    """Makes the refusal of an adapter of the start one of the configuration."""
    try:
        yield
    except RequestError as error:
        raise ConfigError(f"The adapter '{name}' cannot be loaded: {error}") from None
