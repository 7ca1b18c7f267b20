"""`ClientAdapters`: the adapters of a native client, loaded into and dropped from the core that its supervisor runs."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from vllm_mxext.engine.adapter_files import InspectFiles, no_adapters
from vllm_mxext.engine.client import AdapterInfo, AdapterSource
from vllm_mxext.engine.lora_registry import LoRARegistry
from vllm_mxext.engine.supervisor import CoreSupervisor
from vllm_mxext.native.protocol import AdapterKey

T = TypeVar("T")


@dataclass(slots=True)
class Loan:
    """An adapter that a request may use.

    Attributes:
        key: its id and generation; None = no adapter.
        is_kept: the request is open now, and gives it back when it ends.
    """

    key: AdapterKey | None
    is_kept: bool = False


class ClientAdapters:
    """Loads, unloads and lends adapters.

    What is done to one name is done in the order in which it was asked for, and to the end when the caller leaves.

    Args:
        registry: what is served.
        supervisor: runs the core.
        inspect: looks at an adapter's files; called in a thread.
        is_on: the engine serves adapters.
    """

    def __init__(self, registry: LoRARegistry, supervisor: CoreSupervisor, inspect: InspectFiles, is_on: bool) -> None:
        self._registry = registry
        self._supervisor = supervisor
        self._inspect = inspect
        self._is_on = is_on
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._tasks: set[asyncio.Task[Any]] = set()

    @property
    def infos(self) -> tuple[AdapterInfo, ...]:
        """The adapters that requests may name, in the order of loading."""
        return self._registry.adapters

    def has(self, name: str) -> bool:
        """Whether requests may name this adapter."""
        return self._registry.serves(name)

    async def load(self, source: AdapterSource, *, replaces: bool, pins: bool) -> AdapterInfo:
        """Serves an adapter.

        Raises:
            AdapterConflictError: the name is taken by another adapter, or by the model.
            AdapterError: the files are missing or broken, or do not fit the model or the limits.
            UnsupportedFeatureError: the engine serves no adapters.
            EngineDeadError: the engine is gone for good.
        """
        self._require()
        self._registry.check_name(source.name)
        return await asyncio.shield(self._start(self._load(source, replaces, pins)))

    async def unload(self, name: str) -> AdapterInfo:
        """Takes a name away, and gives its memory back if nobody uses it.

        Raises:
            AdapterNotFoundError: there is no adapter of this name.
        """
        return await asyncio.shield(self._start(self._unload(name)))

    @contextlib.contextmanager
    def lent(self, name: str | None) -> Iterator[Loan]:
        """Lends the adapter that a name means now to a request; it is taken back unless the loan is kept.

        Raises:
            AdapterNotFoundError: there is no adapter of this name.
            UnsupportedFeatureError: the engine serves no adapters.
        """
        loan = Loan(None)
        if name is not None:
            self._require()
            loan.key = self._registry.acquire(name)
        try:
            yield loan
        finally:
            if not loan.is_kept:
                self.take_back(loan.key)

    def take_back(self, key: AdapterKey | None) -> None:
        """Takes an adapter back from a request that has ended; without name and users its memory is given back."""
        if key is not None:
            dropped = self._registry.release(key)
            if dropped is not None:
                self._start(self._drop(dropped))

    async def close(self) -> None:
        """Ends what is being loaded or dropped; the core is gone."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _load(self, source: AdapterSource, replaces: bool, pins: bool) -> AdapterInfo:
        async with self._alone(source.name):
            files = await asyncio.to_thread(self._inspect, source)
            version = self._registry.prepare(source, files, replaces=replaces, pins=pins)
            if version.has_news:
                await self._supervisor.load_adapter(version.spec)
            await self._drop(self._registry.serve(version))
            return self._registry.info(source.name)

    async def _unload(self, name: str) -> AdapterInfo:
        async with self._alone(name):
            info, dropped = self._registry.remove(name)
            await self._drop(dropped)
            return info

    async def _drop(self, key: AdapterKey | None) -> None:
        if key is not None:
            await self._supervisor.drop_adapter(key)

    def _alone(self, name: str) -> asyncio.Lock:
        """Returns what is held while something is done to a name."""
        return self._locks.setdefault(name, asyncio.Lock())

    def _start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # seen: whoever waits has it, or nobody is left who could want it

    def _require(self) -> None:
        if not self._is_on:
            raise no_adapters()
