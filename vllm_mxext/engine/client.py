"""`EngineClient`: the one interface through which servers and tools reach an engine."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from vllm_mxext.outputs import RequestOutput
from vllm_mxext.requests import BeamSearchRequest, GenerateRequest
from vllm_mxext.tokenizer.interface import Tokenizer


class EnginePhase(str, Enum):
    """Where an engine stands in its life."""

    STARTING = "starting"
    LOADING = "loading"
    WARMING_UP = "warming up"
    READY = "ready"
    STALLED = "stalled"
    RESTARTING = "restarting"
    DRAINING = "draining"
    DEAD = "dead"


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """What an engine says of itself.

    Attributes:
        phase: where it stands.
        progress: 0 to 1 within start-up; 1 when ready.
        detail: one sentence, for example the root cause when dead.
        phase_seconds: finished start-up phases and how long each took, for logs and `/health`.
    """

    phase: EnginePhase
    progress: float = 0.0
    detail: str = ""
    phase_seconds: tuple[tuple[str, float], ...] = ()

    @property
    def accepts_requests(self) -> bool:
        """Whether `generate()` takes requests; while restarting, they wait and are served after."""
        return self.phase in (EnginePhase.READY, EnginePhase.RESTARTING)


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """The served model, known before the engine is ready.

    Attributes:
        served_names: names the API answers to; the first is reported.
        root: path or identifier of the checkpoint.
        max_model_len: tokens of prompt plus output at most.
        vocab_size: ids the model can read and write.
        max_logprobs: largest number of log probabilities per token; -1 = no limit.
        default_sampling: defaults from `generation_config.json` for fields the user leaves open.
        created_s: Unix time at which serving began.
        max_open_samples: samples that running and waiting requests may have together; None = no limit.
        num_draft_tokens: draft tokens of a request per step at most; 0 without speculation.
        max_loras: adapters that running requests may use at once; 0 = the engine serves no adapters.
        max_lora_rank: largest rank of an adapter; 0 without adapters.
    """

    served_names: tuple[str, ...]
    root: str
    max_model_len: int
    vocab_size: int
    max_logprobs: int
    default_sampling: dict[str, float | int]
    created_s: int
    max_open_samples: int | None = None
    num_draft_tokens: int = 0
    max_loras: int = 0
    max_lora_rank: int = 0


@dataclass(frozen=True, slots=True)
class AdapterSource:
    """An adapter to load.

    Attributes:
        name: what requests are to call it.
        path: its folder or file.
        format: of its files: `huggingface`, `nemo`, `trtllm` or `gguf`; None = found out.
        base_model_name: the model it was made for; only reported.
        description: for people.
    """

    name: str
    path: str
    format: str | None = None
    base_model_name: str | None = None
    description: str | None = None


@dataclass(frozen=True, slots=True)
class AdapterInfo:
    """A loaded adapter.

    Attributes:
        source: what it was loaded from; `format` is known.
        adapter_id: a number, never used again in the life of the engine.
        generation: grows when other weights are loaded under its name.
        rank: its largest rank.
        num_bytes: host memory its weights take now.
        tier: where they are: `slot`, `host` or `disk`.
        num_running: running requests that use it.
        num_waiting: queued requests that are going to.
        is_pinned: it stays in memory.
        loaded_at_s: Unix time at which it was loaded.
    """

    source: AdapterSource
    adapter_id: int
    generation: int
    rank: int
    num_bytes: int
    tier: str
    num_running: int
    num_waiting: int
    is_pinned: bool
    loaded_at_s: float

    @property
    def name(self) -> str:
        """What requests call it."""
        return self.source.name


class EngineClient(Protocol):
    """An engine that turns requests into token streams.

    A request that `generate()` has accepted (validation and admission passed, which happens before the first item is
    awaited) always ends with exactly one finish reason, also when the engine process dies in between.
    """

    @property
    def status(self) -> EngineStatus:
        """Where the engine stands now."""
        ...

    @property
    def model(self) -> ModelInfo:
        """The served model."""
        ...

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer with its chat template."""
        ...

    async def start(self) -> None:
        """Begins loading in the background and returns at once; `status` tells how it goes."""
        ...

    async def wait_until_ready(self) -> None:
        """Returns when requests are accepted.

        Raises:
            EngineDeadError: start-up failed; the text is the root cause.
        """
        ...

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[RequestOutput, None]:
        """Validates and admits `request`, then returns its output stream.

        Closing the generator (or cancelling the task that reads it) aborts the request within one engine step.

        Raises:
            InvalidRequestError: the request cannot be served as it is.
            QueueFullError: too many requests are waiting.
            EngineNotReadyError: loading or draining.
            EngineDeadError: the engine is gone for good.
            GenerationError: raised by the stream when this request failed in the engine.
            DeadlineExceededError: raised by the stream when the request's time was over before its first token.
        """
        ...

    async def beam_search(self, request: BeamSearchRequest) -> AsyncGenerator[RequestOutput, None]:
        """Validates and admits a beam search, which counts as `beam_width` samples, and returns a stream of one output.

        The stream ends the search and raises as that of `generate()` does.

        Raises:
            InvalidRequestError: the request cannot be served as it is.
            QueueFullError: too many requests are waiting.
            EngineNotReadyError: loading or draining.
            EngineDeadError: the engine is gone for good.
        """
        ...

    async def abort(self, request_ids: Sequence[str]) -> None:
        """Ends open requests with finish reason `abort`; unknown ids are ignored."""
        ...

    async def check_health(self) -> None:
        """Returns if the engine answers.

        Raises:
            EngineDeadError: it does not.
        """
        ...

    async def reset_prefix_cache(self) -> bool:
        """Forgets cached blocks, so that later requests find nothing computed before; False if that was refused."""
        ...

    @property
    def adapters(self) -> tuple[AdapterInfo, ...]:
        """The adapters that requests may name, in the order of loading."""
        ...

    def has_adapter(self, name: str) -> bool:
        """Whether requests may name this adapter; cheap, unlike a look through `adapters`."""
        ...

    async def load_adapter(self, source: AdapterSource, *, replaces: bool = False, pins: bool = False) -> AdapterInfo:
        """Checks an adapter's files, reads its weights and serves it from then on.

        With `replaces`, an adapter of the same name gives way: requests that are open go on with its old weights,
        later ones get the new ones. Loading a name again from the same unchanged files changes nothing but the pin.

        Raises:
            AdapterConflictError: the name is taken by another adapter, or by the model.
            AdapterError: the files are missing or broken, or do not fit the model or the limits.
            UnsupportedFeatureError: the engine serves no adapters.
            EngineDeadError: the engine is gone for good.
        """
        ...

    async def unload_adapter(self, name: str) -> AdapterInfo:
        """Takes a name away at once; the weights are given back when the last open request with them has ended.

        Returns how it stood. Without such requests the memory is back on return.

        Raises:
            AdapterNotFoundError: there is no adapter of this name.
        """
        ...

    def begin_drain(self) -> None:
        """Refuses new requests from now on; open ones go on."""
        ...

    async def shutdown(self, timeout_s: float = 0.0) -> None:
        """Waits up to `timeout_s` seconds for open requests, aborts the rest, and stops the engine process."""
        ...
