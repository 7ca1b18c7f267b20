"""`AsyncVllmClient`: the resilient client for asynchronous programs, in the shape of OpenAI's.

    async with AsyncVllmClient("http://127.0.0.1:8000") as client:
        answer = await client.chat.completions.create(model="…", messages=[…])
        print(answer.choices[0].message.content, answer.answer.attempts)
        async for chunk in await client.chat.completions.create(model="…", messages=[…], stream=True):
            ...

Answers are dictionaries whose fields are attributes too (`document.Document`).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NoReturn

from vllm_mxext.client.breaker import BreakerConfig, CircuitBreaker
from vllm_mxext.client.call import Timeouts
from vllm_mxext.client.clock import Clock, SystemClock
from vllm_mxext.client.errors import ClientError
from vllm_mxext.client.http import check_address
from vllm_mxext.client.limiter import AdaptiveLimiter, LimiterConfig
from vllm_mxext.client.namespaces import (
    OPTION_NAMES,
    CallOptions,
    Chat,
    Completions,
    Embeddings,
    Models,
    Requests,
    timeouts_of,
)
from vllm_mxext.client.pipeline import Pipeline, PipelineConfig
from vllm_mxext.client.router import Endpoint
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
        url: of the server, with or without `/v1`.
        endpoint_id: its name.
        api_key: presented to it.
        breaker: when it is given up for a while.
        limiter: how many calls it gets at once.
        is_fallback: it is asked only while no other can be.
        clock: time and chance.

    Raises:
        ConfigError: address or key cannot be used.
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
    """Asks one or several servers with OpenAI's API, and survives what they do. An asynchronous context manager.

    It belongs to one event loop at a time; `VllmClient` is for programs without one.

    Args:
        base_url: of the server or of several alike ones, with or without `/v1`; `$VLLM_API_URL`, or this machine's port
            8000.
        api_key: presented to them; `$VLLM_API_KEY`.
        fallbacks: servers that are asked only while none of the others can be.
        timeout: limits of time; a number of seconds is that of a whole call; an `httpx.Timeout` will do.
        max_retries: attempts after the first, for faults that may pass.
        max_concurrent_requests: to each server at once, at most; 100.
        config: every setting of the policies (`hedge`, `budget`, `breaker`, …); what is given beside it wins.

    Attributes:
        pipeline: what calls go through; its `metrics` say how they went.
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
        self._set_up(Pipeline(endpoints, config), CallOptions())

    @classmethod
    def over(cls, pipeline: Pipeline, options: CallOptions | None = None) -> AsyncVllmClient:
        """Returns a client over a pipeline that is there already.

        Args:
            pipeline: what calls go through.
            options: of calls that bring none.
        """
        client = cls.__new__(cls)
        client._set_up(pipeline, options or CallOptions())
        return client

    def with_options(self, **options: Any) -> AsyncVllmClient:
        """Returns a client with other options for its calls, over the same connections.

        Args:
            options: those of `CallOptions`: `timeout`, `priority`, `affinity`, `max_retries`, ….

        Raises:
            ClientError: there is no such option.
        """
        unknown = sorted(options.keys() - set(OPTION_NAMES))
        if unknown:
            raise ClientError(f"There is no option '{unknown[0]}'; those known are {', '.join(OPTION_NAMES)}.")
        return self.over(self.pipeline, self._options.merged(options))

    async def close(self) -> None:
        """Closes the connections; what is under way ends with `ClosedError`. Shared by `with_options()`."""
        await self.pipeline.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError("A client has connections, which cannot be copied or pickled; make one in each process.")

    async def __aenter__(self) -> AsyncVllmClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _set_up(self, pipeline: Pipeline, options: CallOptions) -> None:
        self.pipeline = pipeline
        self._options = options
        requests = Requests(pipeline, options)
        self.chat = Chat(requests)
        self.completions = Completions(requests, "/v1/completions")
        self.embeddings = Embeddings(requests)
        self.models = Models(requests)
