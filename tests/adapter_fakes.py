"""Stand-ins for adapters: files without weights, and what a core knows of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from vllm_mxext.engine.client import AdapterSource
from vllm_mxext.errors import AdapterError
from vllm_mxext.lora.files import AdapterFiles
from vllm_mxext.native import core_messages as messages
from vllm_mxext.native.protocol import AdapterKey, AdapterTier, AdapterUse, EngineCoreRequest

NUM_BYTES = 100


@dataclass
class AdapterFolder:
    """Adapter files without weights.

    Attributes:
        contents: path -> what the files there are told by.
    """

    contents: dict[str, str] = field(default_factory=lambda: {"/a": "one", "/b": "two"})

    def inspect(self, source: AdapterSource) -> AdapterFiles:
        if source.path not in self.contents:
            raise AdapterError(f"There is no folder '{source.path}'.", param="lora_path")
        return AdapterFiles(Path(source.path), "huggingface", self.contents[source.path], {})


class FakeCoreAdapters:
    """The adapters of a fake core, with a record of what was asked of it and what was wrong about that.

    Args:
        say: sends a message of the core.
        load_errors: names of adapters that cannot be read -> why.
    """

    def __init__(self, say: Callable[[messages.FromCore], None], load_errors: dict[str, str]) -> None:
        self.known: dict[AdapterKey, messages.AdapterSpec] = {}
        self.added: list[tuple[messages.AdapterSpec, bool]] = []
        self.asked: list[messages.AdapterSpec] = []
        self.dropped: list[AdapterKey] = []
        self.mistakes: list[str] = []
        self.is_held = False
        self._users: dict[str, AdapterKey] = {}
        self._loads: list[tuple[messages.AdapterSpec, asyncio.Future[bool]]] = []
        self._say = say
        self._load_errors = load_errors

    def begin(self, request: EngineCoreRequest) -> None:
        """Takes a request."""
        if request.adapter_id:
            key = (request.adapter_id, request.adapter_generation)
            self._users[request.request_id] = key
            if key not in self.known:
                self.mistakes.append(f"{request.request_id} came before its adapter {key}")

    def end(self, request_ids: Iterable[str]) -> None:
        """Takes the news that requests have ended."""
        for request_id in request_ids:
            self._users.pop(request_id, None)

    def add(self, spec: messages.AdapterSpec, reads_now: bool) -> None:
        """Knows an adapter from now on."""
        self.added.append((spec, reads_now))
        self.known[spec.adapter_id, spec.generation] = spec

    async def load(self, spec: messages.AdapterSpec) -> bool:
        """Reads an adapter, in a later turn of the loop or when `release()` is called."""
        self.asked.append(spec)
        loop = asyncio.get_running_loop()
        call: asyncio.Future[bool] = loop.create_future()
        self._loads.append((spec, call))
        if not self.is_held:
            loop.call_soon(self.release)
        return await call

    def release(self) -> None:
        """Answers what is being loaded."""
        loads, self._loads = self._loads, []
        for spec, call in loads:
            error = self._load_errors.get(spec.name)
            if error is None:
                self.known[spec.adapter_id, spec.generation] = spec
                call.set_result(True)
            else:
                call.set_exception(AdapterError(error))
            self._say(messages.AdapterDone(1, error, self.uses()))

    def die(self) -> None:
        """Leaves what is being loaded without an answer."""
        loads, self._loads = self._loads, []
        for _, call in loads:
            call.set_result(False)

    def drop(self, key: AdapterKey) -> None:
        """Forgets an adapter."""
        if key in self._users.values():
            self.mistakes.append(f"adapter {key} was dropped in use")
        if self.known.pop(key, None) is None:
            self.mistakes.append(f"adapter {key} was dropped, but is not known")
        self.dropped.append(key)

    def uses(self) -> list[AdapterUse]:
        """How all adapters stand."""
        running = list(self._users.values())
        return [
            AdapterUse(*key, AdapterTier.SLOT if key in running else AdapterTier.HOST, NUM_BYTES, running.count(key))
            for key in self.known
        ]
