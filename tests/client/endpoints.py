"""Endpoints and pipelines as the tests of the client want them: quick to try again, and with limits nobody reaches."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import replace
from typing import Any

from vllm_mxext.client.breaker import BreakerConfig, CircuitBreaker
from vllm_mxext.client.call import Call, Timeouts
from vllm_mxext.client.clock import Clock, SystemClock
from vllm_mxext.client.limiter import AdaptiveLimiter, LimiterConfig
from vllm_mxext.client.pipeline import Pipeline, PipelineConfig
from vllm_mxext.client.retry import RetryPolicy
from vllm_mxext.client.router import Endpoint

QUICK = PipelineConfig(
    timeouts=Timeouts(connect=60.0, first_token=60.0, idle=60.0, total=120.0),
    retry=RetryPolicy(max_retries=2, first_delay_s=0.001, max_delay_s=0.002),
)


def endpoint(url: str, name: str = "", *, breaker: BreakerConfig | None = None, **fields: Any) -> Endpoint:
    """Returns an endpoint."""
    clock: Clock = SystemClock()
    return Endpoint(
        id=name or url,
        url=url,
        breaker=CircuitBreaker(breaker or BreakerConfig(), clock),
        limiter=AdaptiveLimiter(LimiterConfig(), clock),
        **fields,
    )


def pipeline(*urls: str, timeouts: Timeouts | None = None, **changes: Any) -> Pipeline:
    """Returns a pipeline that waits for nothing long."""
    config = replace(QUICK, timeouts=timeouts or QUICK.timeouts, **changes)
    return Pipeline([endpoint(url, f"e{number}") for number, url in enumerate(urls)], config)


def chat(*, stream: bool = False, **fields: Any) -> Call:
    """Returns a call for a chat completion."""
    body: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "What is it?"}]}
    if stream:
        body["stream"] = True
    return Call("/v1/chat/completions", body, model="m", is_stream=stream, **fields)


_HELD: list[socket.socket] = []
"""Sockets of closed ports, kept to the end so that nobody else is given one."""


def closed_port() -> str:
    """Returns an address at which nobody listens, and nobody ever will."""
    held = socket.socket()
    held.bind(("127.0.0.1", 0))
    _HELD.append(held)
    return f"http://127.0.0.1:{held.getsockname()[1]}"


async def text_of(client: Pipeline) -> str:
    """Returns the text of a streamed answer."""
    events = [event async for event in client.stream(chat(stream=True))]
    return "".join(event["choices"][0]["delta"].get("content", "") for event in events)


async def until_idle(client: Pipeline) -> None:
    """Waits until nothing of a call is left in a pipeline, where what is left ends by itself."""
    while (  # noqa: ASYNC110 - only tests that fail wait long
        client.num_running or client.num_queued or any(one.outstanding_tokens for one in client.endpoints)
    ):
        await asyncio.sleep(0.001)


def assert_idle(client: Pipeline) -> None:
    """Fails if anything of a call is left in a pipeline."""
    assert client.num_running == 0
    assert client.num_queued == 0
    assert all(one.outstanding_tokens == 0 for one in client.endpoints)
