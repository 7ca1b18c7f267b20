"""Adapters of the fake engine: folders are looked at as the real engine does, weights are never read."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vllm_mxext.engine.client import AdapterInfo, AdapterSource
from vllm_mxext.errors import AdapterConflictError, AdapterError, AdapterNotFoundError, UnsupportedFeatureError
from vllm_mxext.requests import GenerateRequest

_Fingerprint = tuple[tuple[str, int, int], ...]


@dataclass(slots=True)
class _Loaded:
    info: AdapterInfo
    fingerprint: _Fingerprint


class FakeAdapters:
    """The adapters of one fake engine.

    Args:
        max_loras: adapters in slots; 0 = the engine serves none.
        max_lora_rank: largest rank.
        reserved: names that no adapter may have.

    Attributes:
        num_loads: adapters read so far.
    """

    def __init__(self, max_loras: int = 0, max_lora_rank: int = 32, reserved: Sequence[str] = ()) -> None:
        self.max_loras = max_loras
        self.max_lora_rank = max_lora_rank if max_loras else 0
        self.num_loads = 0
        self._reserved = reserved
        self._loaded: dict[str, _Loaded] = {}
        self._last_id = 0

    def load(self, source: AdapterSource, *, replaces: bool, pins: bool) -> AdapterInfo:
        """Serves an adapter; see `EngineClient.load_adapter`."""
        if not self.max_loras:
            raise UnsupportedFeatureError("This engine serves no adapters.")
        if source.name in self._reserved:
            raise AdapterConflictError(f"'{source.name}' is the model's own name; choose another one.")
        known = self._loaded.get(source.name)
        fingerprint, rank = _look_at(Path(source.path), self.max_lora_rank)
        if known is not None and not replaces:
            if known.info.source.path != source.path or known.fingerprint != fingerprint:
                raise AdapterConflictError(f"The lora adapter '{source.name}' has already been loaded.")
            known.info = replace(known.info, is_pinned=pins)
            return known.info
        self.num_loads += 1
        if known is None:
            self._last_id += 1
        info = AdapterInfo(
            replace(source, format=source.format or "huggingface"),
            self._last_id if known is None else known.info.adapter_id,
            1 if known is None else known.info.generation + 1,
            rank,
            1000 * rank,
            "slot",
            0,
            0,
            pins,
            time.time(),
        )
        self._loaded[source.name] = _Loaded(info, fingerprint)
        return info

    def unload(self, name: str) -> AdapterInfo:
        """Takes an adapter's name away; see `EngineClient.unload_adapter`."""
        return self._loaded.pop(self.find(name).name).info

    def has(self, name: str) -> bool:
        """Whether there is an adapter of that name."""
        return name in self._loaded

    def find(self, name: str) -> AdapterInfo:
        """Returns the adapter of that name.

        Raises:
            AdapterNotFoundError: there is none.
        """
        if name not in self._loaded:
            raise AdapterNotFoundError(f"The lora adapter '{name}' cannot be found.", param="model")
        return self._loaded[name].info

    def infos(self, running: Sequence[GenerateRequest], waiting: Sequence[GenerateRequest]) -> tuple[AdapterInfo, ...]:
        """Returns all adapters, the first `max_loras` of them in slots, with their numbers of requests."""
        num_running, num_waiting = (Counter(one.adapter for one in requests) for requests in (running, waiting))
        return tuple(
            replace(
                loaded.info,
                num_running=num_running[name],
                num_waiting=num_waiting[name],
                tier="slot" if position < self.max_loras else "host",
            )
            for position, (name, loaded) in enumerate(self._loaded.items())
        )

    def preamble(self, request: GenerateRequest) -> list[int]:
        """Returns the tokens with which the output of a request begins: `[name.generation*scale] ` with an adapter.

        Raises:
            AdapterNotFoundError: there is no such adapter.
        """
        if request.adapter is None:
            return []
        info = self.find(request.adapter)
        return [*f"[{info.name}.{info.generation}*{request.adapter_scale:g}] ".encode()]


def _look_at(path: Path, max_rank: int) -> tuple[_Fingerprint, int]:
    """Returns what changes with the files, and the rank."""
    try:
        files = sorted(path.iterdir())
        rank = json.loads((path / "adapter_config.json").read_text(encoding="utf-8"))["r"]
        stats = [(file.name, file.stat()) for file in files]
    except (OSError, ValueError, LookupError) as error:
        raise AdapterError(f"The adapter '{path}' cannot be read: {error}.", param="lora_path") from None
    if rank > max_rank:
        raise AdapterError(f"The adapter's rank {rank} is over --max-lora-rank {max_rank}; raise it.")
    return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats), rank
