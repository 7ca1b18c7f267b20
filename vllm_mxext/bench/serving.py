"""Measures a running server over HTTP: concurrent streams, times seen by the client, tokens counted by the server."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from vllm_mxext.bench.metrics import summarize
from vllm_mxext.errors import EngineError


@dataclass(frozen=True, slots=True)
class StreamTimes:
    """One request as the client saw it; seconds.

    Attributes:
        ttft_s: until the first text.
        e2e_s: until the stream ended.
        num_output_tokens: as the server's usage says (a chunk may carry several tokens).
    """

    ttft_s: float
    e2e_s: float
    num_output_tokens: int

    @property
    def tpot_s(self) -> float | None:
        """Time per output token after the first; None for a single token."""
        return (self.e2e_s - self.ttft_s) / (self.num_output_tokens - 1) if self.num_output_tokens > 1 else None


@dataclass(frozen=True, slots=True)
class ServingResult:
    """All requests of one run.

    Attributes:
        elapsed_s: from the first request to the last answer.
        streams: one entry per request.
    """

    elapsed_s: float
    streams: tuple[StreamTimes, ...]

    def figures(self) -> dict[str, Any]:
        """Returns throughput and the distributions of TTFT, TPOT and E2E for a report."""
        num_tokens = sum(stream.num_output_tokens for stream in self.streams)
        tpot = [stream.tpot_s for stream in self.streams if stream.tpot_s is not None]
        return {
            "elapsed_s": round(self.elapsed_s, 4),
            "output_tokens": num_tokens,
            "output_tokens_per_s": round(num_tokens / self.elapsed_s, 3),
            "requests_per_s": round(len(self.streams) / self.elapsed_s, 4),
            "ttft_s": summarize([stream.ttft_s for stream in self.streams]).as_dict(),
            "tpot_s": summarize(tpot).as_dict() if tpot else None,
            "e2e_s": summarize([stream.e2e_s for stream in self.streams]).as_dict(),
        }


async def measure_server(
    client: httpx.AsyncClient, bodies: Sequence[dict[str, Any]], concurrency: int, path: str = "/v1/completions"
) -> ServingResult:
    """Sends all requests, `concurrency` at a time, and times their streams.

    Args:
        client: with base address and key.
        bodies: request bodies; streaming and usage are switched on here.
        concurrency: open streams at most.
        path: completions or chat completions.

    Raises:
        EngineError: the server refused a request or a stream broke.
    """
    slots = asyncio.Semaphore(concurrency)

    async def one(body: dict[str, Any]) -> StreamTimes:
        async with slots:
            return await _stream(client, path, body)

    start = time.perf_counter()
    try:
        streams = await asyncio.gather(*(one(body) for body in bodies))
    except httpx.TransportError as error:
        raise EngineError(f"The connection to {client.base_url} broke: {error!r}.") from error
    return ServingResult(time.perf_counter() - start, tuple(streams))


async def _stream(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> StreamTimes:
    start = time.perf_counter()
    first_s: float | None = None
    usage: dict[str, Any] = {}
    request = {**body, "stream": True, "stream_options": {"include_usage": True}}
    async with client.stream("POST", path, json=request) as response:
        if response.is_error:
            raise EngineError(f"The server answered {response.status_code}: {(await response.aread())[:200]!r}")
        async for line in response.aiter_lines():
            if not line.startswith("data:") or line.endswith("[DONE]"):
                continue
            event = json.loads(line.removeprefix("data:"))
            if "error" in event:
                raise EngineError(f"A stream ended with an error: {event['error']}")
            usage = event.get("usage") or usage
            if first_s is None and any(_has_text(choice) for choice in event.get("choices", ())):
                first_s = time.perf_counter() - start
    e2e_s = time.perf_counter() - start
    if "completion_tokens" not in usage:
        raise EngineError("The server sent no usage; tokens cannot be counted.")
    return StreamTimes(e2e_s if first_s is None else first_s, e2e_s, int(usage["completion_tokens"]))


def _has_text(choice: dict[str, Any]) -> bool:
    return bool(choice.get("text") or choice.get("delta", {}).get("content"))
