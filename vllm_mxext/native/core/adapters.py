"""`CoreAdapters`: the adapters that requests may name, from the file to the slot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from vllm_mxext.native.core.adapter_slots import AdapterSlots
from vllm_mxext.native.core.scheduler import Scheduler
from vllm_mxext.native.core_messages import AdapterDone, AdapterSpec
from vllm_mxext.native.protocol import (
    AdapterKey,
    AdapterUse,
    EngineCoreOutput,
    EngineCoreRequest,
    FinishReason,
    ReadAdapter,
)

_WAIT_S = 0.02
"""How long a step waits for an adapter when there is nothing else to do; new requests wait no longer."""


class AdapterStore(Protocol):
    """Adapters in host memory; files are read in the background."""

    def start(self, spec: AdapterSpec) -> None:
        """Begins to read an adapter."""
        ...

    def finished(self, timeout_s: float) -> Sequence[ReadAdapter]:
        """Returns what has been read since the last call, after waiting for the first one for so long.

        Whatever was started is among it once, also what was dropped meanwhile.
        """
        ...

    def drop(self, key: AdapterKey) -> None:
        """Gives the memory of an adapter back, also that of one which is still being read."""
        ...


class CoreAdapters:
    """Carries out what `AdapterSlots` decides, between steps.

    Args:
        slots: decides.
        store: reads and drops.
        scheduler: whose requests name the adapters.
    """

    def __init__(self, slots: AdapterSlots, store: AdapterStore, scheduler: Scheduler) -> None:
        self._slots = slots
        self._store = store
        self._scheduler = scheduler
        self._specs: dict[AdapterKey, AdapterSpec] = {}
        self._reading: set[AdapterKey] = set()
        self._calls: dict[int, AdapterKey] = {}
        """Calls that wait for an adapter to be read."""
        self._unproven: set[AdapterKey] = set()
        """Adapters that are known only if what is read now turns out well."""
        self._done: list[AdapterDone] = []
        self._told: tuple[int, dict[AdapterKey, int]] = (0, {})
        """What the last standings were made of: changes in the slots, and waiting requests."""

    @property
    def has_work(self) -> bool:
        """Whether something is being read, or an answer has not been taken."""
        return bool(self._reading or self._done)

    def load(self, call_id: int, spec: AdapterSpec, *, reads_now: bool) -> None:
        """Lets requests name an adapter; the answer comes when it has been read, or at once if that is not wanted."""
        key = (spec.adapter_id, spec.generation)
        if spec.is_pinned and not self._slots.can_pin(key):
            self._answer(
                call_id,
                f"Adapter '{spec.name}' cannot be pinned, as main memory would have no place left for the others; "
                "raise --max-cpu-loras or load it without pinning.",
            )
            return
        is_new = key not in self._specs
        self._specs[key] = spec
        self._slots.add(key, is_pinned=spec.is_pinned, reads_now=reads_now)
        self._plan()
        if call_id and self._slots.is_asked(key):
            self._calls[call_id] = key
            if is_new:
                self._unproven.add(key)
        else:
            self._answer(call_id)

    def drop(self, call_id: int, key: AdapterKey) -> None:
        """Forgets an adapter that no open request names; unknown ones are ignored."""
        if self._specs.pop(key, None) is not None:
            self._slots.remove(key)
            self._store.drop(key)
            self._answer_readers(key, "The adapter was unloaded while it was being loaded.")
        self._answer(call_id)

    def check(self, request: EngineCoreRequest) -> EngineCoreOutput | None:
        """Returns how a request ends whose adapter is not known; None for all others."""
        key = (request.adapter_id, request.adapter_generation)
        if not request.adapter_id or key in self._specs:
            return None
        error = f"The engine does not know adapter {key[0]}, generation {key[1]}; load it again."
        return EngineCoreOutput(request.request_id, finish_reason=FinishReason.ERROR, error=error)

    def take_done(self) -> list[AdapterDone]:
        """Returns the answers since the last call."""
        done, self._done = self._done, []
        return done

    def advance(self, *, is_idle: bool) -> None:
        """Takes in what has been read, and begins to read what requests are going to need.

        Args:
            is_idle: there is nothing to compute until something has been read.
        """
        if self._reading:
            for read in self._store.finished(_WAIT_S if is_idle else 0.0):
                self._reading.discard(read.key)
                self._take(read)
        if self._scheduler.waiting.adapters or self._reading or self._slots.has_asked:
            self._plan()

    def changed_standings(self) -> list[AdapterUse] | None:
        """How all adapters stand; None if that is as it was at the last call."""
        state = (self._slots.num_changes, dict(self._scheduler.waiting.adapters))
        if state == self._told:
            return None
        self._told = state
        return self._slots.standings(self._scheduler.waiting.adapters)

    def _take(self, read: ReadAdapter) -> None:
        if read.key not in self._specs:
            return  # dropped meanwhile
        if read.error is None:
            self._slots.set_loaded(read.key, read.num_bytes)
        else:
            self._slots.set_failed(read.key)
            self._scheduler.fail_adapter(read.key, read.error)
            if read.key in self._unproven:
                self._slots.remove(read.key)
                del self._specs[read.key]
        self._answer_readers(read.key, read.error)

    def _plan(self) -> None:
        changes = self._slots.plan_host(self._scheduler.waiting.next_ones())
        for key in changes.drops:
            self._store.drop(key)
        for key in changes.loads:
            self._reading.add(key)
            self._store.start(self._specs[key])
        for key in [key for key in self._calls.values() if not self._slots.is_asked(key)]:
            self._answer_readers(key, None)  # it has no place now, and is read when a request needs it

    def _answer_readers(self, key: AdapterKey, error: str | None) -> None:
        self._unproven.discard(key)
        for call_id in [call_id for call_id, wanted in self._calls.items() if wanted == key]:
            del self._calls[call_id]
            self._answer(call_id, error)

    def _answer(self, call_id: int, error: str | None = None) -> None:
        if call_id:
            standings = self._slots.standings(self._scheduler.waiting.adapters)
            self._done.append(AdapterDone(call_id, error, standings))
