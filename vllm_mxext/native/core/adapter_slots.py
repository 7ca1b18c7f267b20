"""`AdapterSlots`: which adapters lie in device slots and in host memory, and which waiting requests may start."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from vllm_mxext.config.engine import LoRAConfig
from vllm_mxext.native.core.request import Request
from vllm_mxext.native.protocol import AdapterKey, AdapterTier, AdapterUse

MAX_PASSES = 16
"""Younger requests that may start before one whose adapter has no place; then a place is cleared for it."""

_MAX_LOADING = 2
"""Adapters read at once: more would only take each other's bandwidth."""


@dataclass(slots=True)
class _Adapter:
    """An adapter that requests may name.

    Attributes:
        key: its id and generation.
        is_pinned: it stays in host memory.
        is_superseded: a later generation is known. It stays, as its files may be gone, and takes nobody's place.
        num_bytes: host memory it takes; 0 while it is not there.
        is_loading: it is being read.
        slot: its slot; 0 = none.
        running: the running requests that use it, by id.
        last_used: grows with every use.
    """

    key: AdapterKey
    is_pinned: bool
    is_superseded: bool = False
    num_bytes: int = 0
    is_loading: bool = False
    slot: int = 0
    running: dict[str, Request] = field(default_factory=dict)
    last_used: int = 0

    @property
    def is_resident(self) -> bool:
        return self.num_bytes > 0

    @property
    def tier(self) -> AdapterTier:
        if self.slot:
            return AdapterTier.SLOT
        return AdapterTier.HOST if self.is_resident else AdapterTier.DISK

    @property
    def num_remaining_tokens(self) -> int:
        """Output tokens until the last of its running requests has ended for sure."""
        return max((request.max_total_tokens - request.num_tokens for request in self.running.values()), default=0)


@dataclass(frozen=True, slots=True)
class HostChanges:
    """What has to be read from files and what leaves host memory."""

    loads: list[AdapterKey]
    drops: list[AdapterKey]


class AdapterSlots:
    """Places of adapters; every adapter in a slot is in host memory too.

    A request can start if its adapter is in host memory and in a slot, or a slot can be had: one that no running
    request uses, the least recently used first. Others may pass it, but only `MAX_PASSES` of them: then a slot is
    closed to younger requests for its sake, the one that is soonest free for sure, and nothing else is held up. Host
    memory is for the adapters of running requests, then for those of waiting ones in the order of service.

    Args:
        config: how many there may be.
    """

    def __init__(self, config: LoRAConfig) -> None:
        self._max_host = config.max_cpu_loras
        self._adapters: dict[AdapterKey, _Adapter] = {}
        self._slots: list[_Adapter | None] = [None] * (config.max_loras + 1)
        self._changes: dict[int, AdapterKey] = {}
        self._closing: set[int] = set()
        """Slots closed in the last scan; they are the first choice of the next one."""
        self._asked: list[AdapterKey] = []
        self._num_uses = 0
        self.num_changes = 0
        """Grows with everything that `standings()` tells of, but for the waiting requests."""

    # --- known adapters ---

    def __contains__(self, key: AdapterKey) -> bool:
        return key in self._adapters

    def add(self, key: AdapterKey, *, is_pinned: bool, reads_now: bool) -> None:
        """Lets requests name an adapter; for one that is known, changes only whether it is pinned."""
        self.num_changes += 1
        known = self._adapters.get(key)
        if known is None:
            self._adapters[key] = _Adapter(key, is_pinned)
            self._find_superseded(key[0])
        else:
            known.is_pinned = is_pinned
        if reads_now and not self._adapters[key].is_resident and key not in self._asked:
            self._asked.append(key)

    def remove(self, key: AdapterKey) -> None:
        """Forgets an adapter that no open request names; unknown ones are ignored."""
        adapter = self._adapters.pop(key, None)
        if adapter is None:
            return
        self.num_changes += 1
        assert not adapter.running, f"Adapter {key} is in use by {list(adapter.running)}."
        self._leave_slot(adapter)
        self._find_superseded(key[0])
        if key in self._asked:
            self._asked.remove(key)

    def can_pin(self, key: AdapterKey) -> bool:
        """Whether an adapter may stay in host memory: a place is left for all that may not.

        A superseded pin counts: it holds again if the later generation cannot be read, or is unloaded first.
        """
        pinned = {other.key[0] for other in self._adapters.values() if other.is_pinned}
        return len(pinned | {key[0]}) < self._max_host

    # --- host memory ---

    def plan_host(self, waiting: Iterable[Request]) -> HostChanges:
        """Decides what is to be read now, for the adapters of these requests among others, and what goes for it."""
        wanted = self._wanted(waiting)
        changes = HostChanges([], [])
        counted = [adapter for adapter in self._adapters.values() if not adapter.is_superseded]
        num_loading = sum(adapter.is_loading for adapter in counted)
        num_free = self._max_host - num_loading - sum(adapter.is_resident for adapter in counted)
        for key in wanted:
            adapter = self._adapters[key]
            if adapter.is_resident or adapter.is_loading:
                continue
            if num_loading == _MAX_LOADING:
                break
            while num_free <= 0:
                victim = self._least_recently_used(
                    other for other in counted if other.is_resident and other.key not in wanted
                )
                if victim is None:
                    self._give_up_asked()
                    return changes
                self._leave_host(victim)
                changes.drops.append(victim.key)
                num_free += 1
            adapter.is_loading = True
            num_loading += 1
            num_free -= 1
            changes.loads.append(key)
        return changes

    @property
    def has_asked(self) -> bool:
        """Whether an adapter is going to be read because that was asked for."""
        return bool(self._asked)

    def is_asked(self, key: AdapterKey) -> bool:
        """Whether an adapter is going to be read because that was asked for, not because a request needs it."""
        return key in self._asked

    def set_loaded(self, key: AdapterKey, num_bytes: int) -> None:
        """Notes that an adapter has come into host memory."""
        adapter = self._adapters[key]
        adapter.num_bytes = max(num_bytes, 1)
        self._use(adapter)
        self._end_loading(adapter)

    def set_failed(self, key: AdapterKey) -> None:
        """Notes that an adapter could not be read; it is tried again when a request needs it."""
        self._end_loading(self._adapters[key])

    # --- slots ---

    def scan(self) -> SlotScan:
        """Begins to look through the waiting requests, in the order of service."""
        return SlotScan(self._slots, self._closing)

    def end_scan(self, scan: SlotScan) -> None:
        """Remembers which slots are closed."""
        self._closing = scan.closed

    def can_start(self, request: Request, scan: SlotScan) -> bool:
        """Whether a request's adapter has a place, as far as the requests before it in this scan leave one."""
        if request.adapter is None:
            return True
        adapter = self._adapters[request.adapter]
        if adapter.is_resident and scan.has_place(adapter):
            return True
        if request.num_passes >= MAX_PASSES:
            needs_host = not (adapter.is_resident or adapter.is_loading or self._has_host_place)
            scan.clear_place(adapter, needs_host=needs_host)
        return False

    def start(self, request: Request) -> int:
        """Gives the adapter of a request that starts a slot, if it has none; returns the slot."""
        if request.adapter is None:
            return 0
        adapter = self._adapters[request.adapter]
        assert adapter.is_resident, f"{request} starts without its adapter."
        if not adapter.slot:
            slot = self._take_slot()
            adapter.slot, self._slots[slot] = slot, adapter
            self._changes[slot] = adapter.key
        adapter.running[request.request_id] = request
        self._use(adapter)
        return adapter.slot

    def stop(self, request: Request) -> None:
        """Notes that a request runs no more."""
        if request.adapter is not None:
            adapter = self._adapters[request.adapter]
            adapter.running.pop(request.request_id, None)
            self._use(adapter)

    def take_changes(self) -> dict[int, AdapterKey]:
        """Returns which slots got another adapter since the last call."""
        changes, self._changes = self._changes, {}
        return changes

    def resend(self) -> None:
        """Says again what every slot holds, because the runner may not have taken it in."""
        self._changes = {adapter.slot: adapter.key for adapter in self._slots if adapter is not None}

    def standings(self, waiting: Mapping[AdapterKey, int]) -> list[AdapterUse]:
        """How all adapters stand.

        Args:
            waiting: adapter -> waiting requests that name it.
        """
        return [
            AdapterUse(*key, adapter.tier, adapter.num_bytes, len(adapter.running), waiting.get(key, 0))
            for key, adapter in self._adapters.items()
        ]

    def _wanted(self, waiting: Iterable[Request]) -> dict[AdapterKey, None]:
        """Adapters that should be in host memory, the most urgent first, no more than it holds."""
        wanted = {
            key: None
            for key, adapter in self._adapters.items()
            if (adapter.running or adapter.is_pinned) and not adapter.is_superseded
        }
        wanted |= dict.fromkeys(self._asked)
        for request in waiting:
            if len(wanted) >= self._max_host:
                break
            if request.adapter is not None:
                wanted[request.adapter] = None
        return wanted

    def _find_superseded(self, adapter_id: int) -> None:
        """Notes which generations of an adapter are not its latest one that is known."""
        known = [adapter for adapter in self._adapters.values() if adapter.key[0] == adapter_id]
        latest = max((adapter.key for adapter in known), default=None)
        for adapter in known:
            adapter.is_superseded = adapter.key != latest

    def _give_up_asked(self) -> None:
        """Lets nobody wait for what has no place."""
        self._asked = [key for key in self._asked if self._adapters[key].is_loading]

    @property
    def _has_host_place(self) -> bool:
        """Whether host memory has a place that neither a running request nor a pin holds."""
        held = (one for one in self._adapters.values() if (one.running or one.is_pinned) and not one.is_superseded)
        return sum(1 for _ in held) < self._max_host

    def _end_loading(self, adapter: _Adapter) -> None:
        adapter.is_loading = False
        if adapter.key in self._asked:
            self._asked.remove(adapter.key)

    def _take_slot(self) -> int:
        """Returns a slot that no running request uses, empty afterwards."""
        for slot in range(1, len(self._slots)):
            if self._slots[slot] is None:
                return slot
        victim = self._least_recently_used(adapter for adapter in self._slots if adapter and not adapter.running)
        assert victim is not None, "A request starts although there is no slot for its adapter."
        slot = victim.slot
        self._leave_slot(victim)
        return slot

    def _leave_slot(self, adapter: _Adapter) -> None:
        if adapter.slot:
            self._slots[adapter.slot] = None
            self._changes.pop(adapter.slot, None)
            adapter.slot = 0

    def _leave_host(self, adapter: _Adapter) -> None:
        self.num_changes += 1
        self._leave_slot(adapter)
        adapter.num_bytes = 0

    def _use(self, adapter: _Adapter) -> None:
        """Notes that an adapter was loaded, or that a request with it has started or stopped."""
        self.num_changes += 1
        self._num_uses += 1
        adapter.last_used = self._num_uses

    def _least_recently_used(self, adapters: Iterable[_Adapter]) -> _Adapter | None:
        return min(adapters, key=lambda adapter: (adapter.is_pinned, adapter.last_used), default=None)


class SlotScan:
    """One look through the waiting requests: what those that wait for too long leave to the ones behind them.

    Args:
        slots: what each slot holds.
        preferred: slots that were closed before; they empty already.
    """

    def __init__(self, slots: list[_Adapter | None], preferred: set[int]) -> None:
        self._slots = slots
        self._preferred = preferred
        self._reserved: set[AdapterKey] = set()
        self._num_idle = sum(one is None or not one.running for one in slots[1:])
        """Slots that no running request uses."""
        self._num_reserved_idle = 0
        self.closed: set[int] = set()

    def has_place(self, adapter: _Adapter) -> bool:
        """Whether a request with this adapter may start; if so, it starts at once or ends the scan."""
        if adapter.slot and adapter.running:
            return adapter.slot not in self.closed
        if self._num_idle <= self._num_reserved_idle:
            return False
        self._num_idle -= 1
        return True

    def clear_place(self, adapter: _Adapter, *, needs_host: bool) -> None:
        """Keeps a slot for an adapter from the requests behind; closes one if none is free.

        Args:
            adapter: what has waited for too long.
            needs_host: host memory is full of adapters that run or are pinned: one that runs and is not has to go.
        """
        if adapter.key in self._reserved or (adapter.slot and adapter.running):
            return
        self._reserved.add(adapter.key)
        if self._num_idle > self._num_reserved_idle and not needs_host:
            self._num_reserved_idle += 1
            return
        open_slots = [one for one in self._slots if one and one.running and one.slot not in self.closed]
        if needs_host:
            open_slots = [one for one in open_slots if not (one.is_pinned or one.is_superseded)]
        if open_slots:
            chosen = min(open_slots, key=lambda one: (one.slot not in self._preferred, one.num_remaining_tokens))
            self.closed.add(chosen.slot)
