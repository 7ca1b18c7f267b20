"""`Judgement` and `Selection`: what is thought of a profile on a machine, and which one was chosen, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from vllm_mxext.hub.manifest.model import Goal, ModelEntry, Profile


class State(str, Enum):
    """Whether a profile can run on a machine."""

    RUNNABLE = "runnable"
    REDUCED = "reduced"
    """Runs with a shorter context than the model has."""
    BUSY = "busy"
    """Would run if others did not use the memory now."""
    INSUFFICIENT = "insufficient"
    """Memory or disk are too small."""
    INCOMPATIBLE = "incompatible"
    """Another kind of hardware or engine is needed."""

    @property
    def can_run(self) -> bool:
        """Whether the server would start now."""
        return self in (State.RUNNABLE, State.REDUCED)


@dataclass(frozen=True, slots=True)
class Estimate:
    """Memory that a profile takes, in bytes.

    Attributes:
        weights: on one device.
        kv_cache: on one device, for `max_model_len` tokens of as many requests as `num_requests`.
        activations: on one device.
        adapters: on one device.
        overhead: on one device: context of the driver, graphs, allocator.
        host: in main memory besides the above.
        disk: files to download or keep.
        max_model_len: tokens of the longest request.
        num_requests: longest requests that the KV cache holds.
    """

    weights: int
    kv_cache: int
    activations: int
    adapters: int
    overhead: int
    host: int
    disk: int
    max_model_len: int
    num_requests: float

    @property
    def device_total(self) -> int:
        """Bytes on one device."""
        return self.weights + self.kv_cache + self.activations + self.adapters + self.overhead


@dataclass(frozen=True, slots=True)
class Judgement:
    """What is thought of one profile on one machine.

    Attributes:
        profile: which.
        state: whether it can run.
        reasons: why, a sentence each; the first is the decisive one.
        estimate: its memory; None if nothing is known of the model's shape.
        device_indexes: positions in `Hardware.devices` that it would use; empty on the CPU.
        suggested: flags that make it fit, for example `{"max-model-len": 8192}`.
        available_bytes: free now on each of the devices, or in main memory; 0 if it is incompatible.
        share_of_context: how much of the context that it is meant for fits now; 1 if all of it does.
    """

    profile: Profile
    state: State
    reasons: tuple[str, ...]
    estimate: Estimate | None = None
    device_indexes: tuple[int, ...] = ()
    suggested: Mapping[str, Any] = field(default_factory=dict)
    available_bytes: int = 0
    share_of_context: float = 1.0


@dataclass(frozen=True, slots=True)
class Ranking:
    """One profile's place.

    Attributes:
        judgement: what is thought of it.
        place: 1 = chosen; None = cannot run, or was filtered out.
        why: by which rule it lost to the chosen one, or why it was chosen or left out.
    """

    judgement: Judgement
    place: int | None
    why: str


@dataclass(frozen=True, slots=True)
class Selection:
    """The chosen profile and why.

    Attributes:
        model: of which model.
        goal: what was asked for.
        goal_origin: who asked.
        chosen: None if no profile can run.
        rankings: all profiles, the chosen one first, those that cannot run last.
        rules: the rules in the order of their weight, a sentence each.
    """

    model: ModelEntry
    goal: Goal
    goal_origin: str
    chosen: Judgement | None
    rankings: tuple[Ranking, ...]
    rules: tuple[str, ...]
