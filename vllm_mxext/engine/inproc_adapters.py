"""`InprocAdapters`: the adapters of an engine in this process, loaded into and dropped from its core."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from vllm_mxext.engine.adapter_files import InspectFiles, no_adapters
from vllm_mxext.engine.client import AdapterInfo
from vllm_mxext.engine.lora_registry import AdapterVersion, LoRARegistry
from vllm_mxext.engine.lora_requests import LoRARequests, name_in, source_of
from vllm_mxext.native.core_messages import AdapterSpec
from vllm_mxext.native.protocol import AdapterKey, AdapterUse
from vllm_mxext.outputs import RequestOutput
from vllm_mxext.requests import LoRARequest


class AdapterCore(Protocol):
    """What loads adapters."""

    def load_adapter(self, spec: AdapterSpec) -> Sequence[AdapterUse]:
        """Reads an adapter, lets requests name it from then on, and returns how all adapters stand.

        Raises:
            AdapterError: it cannot be read.
        """
        ...

    def drop_adapter(self, key: AdapterKey) -> Sequence[AdapterUse]:
        """Forgets an adapter that no open request names, and returns how all others stand."""
        ...


class InprocAdapters:
    """Loads adapters on their first use, and lends them.

    Args:
        registry: what is served.
        core: returns where they are loaded.
        inspect: looks at an adapter's files.
        is_on: the engine serves adapters.
    """

    def __init__(
        self, registry: LoRARegistry, core: Callable[[], AdapterCore], inspect: InspectFiles, is_on: bool
    ) -> None:
        self._registry = registry
        self._core = core
        self._inspect = inspect
        self._is_on = is_on
        self.requests = LoRARequests()

    @property
    def infos(self) -> tuple[AdapterInfo, ...]:
        """The adapters that requests may name, in the order of loading."""
        return self._registry.adapters

    def use(self, request: LoRARequest | None) -> str | None:
        """Loads the adapter of a request if it is not loaded as it is wanted; returns its name.

        Raises:
            AdapterConflictError: its number or name stands for another adapter.
            AdapterError: it cannot be loaded.
            UnsupportedFeatureError: the engine serves no adapters.
        """
        if request is None:
            return None
        if not self._is_on:
            raise no_adapters()
        if not self.requests.is_loaded(request):
            source = source_of(request)
            self._registry.check_name(source.name)
            self._serve(self._registry.prepare(source, self._inspect(source), replaces=request.load_inplace))
            self.requests.add(request)
        return request.lora_name

    def pin(self, lora_id: int) -> bool:
        """Keeps an adapter in memory; False if there is none of this number."""
        request = self.requests.get(lora_id)
        if request is None:
            return False
        self._serve(self._registry.pinned(request.lora_name))
        return True

    def remove(self, lora_id: int) -> bool:
        """Unloads an adapter; open requests go on with it. False if there is none of this number."""
        request = self.requests.get(lora_id)
        if request is None:
            return False
        self.requests.remove(request)
        self._drop(self._registry.remove(request.lora_name)[1])
        return True

    def lend(self, name: str | None) -> AdapterKey | None:
        """Returns what a name means now, for a request that gives it back.

        Raises:
            AdapterNotFoundError: there is no adapter of this name.
        """
        return None if name is None else self._registry.acquire(name)

    def take_back(self, key: AdapterKey | None) -> None:
        """Takes an adapter back from a request that has ended."""
        if key is not None:
            self._drop(self._registry.release(key))

    def update(self, uses: Sequence[AdapterUse] | None) -> None:
        """Takes how all adapters stand; None if nothing has changed."""
        if uses is not None:
            self._registry.update(uses)

    def name_in(self, output: RequestOutput, name: str | None) -> None:
        """Names the adapter in the output of a request, if a `LoRARequest` named it."""
        request = None if name is None else self.requests.named(name)
        if request is not None:
            name_in(output, request)

    def _serve(self, version: AdapterVersion) -> None:
        if version.has_news:
            self._registry.update(self._core().load_adapter(version.spec))
        self._drop(self._registry.serve(version))

    def _drop(self, key: AdapterKey | None) -> None:
        if key is not None:
            self._registry.update(self._core().drop_adapter(key))
