"""Messages between the front process and the core process, as msgpack."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import msgspec

from vllm_mxext.config.engine import EngineConfig
from vllm_mxext.native.protocol import AdapterUse, EngineCoreOutputs, EngineCoreRequest

StartPhase = Literal["loading", "warming up"]

EXIT_REPORTED = 70
"""Exit code of a core process whose last message is `Failed`, so that the front waits for it."""


class Start(msgspec.Struct, tag="start", array_like=True, frozen=True):
    """First message to the core: load this engine.

    Attributes:
        config: `encode_config()` of its configuration.
    """

    config: bytes


class AddRequests(msgspec.Struct, tag="add", array_like=True, frozen=True):
    """Take these requests into the queue, in this order."""

    requests: list[EngineCoreRequest]


class Abort(msgspec.Struct, tag="abort", array_like=True, frozen=True):
    """Stop work on these requests; unknown ids are ignored."""

    request_ids: list[str]


class ResetPrefixCache(msgspec.Struct, tag="reset_prefix_cache", array_like=True, frozen=True):
    """Forget cached blocks; answered by `PrefixCacheReset` of the same `call_id`."""

    call_id: int


class AdapterSpec(msgspec.Struct, array_like=True, frozen=True):
    """An adapter that requests may name.

    Attributes:
        adapter_id: a number, never used again in the life of a server.
        generation: grows when other weights are loaded under its name.
        name: for messages to people.
        path: its files.
        format: of these, one of `AdapterFormat`.
        fingerprint: of these when they were checked; if they are written later, they are not this generation any more.
        is_pinned: it stays in host memory.
    """

    adapter_id: int
    generation: int
    name: str
    path: str
    format: str
    fingerprint: str
    is_pinned: bool = False


class LoadAdapter(msgspec.Struct, tag="load_adapter", array_like=True, frozen=True):
    """Requests may name this adapter from now on; answered by `AdapterDone` of the same `call_id`.

    Attributes:
        call_id: 0 = no answer is wanted.
        spec: the adapter; one that is known already takes its new `is_pinned`.
        reads_now: read its weights before the answer; otherwise when a request needs them.
    """

    call_id: int
    spec: AdapterSpec
    reads_now: bool = True


class DropAdapter(msgspec.Struct, tag="drop_adapter", array_like=True, frozen=True):
    """Forget an adapter that no open request names, and give its memory back; answered by `AdapterDone`."""

    call_id: int
    adapter_id: int
    generation: int


class Stop(msgspec.Struct, tag="stop", array_like=True, frozen=True):
    """Exit now with code 0."""


class Hello(msgspec.Struct, tag="hello", array_like=True, frozen=True):
    """First message of the core: connected, before anything slow is imported."""

    process_id: int


class Progress(msgspec.Struct, tag="progress", array_like=True, frozen=True):
    """How start-up goes.

    Attributes:
        phase: what is being done.
        fraction: 0 to 1 within the phase.
    """

    phase: StartPhase
    fraction: float


class CoreInfo(msgspec.Struct, array_like=True, frozen=True):
    """What the core knows once it is loaded.

    Attributes:
        num_blocks: KV blocks that can be used.
        block_size: token positions per block.
        kernels: name of the kernel set.
        is_batch_invariant: whether a row's result is the same bits whatever else is in the batch.
    """

    num_blocks: int
    block_size: int
    kernels: str = ""
    is_batch_invariant: bool = True


class Ready(msgspec.Struct, tag="ready", array_like=True, frozen=True):
    """Requests are served from now on."""

    info: CoreInfo


class StepOutputs(msgspec.Struct, tag="outputs", array_like=True, frozen=True):
    """What one engine step brought."""

    outputs: EngineCoreOutputs


class Alive(msgspec.Struct, tag="alive", array_like=True, frozen=True):
    """Sent every few seconds by a core without work, so that silence always means trouble."""


class PrefixCacheReset(msgspec.Struct, tag="prefix_cache_reset", array_like=True, frozen=True):
    """Answer to `ResetPrefixCache`; `done` says whether the cache was emptied."""

    call_id: int
    done: bool


class AdapterDone(msgspec.Struct, tag="adapter_done", array_like=True, frozen=True):
    """Answer to `LoadAdapter` and `DropAdapter`.

    Attributes:
        call_id: of the question.
        error: why it was not done; then the adapter is unknown.
        adapters: how all known adapters stand afterwards.
    """

    call_id: int
    error: str | None
    adapters: list[AdapterUse]


class Failed(msgspec.Struct, tag="failed", array_like=True, frozen=True):
    """Last message of a core that cannot go on.

    Attributes:
        error_type: class name of the root cause.
        message: its text.
        is_config_error: the user's configuration is to blame; trying again cannot help.
    """

    error_type: str
    message: str
    is_config_error: bool = False


ToCore = Start | AddRequests | Abort | ResetPrefixCache | LoadAdapter | DropAdapter | Stop
Answer = PrefixCacheReset | AdapterDone
FromCore = Hello | Progress | Ready | StepOutputs | Alive | PrefixCacheReset | AdapterDone | Failed


def encode_config(config: EngineConfig) -> bytes:
    """Writes an engine configuration as JSON."""
    return msgspec.json.encode(config, enc_hook=_encode_path)


def decode_config(data: bytes) -> EngineConfig:
    """Reads what `encode_config()` wrote."""
    return msgspec.json.decode(data, type=EngineConfig, dec_hook=_decode_path)


def _encode_path(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    raise NotImplementedError(f"A {type(value).__name__} cannot be sent to the core process.")


def _decode_path(kind: type, value: Any) -> Any:
    if kind is Path:
        return Path(value)
    raise NotImplementedError(f"A {kind.__name__} cannot be received by the core process.")
