"""`AsyncLLMEngine`: the native engine in a process of its own, for asynchronous programs."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Iterable, Iterator
from types import TracebackType
from typing import Any, Literal

from vllm_mxext.engine.client import EngineClient, EnginePhase
from vllm_mxext.engine.engine_args import EngineArgs
from vllm_mxext.engine.factory import create_engine_client
from vllm_mxext.engine.lora_requests import LoRARequests, name_in, source_of
from vllm_mxext.engine.prompts import PromptLike, parse_prompt, with_tokenization
from vllm_mxext.engine.refused_arguments import refuse_arguments
from vllm_mxext.errors import EngineDeadError, EngineNotReadyError, QueueFullError, UnsupportedFeatureError
from vllm_mxext.logger import init_logger
from vllm_mxext.observability.metrics import PrometheusMetrics
from vllm_mxext.observability.reading import Gauge, Metric, read_metrics
from vllm_mxext.outputs import RequestOutput
from vllm_mxext.requests import GenerateRequest, LoRARequest
from vllm_mxext.sampling_params import SamplingParams
from vllm_mxext.tokenizer.interface import Tokenizer

logger = init_logger(__name__)


class AsyncLLMEngine:
    """Asynchronous engine; the first request starts it. Call `shutdown()` at the end, or use it with `async with`.

    Args:
        client: the engine.
        metrics: what the engine reports its figures to.
    """

    def __init__(self, client: EngineClient, metrics: PrometheusMetrics | None = None) -> None:
        self._client = client
        self._metrics = metrics
        self._loras = LoRARequests()
        self._is_started = False
        self._is_shut_down = False
        self._open_ids: dict[str, int] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        self._resumed = asyncio.Event()
        self._resumed.set()

    @classmethod
    def from_engine_args(cls, engine_args: EngineArgs | None = None, **arguments: Any) -> AsyncLLMEngine:
        """Makes an engine from `EngineArgs` or the same arguments by name; nothing is loaded yet.

        Raises:
            ConfigError: an argument is unknown or wrong, or the checkpoint is.
        """
        given = {} if engine_args is None else engine_args.arguments
        config = EngineArgs(**{**given, **arguments}).resolve()
        model = config.engine.model
        metrics = PrometheusMetrics(model.served_model_names[0], model.max_model_len)
        return cls(create_engine_client(config.engine, config.frontend, recorder=metrics), metrics)

    @property
    def is_running(self) -> bool:
        """Whether the engine has been started and has neither been shut down nor lost."""
        return self._is_started and not self.is_stopped

    @property
    def is_stopped(self) -> bool:
        """Whether the engine has been shut down or lost."""
        return self._is_shut_down or self.errored

    @property
    def errored(self) -> bool:
        """Whether the engine is lost for good."""
        return self._client.status.phase is EnginePhase.DEAD

    @property
    def dead_error(self) -> EngineDeadError:
        """The error that requests get once the engine is lost."""
        return EngineDeadError(self._client.status.detail)

    async def start(self) -> None:
        """Starts the engine if that has not been done, and waits until it is ready.

        Raises:
            EngineDeadError: start-up failed; the text is the root cause.
        """
        if not self._is_started:
            self._is_started = True
            await self._client.start()
        await self._client.wait_until_ready()

    async def generate(
        self,
        prompt: PromptLike,
        sampling_params: SamplingParams,
        request_id: str,
        *,
        lora_request: LoRARequest | None = None,
        trace_headers: None = None,
        priority: int = 0,
        cache_salt: str | None = None,
        **further: Any,
    ) -> AsyncGenerator[RequestOutput, None]:
        """Yields the outputs of one request; leaving the loop aborts it. While generation is paused, it waits.

        Args:
            prompt: text, token ids, or a dictionary with `prompt` or `prompt_token_ids`.
            sampling_params: of the request.
            request_id: unique among open requests.
            lora_request: the adapter to use, which is loaded if it was not used before.
            trace_headers: not served yet.
            priority: lower is served first under the priority policy.
            cache_salt: requests share prefix blocks only with requests of the same salt.
            **further: `timeout_s` (see `GenerateRequest`), `tokenization_kwargs` (see `LLM.generate()`), and
                `session_id` and `data_parallel_rank` of vLLM, which choose among several engines; here is one.

        Raises:
            InvalidRequestError: the request cannot be served as it is.
            QueueFullError: too many requests are waiting.
            GenerationError: the request failed in the engine.
            EngineDeadError: the engine is gone for good.
        """
        further.pop("session_id", None)
        rank = further.pop("data_parallel_rank", None)
        refuse_arguments(trace_headers=trace_headers, data_parallel_rank=rank or None)
        (parsed,) = with_tokenization([parse_prompt(prompt)], further.pop("tokenization_kwargs", None))
        adapter = None if lora_request is None else lora_request.lora_name
        request = GenerateRequest(request_id, parsed, sampling_params, priority, cache_salt, adapter=adapter, **further)
        await self.start()
        await self._resumed.wait()
        with self._open(request_id):
            if lora_request is not None:
                await self.add_lora(lora_request)
            stream = await self._client.generate(request)
            try:
                async for output in stream:
                    if lora_request is not None:
                        name_in(output, lora_request)
                    yield output
            finally:
                await stream.aclose()

    async def add_lora(self, lora_request: LoRARequest) -> bool:
        """Loads an adapter ahead of its first use, and starts the engine for it; False if it is loaded already.

        Raises:
            AdapterConflictError: its number or name stands for another adapter.
            AdapterError: it cannot be loaded.
            UnsupportedFeatureError: the engine serves no adapters.
            EngineDeadError: the engine is gone for good.
        """
        if self._loras.is_loaded(lora_request):
            return False
        await self.start()
        await self._client.load_adapter(source_of(lora_request), replaces=lora_request.load_inplace)
        self._loras.add(lora_request)
        return True

    async def remove_lora(self, lora_id: int) -> bool:
        """Unloads an adapter; open requests go on with it. False if there is none of this number."""
        request = self._loras.get(lora_id)
        if request is None:
            return False
        self._loras.remove(request)
        await self._client.unload_adapter(request.lora_name)
        return True

    async def list_loras(self) -> set[int]:
        """Returns the numbers of the loaded adapters."""
        return self._loras.ids

    async def pin_lora(self, lora_id: int) -> bool:
        """Keeps an adapter in memory; False if there is none of this number.

        Raises:
            AdapterConflictError: its files have changed since it was loaded.
        """
        request = self._loras.get(lora_id)
        if request is None:
            return False
        await self._client.load_adapter(source_of(request), pins=True)
        return True

    async def abort(self, request_id: str | Iterable[str]) -> None:
        """Ends one or several requests with finish reason `abort`; unknown ids are ignored."""
        await self._client.abort([request_id] if isinstance(request_id, str) else list(request_id))

    async def check_health(self) -> None:
        """Returns if the engine answers.

        Raises:
            EngineDeadError: it does not.
        """
        await self._client.check_health()

    async def check_admission(self) -> None:
        """Returns if a request sent now would be taken, as far as that can be known without it.

        Raises:
            EngineNotReadyError: generation is paused, or the engine loads or has been shut down.
            EngineDeadError: the engine is gone for good.
            QueueFullError: too many requests are waiting.
        """
        status = self._client.status
        if self.errored:
            raise self.dead_error
        if self._is_shut_down or (self._is_started and not status.accepts_requests):
            raise EngineNotReadyError(f"The engine takes no requests now: {status.detail or status.phase.value}.")
        if not self._resumed.is_set():
            raise EngineNotReadyError("Generation is paused; call resume_generation().")
        limit = self._client.model.max_open_samples
        if limit is not None and self._num_open >= limit:
            raise QueueFullError(f"The queue is full: {self._num_open} requests are open, {limit} may.")

    async def pause_generation(self, *, mode: Literal["abort", "wait"] = "abort", clear_cache: bool = True) -> None:
        """Holds new requests back until `resume_generation()`, and returns when no request is open.

        Args:
            mode: `abort` ends open requests, `wait` lets them finish. vLLM's `keep`, which freezes them, is not served.
            clear_cache: forget cached blocks too.

        Raises:
            UnsupportedFeatureError: another mode.
        """
        if mode not in ("abort", "wait"):
            message = f"mode must be 'abort' or 'wait', got {mode!r}: requests cannot be frozen in this version."
            raise UnsupportedFeatureError(message, param="mode")
        self._resumed.clear()
        if mode == "abort":
            await self.abort(list(self._open_ids))
        await self._idle.wait()
        if clear_cache and self.is_running:
            await self.reset_prefix_cache()

    async def resume_generation(self) -> None:
        """Serves requests again, those first that have waited."""
        self._resumed.set()

    async def is_paused(self) -> bool:
        """Whether `pause_generation()` holds requests back."""
        return not self._resumed.is_set()

    async def wait_for_requests_to_drain(self, drain_timeout: float = 300) -> None:
        """Returns when no request is open.

        Args:
            drain_timeout: seconds to wait at most.

        Raises:
            TimeoutError: requests are still open then.
        """
        try:
            await asyncio.wait_for(self._idle.wait(), drain_timeout)
        except asyncio.TimeoutError:
            raise TimeoutError(f"{self._num_open} requests are still open after {drain_timeout:g} s.") from None

    async def do_log_stats(self) -> None:
        """Writes the engine's figures to the log, in one line."""
        found = {} if self._metrics is None else {m.name: m.value for m in self.get_metrics() if isinstance(m, Gauge)}
        logger.info(
            "Open requests: %d, running: %d, waiting: %d, KV cache in use: %.1f%%",
            self._num_open,
            found.get("vllm:num_requests_running", 0),
            found.get("vllm:num_requests_waiting", 0),
            100 * found.get("vllm:kv_cache_usage_perc", 0.0),
        )

    def get_metrics(self) -> list[Metric]:
        """Returns the figures that a server shows at `/metrics`."""
        return [] if self._metrics is None else read_metrics(self._metrics.registry)

    async def sleep(self, level: int = 1) -> None:
        """Refuses: the memory of the weights is not given back while the engine lives.

        Raises:
            UnsupportedFeatureError: always.
        """
        refuse_arguments(level=level)

    async def is_sleeping(self) -> bool:
        """Never: see `sleep()`."""
        return False

    async def get_tokenizer(self) -> Tokenizer:
        """Returns the model's tokenizer."""
        return self._client.tokenizer

    async def reset_prefix_cache(self) -> bool:
        """Forgets cached blocks, so that later requests find nothing computed before; False if that was refused."""
        return await self._client.reset_prefix_cache()

    async def shutdown(self, timeout: float | None = None) -> None:
        """Waits up to `timeout` seconds for open requests, aborts the rest, and stops the engine process."""
        self._is_shut_down = True
        await self._client.shutdown(timeout or 0.0)

    async def __aenter__(self) -> AsyncLLMEngine:
        """Starts the engine."""
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Shuts the engine down."""
        await self.shutdown()

    @property
    def _num_open(self) -> int:
        return sum(self._open_ids.values())

    @contextlib.contextmanager
    def _open(self, request_id: str) -> Iterator[None]:
        """Counts a request as open; its id may be in use, which the engine will say."""
        self._open_ids[request_id] = self._open_ids.get(request_id, 0) + 1
        self._idle.clear()
        try:
            yield
        finally:
            self._open_ids[request_id] -= 1
            if not self._open_ids[request_id]:
                del self._open_ids[request_id]
            if not self._open_ids:
                self._idle.set()
