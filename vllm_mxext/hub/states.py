"""`judge()`: a profile and a machine become a state with its reasons, each a sentence with numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from vllm_mxext.config.machine import Memory
from vllm_mxext.config.memory_plan import format_bytes
from vllm_mxext.errors import ConfigError
from vllm_mxext.hub import native_plan
from vllm_mxext.hub.compatibility import device_groups, devices_needed, obstacles, shortage
from vllm_mxext.hub.estimate import estimate_files, estimate_shape, flags_of, memory_share
from vllm_mxext.hub.hardware import Hardware
from vllm_mxext.hub.judgement import Estimate, Judgement, State
from vllm_mxext.hub.manifest.model import ModelEntry, Profile
from vllm_mxext.hub.model_shape import ModelShape, parse_shape

LEAST_CONTEXT = 1024
"""Tokens below which a shorter context is no way to run a model, unless it has no more."""

_LENGTH_STEP = 16

_ORDER = tuple(State)


@dataclass(frozen=True, slots=True)
class _Demand:
    """What a profile asks of a device's memory.

    Attributes:
        length: tokens of the longest request; 0 if the model's shape is not known.
        least: tokens that it must have room for.
        longest: memory -> tokens of the longest request that fits, `length` at most; negative if nothing does.
        estimate: tokens, memory -> what it takes.
    """

    length: int
    least: int
    longest: Callable[[Memory], int]
    estimate: Callable[[int, Memory], Estimate | None]


@dataclass(frozen=True, slots=True)
class _Place:
    """Where it would run.

    Attributes:
        positions: of the devices; empty on the CPU.
        memory: of each device, or of the machine; available is the least of them.
        name: for people.
    """

    positions: tuple[int, ...]
    memory: Memory
    name: str


def judge(
    entry: ModelEntry,
    profile: Profile,
    hardware: Hardware,
    *,
    overrides: Mapping[str, Any] | None = None,
    is_stored: bool = False,
) -> Judgement:
    """Says whether a profile can run on a machine, and why.

    Args:
        entry: the model.
        profile: one of its profiles.
        hardware: the machine.
        overrides: flags that the user has set, with underscores: they count instead of the profile's own.
        is_stored: its files are here already, so that they need no disk space.
    """
    given = dict(overrides or {})
    effective = replace(profile, engine_args={**flags_of(profile), **given}) if given else profile
    has_fixed_length = isinstance(given.get("max_model_len"), int) and given["max_model_len"] > 0
    try:
        shape = parse_shape(entry.config) if entry.config else None
        reasons = obstacles(effective, hardware, shape)
        demand = None if reasons else _demand(entry, effective, hardware, shape)
    except ConfigError as error:
        return Judgement(profile, State.INCOMPATIBLE, (str(error),))
    if demand is None:
        return Judgement(profile, State.INCOMPATIBLE, tuple(reasons))
    if has_fixed_length:
        demand = replace(demand, least=demand.length)
    judged = []
    for place in _places(effective, hardware):
        judgement = _judge_place(effective, demand, place)
        shortages = _shortages(effective, hardware, judgement, is_stored=is_stored)
        if shortages:
            reasons = [*shortages, *judgement.reasons]
            judgement = replace(judgement, state=State.INSUFFICIENT, reasons=tuple(reasons), suggested={})
        judged.append(replace(judgement, profile=profile, available_bytes=place.memory.available_bytes))
    return min(judged, key=lambda judgement: _ORDER.index(judgement.state))


def _demand(entry: ModelEntry, profile: Profile, hardware: Hardware, shape: ModelShape | None) -> _Demand:
    """Returns what the profile asks for.

    Raises:
        ConfigError: the native engine does not run the model, or the profile's settings are wrong.
    """
    if shape is None:
        return _demand_of_files(entry, profile)
    if profile.tags.llm_engine == "native":
        config = native_plan.native_config(entry, profile, hardware)
        return _Demand(
            config.model.max_model_len,
            min(LEAST_CONTEXT, config.model.max_model_len),
            lambda memory: native_plan.longest_native(config, memory) or -1,
            lambda length, memory: native_plan.estimate_native(
                entry, profile, native_plan.shortened(config, length), memory
            ),
        )
    length = _length(profile, shape)

    def estimate(length: int, memory: Memory) -> Estimate:
        del memory
        return estimate_shape(entry, profile, shape, length)

    def longest(memory: Memory) -> int:
        room = min(int(memory.total_bytes * memory_share(profile)), memory.available_bytes)
        return _longest(length, lambda tokens: estimate(tokens, memory).device_total <= room)

    return _Demand(length, min(LEAST_CONTEXT, length), longest, estimate)


def _demand_of_files(entry: ModelEntry, profile: Profile) -> _Demand:
    estimate = estimate_files(entry, profile)

    def longest(memory: Memory) -> int:
        room = min(int(memory.total_bytes * memory_share(profile)), memory.available_bytes)
        return 0 if estimate is None or estimate.device_total <= room else -1

    return _Demand(0, 0, longest, lambda _length, _memory: estimate)


def _length(profile: Profile, shape: ModelShape) -> int:
    given = flags_of(profile).get("max_model_len")
    return given if isinstance(given, int) and given > 0 else shape.max_model_len


def _longest(length: int, fits: Callable[[int], bool]) -> int:
    """Returns the most tokens that fit: `length`, or a multiple of 16, or -1."""
    if fits(length):
        return length
    low, high = 0, -(-length // _LENGTH_STEP)  # in steps; `high` does not fit
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle * _LENGTH_STEP) else (low, middle)
    return low * _LENGTH_STEP or -1


def _places(profile: Profile, hardware: Hardware) -> list[_Place]:
    """Returns where the profile could run, what has most free memory first."""
    host = hardware.host
    if profile.device.kind == "cpu":
        return [_Place((), Memory(host.memory_bytes, host.memory_available_bytes), "main memory")]
    places = []
    for group in device_groups(profile, hardware):
        free = {position: hardware.devices[position].memory_available_bytes for position in group}
        chosen = sorted(group, key=lambda position: (-free[position], position))[: devices_needed(profile)]
        device = hardware.devices[chosen[0]]
        memory = Memory(device.memory_bytes, min(free[position] for position in chosen))
        places.append(_Place(tuple(sorted(chosen)), memory, f"memory of {device.name}"))
    return sorted(places, key=lambda place: (-place.memory.available_bytes, place.positions))


def _judge_place(profile: Profile, demand: _Demand, place: _Place) -> Judgement:
    memory, least = place.memory, demand.least
    empty = Memory(memory.total_bytes, memory.total_bytes)
    now = demand.longest(memory)
    if now >= least:
        estimate = demand.estimate(now, memory)
        if now >= demand.length:
            return _runnable(profile, demand, place, estimate)
        whole = demand.estimate(demand.length, memory)
        assert whole is not None
        limit = f"{format_bytes(memory.available_bytes)} are available"
        if whole.device_total <= memory.available_bytes:
            limit = f"it may take {memory_share(profile):.0%} of {format_bytes(memory.total_bytes)}"
        reason = (
            f"The whole context of {demand.length:,} tokens takes {format_bytes(whole.device_total)} of {place.name}, "
            f"of which {limit}; {now:,} tokens fit with --max-model-len {now}."
        )
        suggested = {"max-model-len": now}
        share = now / demand.length
        return Judgement(
            profile, State.REDUCED, (reason,), estimate, place.positions, suggested, share_of_context=share
        )
    smallest = demand.estimate(least, empty)
    takes = "more than there is" if smallest is None else format_bytes(smallest.device_total)
    context = f"With {least:,} tokens of context it" if least else "It"
    total = format_bytes(memory.total_bytes)
    if demand.longest(empty) >= least:
        reason = (
            f"{context} takes {takes} of {place.name}, and {format_bytes(memory.available_bytes)} of {total} are "
            "available; it can run when others use less."
        )
        return Judgement(profile, State.BUSY, (reason,), smallest, place.positions)
    limit = f"which is {total} in all"
    if smallest is not None and smallest.device_total <= memory.total_bytes:
        limit = f"of which it may take {memory_share(profile):.0%} of {total}"
    reason = f"{context} takes {takes} of {place.name}, {limit}."
    return Judgement(profile, State.INSUFFICIENT, (reason,), smallest, place.positions)


def _runnable(profile: Profile, demand: _Demand, place: _Place, estimate: Estimate | None) -> Judgement:
    available = format_bytes(place.memory.available_bytes)
    if estimate is None:
        reason = f"Nothing is known of its size; {available} of {place.name} are available."
        return Judgement(profile, State.RUNNABLE, (reason,), None, place.positions)
    parts = (
        ("weights", estimate.weights),
        (f"KV cache for {estimate.num_requests:g} x {demand.length:,} tokens", estimate.kv_cache),
        ("activations", estimate.activations),
        ("adapters", estimate.adapters),
        ("overhead", estimate.overhead),
    )
    listed = ", ".join(f"{name} {format_bytes(size)}" for name, size in parts if size)
    total = format_bytes(estimate.device_total)
    reason = f"It takes {total} of {place.name}, of which {available} are available: {listed}."
    if not demand.length:
        reason += " The KV cache is not counted, since the model's shape is not known."
    suggested = {}
    share = place.memory.available_bytes / max(place.memory.total_bytes, 1)
    if place.positions and profile.tags.llm_engine == "vllm" and share < memory_share(profile):
        suggested = {"gpu-memory-utilization": int(share * 100) / 100}  # it refuses to share what is in use
    return Judgement(profile, State.RUNNABLE, (reason,), estimate, place.positions, suggested)


def _shortages(profile: Profile, hardware: Hardware, judgement: Judgement, *, is_stored: bool) -> list[str]:
    """Returns what of device, host and disk is smaller than the profile says it needs, or than its files are."""
    host, estimate = hardware.host, judgement.estimate
    found = [shortage(profile.host.memory, host.memory_bytes, "main memory")]
    for position in judgement.device_indexes[:1]:
        device = hardware.devices[position]
        found.append(shortage(profile.device.min_memory, device.memory_bytes, f"memory of {device.name}"))
    if estimate is not None and profile.device.kind == "gpu" and estimate.host > host.memory_bytes:
        found.append(
            f"Its processes take {format_bytes(estimate.host)} of main memory, which is "
            f"{format_bytes(host.memory_bytes)}."
        )
    needed = max(profile.host.disk, 0 if estimate is None else estimate.disk)
    free = host.disk_available_bytes
    if not is_stored and free is not None and free < needed:
        found.append(
            f"Its files take {format_bytes(needed)}, and {format_bytes(free)} of disk are free for models; free some, "
            "for example with `mxext hub gc`, or name another folder with --download-dir."
        )
    return [sentence for sentence in found if sentence]
