"""Processor time per call and per streamed event: our clients and those of the `openai` package, in turns.

    python benchmarks/client_overhead.py --rounds 7

One process asks a server with known delays in another one. A call is a short chat that is not streamed; an event's cost
is the difference between long and short streams. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import itertools
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import openai

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tester_peers import mock_server

from tests.bench_servers.mock_server import Behaviour
from vllm_mxext.bench.report import format_table, json_line
from vllm_mxext.client import AsyncVllmClient, VllmClient

BEHAVIOUR = Behaviour(gap_s=0.002, is_precise=False)
"""Events come one by one, as those of a model do."""

MESSAGES = [{"role": "user", "content": "What is 12 + 30, and why?"}]
CLIENTS = ("AsyncVllmClient", "AsyncOpenAI", "VllmClient", "OpenAI")

Measure = Callable[[int, int, bool], float]
"""Number of calls, tokens of each, whether streamed -> seconds of this process."""


def fields(tokens: int, is_stream: bool) -> dict[str, Any]:
    """Returns what every client is asked with."""
    return {"model": "m", "messages": MESSAGES, "max_tokens": tokens, "stream": is_stream}


def synchronous(client: Any) -> Measure:
    """Returns what measures a client without an event loop: one call after the other."""

    def measure(calls: int, tokens: int, is_stream: bool) -> float:
        begin = begun()
        for _ in range(calls):
            answer = client.chat.completions.create(**fields(tokens, is_stream))
            if is_stream:
                for _ in answer:
                    pass
        return time.process_time() - begin

    return measure


def asynchronous(client: Any, run: Callable[[Awaitable[None]], None], concurrency: int) -> Measure:
    """Returns what measures a client with an event loop: some calls at a time."""

    async def work(numbers: itertools.count[int], calls: int, tokens: int, is_stream: bool) -> None:
        while next(numbers) < calls:
            answer = await client.chat.completions.create(**fields(tokens, is_stream))
            if is_stream:
                async for _ in answer:
                    pass

    async def all_of(calls: int, tokens: int, is_stream: bool) -> None:
        numbers = itertools.count()
        await asyncio.gather(*(work(numbers, calls, tokens, is_stream) for _ in range(concurrency)))

    def measure(calls: int, tokens: int, is_stream: bool) -> float:
        begin = begun()
        run(all_of(calls, tokens, is_stream))
        return time.process_time() - begin

    return measure


def begun() -> float:
    """Returns the processor time so far, without what is left to collect from before."""
    gc.collect()
    return time.process_time()


def measured(arguments: argparse.Namespace, url: str) -> dict[str, dict[str, float]]:
    """Returns medians of microseconds by client."""
    loop = asyncio.new_event_loop()
    run = loop.run_until_complete
    clients: tuple[Any, ...] = (
        AsyncVllmClient(url),
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none"),
        VllmClient(base_url=url),
        openai.OpenAI(base_url=f"{url}/v1", api_key="none"),
    )
    measures: list[Measure] = [
        *(asynchronous(client, run, arguments.concurrency) for client in clients[:2]),
        *(synchronous(client) for client in clients[2:]),
    ]
    calls, streams, tokens = arguments.calls, arguments.streams, arguments.tokens
    costs: dict[str, list[tuple[float, float]]] = {name: [] for name in CLIENTS}
    for number in range(-1, arguments.rounds):  # the first round warms up
        for name, measure in zip(CLIENTS, measures, strict=True):
            call_s = measure(calls, 1, False) / calls
            event_s = (measure(streams, tokens, True) - measure(streams, 1, True)) / (streams * (tokens - 1))
            if number >= 0:
                costs[name].append((call_s * 1e6, event_s * 1e6))
        print(f"  {number + 1}/{arguments.rounds}", flush=True)
    for client in clients[:2]:
        run(client.close())
    for client in clients[2:]:
        client.close()
    loop.close()
    return {
        name: {
            "call_us": round(statistics.median(call for call, _ in runs), 1),
            "event_us": round(statistics.median(event for _, event in runs), 1),
            "call_us_least": round(min(call for call, _ in runs), 1),
            "event_us_least": round(min(event for _, event in runs), 1),
        }
        for name, runs in costs.items()
    }


def main() -> int:
    """Reads the arguments, measures and reports."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--calls", type=int, default=200, help="calls of a measurement")
    parser.add_argument("--streams", type=int, default=16, help="streams of a measurement")
    parser.add_argument("--tokens", type=int, default=128, help="of a long stream")
    parser.add_argument("--concurrency", type=int, default=16, help="calls at a time of asynchronous clients")
    parser.add_argument("--output", type=Path, help="file for the JSON object")
    arguments = parser.parse_args()
    with mock_server(BEHAVIOUR) as url:
        results = measured(arguments, url)
    header = ("client", "CPU us per call", "CPU us per event", "least", "least")
    print(format_table(header, [(name, *figures.values()) for name, figures in results.items()]))
    config = {name: getattr(arguments, name) for name in ("rounds", "calls", "streams", "tokens", "concurrency")}
    line = json_line("client_overhead", {**config, "openai": openai.__version__}, results)
    if arguments.output:
        arguments.output.write_text(line + "\n")
    print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
