"""`AsyncVllmClient`: the resilient client for asynchronous programs, with OpenAI's interface and `VllmClient`'s calls.

    async with AsyncVllmClient("http://127.0.0.1:8000") as client:
        result = await client.run_inference("default", "What is machine learning?", {"max_tokens": 100})
        answer = await client.chat.completions.create(model="…", messages=[…])
        print(answer.choices[0].message.content, answer.answer.attempts)
        async for chunk in await client.chat.completions.create(model="…", messages=[…], stream=True):
            ...

Answers are dictionaries whose fields are attributes too (`document.Document`).
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NoReturn

from vllm_mxext.client.breaker import BreakerConfig, CircuitBreaker
from vllm_mxext.client.call import Timeouts
from vllm_mxext.client.clock import Clock, SystemClock
from vllm_mxext.client.embeddings import Embeddings, SharedInputs, shared_inputs
from vllm_mxext.client.errors import ClientError
from vllm_mxext.client.http import check_address
from vllm_mxext.client.inference import Inference, Inputs
from vllm_mxext.client.limiter import AdaptiveLimiter, LimiterConfig
from vllm_mxext.client.namespaces import (
    OPTION_NAMES,
    CallOptions,
    Chat,
    Completions,
    Models,
    Requests,
    timeouts_of,
)
from vllm_mxext.client.pipeline import Pipeline, PipelineConfig
from vllm_mxext.client.router import Endpoint
from vllm_mxext.client.sharing import BatchSettings
from vllm_mxext.errors import ConfigError

if TYPE_CHECKING:
    import httpx

DEFAULT_URL = "http://localhost:8000"
URL_VARIABLE, KEY_VARIABLE = "VLLM_API_URL", "VLLM_API_KEY"


def new_endpoint(
    url: str,
    endpoint_id: str,
    *,
    api_key: str = "",
    breaker: BreakerConfig | None = None,
    limiter: LimiterConfig | None = None,
    is_fallback: bool = False,
    clock: Clock | None = None,
) -> Endpoint:
    """Returns an endpoint with a breaker and a limiter of its own.

    Args:
        url: the server's URL, with or without `/v1`.
        endpoint_id: its name.
        api_key: presented to it.
        breaker: settings of its breaker.
        limiter: settings of its limiter.
        is_fallback: whether it is asked only while no other endpoint is available.
        clock: source of time and randomness.

    Raises:
        ConfigError: the URL or the key is invalid.
    """
    check_address(url, api_key)
    clock = clock or SystemClock()
    usual = PipelineConfig()
    return Endpoint(
        id=endpoint_id,
        url=url,
        api_key=api_key,
        is_fallback=is_fallback,
        breaker=CircuitBreaker(breaker or usual.breaker, clock),
        limiter=AdaptiveLimiter(limiter or usual.limiter, clock),
    )


class AsyncVllmClient:
    """A client for one or several servers with OpenAI's API that survives their failures. An async context manager.

    It belongs to one event loop at a time; `VllmClient` is for programs without one.

    Args:
        base_url: URL of the server, or of several equivalent ones, with or without `/v1`; `$VLLM_API_URL` by default,
            else port 8000 of this machine.
        api_key: presented to them; `$VLLM_API_KEY` by default.
        fallbacks: URLs of servers that are asked only while none of the others is available.
        timeout: time limits: seconds for a whole call, `Timeouts`, or an `httpx.Timeout`.
        max_retries: attempts after the first, for transient failures.
        max_concurrent_requests: most requests at each server at once; 100 by default.
        config: all settings of the policies (`hedge`, `budget`, `breaker`, …); other arguments take precedence.
        batches: how prompts of lists and of concurrent `run_inference()`, and texts of concurrent `embeddings`,
            share requests; by default they do not.

    Attributes:
        pipeline: sends the calls; its `metrics` tell how they went.
        batches: the same; can be changed.
        inference: what `run_inference()`, `run_each()` and `stream_generation()` call.
        chat: `chat.completions.create()`.
        completions: `completions.create()`.
        embeddings: `embeddings.create()`.
        models: `models.list()`, `models.retrieve()`.

    Raises:
        ConfigError: a setting is out of range.
    """

    def __init__(
        self,
        base_url: str | Sequence[str] | None = None,
        api_key: str | None = None,
        *,
        fallbacks: Sequence[str] = (),
        timeout: float | Timeouts | httpx.Timeout | None = None,
        max_retries: int | None = None,
        max_concurrent_requests: int | None = None,
        config: PipelineConfig | None = None,
        batches: BatchSettings | None = None,
    ) -> None:
        urls = base_url if base_url is not None else os.environ.get(URL_VARIABLE) or DEFAULT_URL
        urls = [urls] if isinstance(urls, str) else list(urls)
        if not urls:
            raise ConfigError("A client needs the address of a server.")
        key = api_key if api_key is not None else os.environ.get(KEY_VARIABLE, "")
        config = config or PipelineConfig()
        if max_concurrent_requests is not None:
            config = replace(config, limiter=replace(config.limiter, max_limit=max_concurrent_requests))
        if max_retries is not None:
            config = replace(config, retry=replace(config.retry, max_retries=max_retries))
        config = replace(config, timeouts=timeouts_of(timeout) or config.timeouts)
        endpoints = [
            new_endpoint(
                url,
                f"endpoint-{number}",
                api_key=key,
                breaker=config.breaker,
                limiter=config.limiter,
                is_fallback=number > len(urls),
            )
            for number, url in enumerate([*urls, *fallbacks], 1)
        ]
        self._begin(Pipeline(endpoints, config), CallOptions(), batches)

    @classmethod
    def over(
        cls, pipeline: Pipeline, options: CallOptions | None = None, batches: BatchSettings | None = None
    ) -> AsyncVllmClient:
        """Returns a client that uses an existing pipeline.

        Args:
            pipeline: sends the calls.
            options: defaults for the options of calls.
            batches: those of the constructor.
        """
        client = cls.__new__(cls)
        client._begin(pipeline, options or CallOptions(), batches)
        return client

    def with_options(self, **options: Any) -> AsyncVllmClient:
        """Returns a client with other default options for its calls, over the same connections.

        Args:
            options: those of `CallOptions`: `timeout`, `priority`, `affinity`, `max_retries`, ….

        Raises:
            ClientError: there is no such option.
        """
        unknown = sorted(options.keys() - set(OPTION_NAMES))
        if unknown:
            raise ClientError(f"There is no option '{unknown[0]}'; those known are {', '.join(OPTION_NAMES)}.")
        client = type(self).__new__(type(self))
        client._set_up(self.inference, self._inputs, self._options.merged(options))
        return client

    async def run_inference(
        self,
        model_id: str | None = None,
        inputs: Inputs = "",
        parameters: Mapping[str, Any] | None = None,
        priority: int | None = None,
    ) -> Any:
        """Returns `{"text", "metadata": {"finish_reason", "model", "usage"}}`; for several prompts, a list of them.

        Args:
            model_id: name of the model; `default` = whichever the server serves.
            inputs: a prompt, a list of prompts, or a conversation.
            parameters: fields of the request: `temperature`, `max_tokens`, …, and options: `timeout`, `max_retries`, ….
            priority: 0 high, 1 normal, 2 low; one in the parameters takes precedence; None = that of the options.

        Raises:
            ConfigError: an option is out of range.
            ClientError: there is no answer; its class says why.
        """
        return await self.inference.run(model_id or "", inputs, parameters or {}, self._own(priority))

    async def run_each(
        self, model_id: str | None, prompts: Sequence[str], parameters: Mapping[str, Any] | None = None
    ) -> list[Any]:
        """Returns a result or an error (an exception, not raised) for each prompt, in their order."""
        return await self.inference.run_all(model_id or "", prompts, parameters or {}, self._own(None))

    def stream_generation(
        self,
        model_id: str | None = None,
        inputs: Inputs = "",
        parameters: Mapping[str, Any] | None = None,
        priority: int | None = None,
    ) -> AsyncGenerator[str, None]:
        """Yields the answer's text as it arrives; see `run_inference()`.

        Raises:
            StreamInterruptedError: it broke off; `text` is what was received.
            ClientError: it did not begin.
        """
        return self.inference.stream(model_id or "", inputs, parameters or {}, self._own(priority))

    def get_metrics(self, reset: bool = False) -> dict[str, Any]:
        """Returns the metrics of all calls; `reset` sets them to zero in the same step."""
        return self.pipeline.metrics.snapshot(reset=reset)

    async def close(self) -> None:
        """Closes the connections, also for clients from `with_options()`; calls under way end with `ClosedError`."""
        await self.inference.close()
        await self._inputs.close()
        await self.pipeline.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError("A client has connections, which cannot be copied or pickled; make one in each process.")

    async def __aenter__(self) -> AsyncVllmClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _begin(self, pipeline: Pipeline, options: CallOptions, batches: BatchSettings | None) -> None:
        batches = batches or BatchSettings(is_enabled=False)  # as in OpenAI's client, every call has its own usage
        inference = Inference(pipeline, Requests(pipeline, CallOptions()), batches)
        self._set_up(inference, shared_inputs(pipeline, batches), options)

    def _set_up(self, inference: Inference, inputs: SharedInputs, options: CallOptions) -> None:
        self.pipeline = inference.pipeline
        self.inference = inference
        self.batches = inputs.batches
        self._inputs = inputs
        self._options = options
        requests = Requests(self.pipeline, options)
        self.chat = Chat(requests)
        self.completions = Completions(requests, "/v1/completions")
        self.embeddings = Embeddings(requests, inputs)
        self.models = Models(requests)

    def _own(self, priority: int | None) -> dict[str, Any]:
        options = {name: getattr(self._options, name) for name in OPTION_NAMES}
        return options if priority is None else {**options, "priority": priority}
