"""`AsyncLLMEngine`: the native engine in a process of its own, for asynchronous programs."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable
from types import TracebackType
from typing import Any

from vllm_mxext.engine.client import EngineClient, EnginePhase
from vllm_mxext.engine.engine_args import EngineArgs
from vllm_mxext.engine.factory import create_engine_client
from vllm_mxext.engine.prompts import PromptLike, parse_prompt
from vllm_mxext.errors import EngineDeadError
from vllm_mxext.outputs import RequestOutput
from vllm_mxext.requests import GenerateRequest
from vllm_mxext.sampling_params import SamplingParams
from vllm_mxext.tokenizer.interface import Tokenizer


class AsyncLLMEngine:
    """Asynchronous engine; the first request starts it. Call `shutdown()` at the end, or use it with `async with`.

    Args:
        client: the engine.
    """

    def __init__(self, client: EngineClient) -> None:
        self._client = client
        self._is_started = False
        self._is_shut_down = False

    @classmethod
    def from_engine_args(cls, engine_args: EngineArgs | None = None, **arguments: Any) -> AsyncLLMEngine:
        """Makes an engine from `EngineArgs` or the same arguments by name; nothing is loaded yet.

        Raises:
            ConfigError: an argument is unknown or wrong, or the checkpoint is.
        """
        given = {} if engine_args is None else engine_args.arguments
        config = EngineArgs(**{**given, **arguments}).resolve()
        return cls(create_engine_client(config.engine, config.frontend))

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
        priority: int = 0,
        cache_salt: str | None = None,
    ) -> AsyncGenerator[RequestOutput, None]:
        """Yields the outputs of one request; leaving the loop aborts it.

        Raises:
            InvalidRequestError: the request cannot be served as it is.
            QueueFullError: too many requests are waiting.
            GenerationError: the request failed in the engine.
            EngineDeadError: the engine is gone for good.
        """
        request = GenerateRequest(request_id, parse_prompt(prompt), sampling_params, priority, cache_salt)
        await self.start()
        stream = await self._client.generate(request)
        try:
            async for output in stream:
                yield output
        finally:
            await stream.aclose()

    async def abort(self, request_id: str | Iterable[str]) -> None:
        """Ends one or several requests with finish reason `abort`; unknown ids are ignored."""
        await self._client.abort([request_id] if isinstance(request_id, str) else list(request_id))

    async def check_health(self) -> None:
        """Returns if the engine answers.

        Raises:
            EngineDeadError: it does not.
        """
        await self._client.check_health()

    async def get_tokenizer(self) -> Tokenizer:
        """Returns the model's tokenizer."""
        return self._client.tokenizer

    async def reset_prefix_cache(self) -> bool:
        """Forgets cached blocks, so that later requests find nothing computed before; False if that was refused."""
        return await self._client.reset_prefix_cache()

    async def shutdown(self, timeout_s: float = 0.0) -> None:
        """Waits up to `timeout_s` seconds for open requests, aborts the rest, and stops the engine process."""
        self._is_shut_down = True
        await self._client.shutdown(timeout_s)

    async def __aenter__(self) -> AsyncLLMEngine:
        """Starts the engine."""
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Shuts the engine down."""
        await self.shutdown()
