"""`LoRARegistry`: which adapters are served, what each request's name means, and which weights can be dropped."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import msgspec

from vllm_mxext.config.lora_modules import name_problem
from vllm_mxext.engine.client import AdapterInfo, AdapterSource
from vllm_mxext.errors import AdapterConflictError, AdapterError, AdapterNotFoundError
from vllm_mxext.lora.files import AdapterFiles
from vllm_mxext.native.core_messages import AdapterSpec
from vllm_mxext.native.protocol import AdapterKey, AdapterTier, AdapterUse


@dataclass(frozen=True, slots=True)
class AdapterVersion:
    """One generation of an adapter.

    Attributes:
        source: what it was loaded from.
        spec: what the engine core is told of it.
        rank: its largest rank.
        is_new: it is not served yet.
        has_news: there is something that the core does not know.
    """

    source: AdapterSource
    spec: AdapterSpec
    rank: int
    is_new: bool = True
    has_news: bool = True

    @property
    def key(self) -> AdapterKey:
        """Its id and generation."""
        return (self.spec.adapter_id, self.spec.generation)


@dataclass(slots=True)
class _Known:
    """A generation that is served or still in use."""

    version: AdapterVersion
    loaded_at_s: float
    num_users: int = 0


class LoRARegistry:
    """Names, generations and their users; what it says is to be dropped is forgotten here.

    An adapter keeps its id while its name is served; each time other weights are loaded under the name they are a new
    generation. A name that was unloaded gets a new id.

    Args:
        served_names: of the model, which adapters cannot have.
        clock: Unix time in seconds.
    """

    def __init__(self, served_names: Sequence[str], clock: Callable[[], float] = time.time) -> None:
        self._served_names = frozenset(served_names)
        self._clock = clock
        self._num_ids = 0
        self._num_generations: dict[str, int] = {}
        """Name -> its newest generation, whether that could be loaded or not."""
        self._served: dict[str, AdapterKey] = {}
        self._known: dict[AdapterKey, _Known] = {}
        self._uses: dict[AdapterKey, AdapterUse] = {}

    @property
    def adapters(self) -> tuple[AdapterInfo, ...]:
        """The adapters that requests may name, in the order of loading."""
        return tuple(self._info(key) for key in self._served.values())

    def serves(self, name: str) -> bool:
        """Whether requests may name this adapter."""
        return name in self._served

    @property
    def specs(self) -> list[AdapterSpec]:
        """Every generation that is served or still in use, for a new core."""
        return [known.version.spec for known in self._known.values()]

    def check_name(self, name: str) -> None:
        """Returns if an adapter may have this name.

        Raises:
            AdapterConflictError: the model is called so.
            AdapterError: it is no name.
        """
        problem = name_problem(name)
        if problem is not None:
            raise AdapterError(f"The name of an adapter {problem}.", param="lora_name")
        if name in self._served_names:
            raise AdapterConflictError(
                f"The model is called '{name}' already; choose another name for the adapter.", param="lora_name"
            )

    def prepare(
        self, source: AdapterSource, files: AdapterFiles, *, replaces: bool = False, pins: bool = False
    ) -> AdapterVersion:
        """Returns what serving these files under this name means; nothing is served yet.

        Args:
            source: what is to be loaded.
            files: what was found there.
            replaces: an adapter of the same name gives way.
            pins: it stays in memory.

        Raises:
            AdapterConflictError: the name is taken by other weights.
            AdapterError: it is no name.
        """
        self.check_name(source.name)
        served = self._served.get(source.name)
        if served is not None and not replaces:
            version = self._known[served].version
            if (version.spec.path, version.spec.fingerprint) != (str(files.path), files.fingerprint):
                what = "other files" if version.spec.path == str(files.path) else f"'{version.source.path}'"
                raise AdapterConflictError(
                    f"An adapter '{source.name}' is loaded from {what} already; use load_inplace to replace it, or "
                    "another name.",
                    param="lora_name",
                )
            return _again(version, is_pinned=pins)
        if served is None:
            self._num_ids += 1
            adapter_id, generation = self._num_ids, 1
        else:
            adapter_id = served[0]
            generation = self._num_generations[source.name] = self._num_generations[source.name] + 1
        spec = AdapterSpec(
            adapter_id, generation, source.name, str(files.path), files.format, files.fingerprint, is_pinned=pins
        )
        base = source.base_model_name or files.base_model_name
        return AdapterVersion(replace(source, format=files.format, base_model_name=base), spec, files.rank)

    def pinned(self, name: str) -> AdapterVersion:
        """Returns what keeping an adapter in memory means; nothing is changed yet.

        Raises:
            AdapterNotFoundError: there is no adapter of this name.
        """
        return _again(self._known[self._key(name)].version, is_pinned=True)

    def serve(self, version: AdapterVersion) -> AdapterKey | None:
        """Serves what the core has loaded; returns the generation that is to be dropped now, if there is one."""
        name = version.spec.name
        if not version.is_new:
            self._known[version.key].version = version
            return None
        superseded = self._served.pop(name, None)
        self._served[name] = version.key
        self._num_generations.setdefault(name, version.spec.generation)
        self._known[version.key] = _Known(version, self._clock())
        return None if superseded is None else self._retire(superseded)

    def remove(self, name: str) -> tuple[AdapterInfo, AdapterKey | None]:
        """Takes a name away; returns how the adapter stood, and the generation that is to be dropped now.

        With users, it is dropped when the last of them leaves, which `release()` says.

        Raises:
            AdapterNotFoundError: there is no adapter of this name.
        """
        info = self.info(name)
        key = self._served.pop(name)
        del self._num_generations[name]
        return info, self._retire(key)

    def info(self, name: str) -> AdapterInfo:
        """Returns how an adapter stands.

        Raises:
            AdapterNotFoundError: there is no adapter of this name.
        """
        return self._info(self._key(name))

    def acquire(self, name: str) -> AdapterKey:
        """Returns what a name means now, for a user who keeps it until `release()`.

        Raises:
            AdapterNotFoundError: there is no adapter of this name.
        """
        key = self._key(name)
        self._known[key].num_users += 1
        return key

    def release(self, key: AdapterKey) -> AdapterKey | None:
        """Takes a user away; returns the generation if it is to be dropped now."""
        known = self._known[key]
        assert known.num_users > 0, "Nobody uses this adapter."
        known.num_users -= 1
        return None if self._served.get(known.version.spec.name) == key else self._forget_unused(key)

    def update(self, uses: Iterable[AdapterUse]) -> None:
        """Takes how all adapters stand in the core; one that is not among them is on disk."""
        self._uses = {(use.adapter_id, use.generation): use for use in uses}

    def _key(self, name: str) -> AdapterKey:
        if name not in self._served:
            raise AdapterNotFoundError(f"No adapter '{name}' is loaded; load it first.", param="model")
        return self._served[name]

    def _retire(self, key: AdapterKey) -> AdapterKey | None:
        """Lets go of a generation that has no name any more; nobody asks for its memory to be kept."""
        known = self._known[key]
        spec = msgspec.structs.replace(known.version.spec, is_pinned=False)
        known.version = replace(known.version, spec=spec)
        return self._forget_unused(key)

    def _forget_unused(self, key: AdapterKey) -> AdapterKey | None:
        if self._known[key].num_users:
            return None
        del self._known[key]
        return key

    def _info(self, key: AdapterKey) -> AdapterInfo:
        known = self._known[key]
        version = known.version
        use = self._uses.get(key, AdapterUse(*key, AdapterTier.DISK))
        return AdapterInfo(
            source=version.source,
            adapter_id=version.spec.adapter_id,
            generation=version.spec.generation,
            rank=version.rank,
            num_bytes=use.num_bytes,
            tier=use.tier.name.lower(),
            num_running=use.num_running,
            num_waiting=use.num_waiting,
            is_pinned=version.spec.is_pinned,
            loaded_at_s=known.loaded_at_s,
        )


def _again(version: AdapterVersion, is_pinned: bool) -> AdapterVersion:
    """Returns what is served already, with this pin."""
    has_news = version.spec.is_pinned != is_pinned
    spec = msgspec.structs.replace(version.spec, is_pinned=is_pinned)
    return replace(version, spec=spec, is_new=False, has_news=has_news)
