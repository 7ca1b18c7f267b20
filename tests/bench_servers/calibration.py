"""How far the performance tester's figures are from the truth: `python -m tests.bench_servers.calibration`.

The mock server runs as a process of its own and notes when it sent what; both read the same monotonic clock.
Of the error of TTFT and E2E, `sent to received` is the way to the server and the queue before its reading, which a
client cannot tell from the server's work; `event's time` is the client's own part.
`--overhead` measures instead what one event costs the client, and what it would cost with httpx.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import httpx
import orjson
import uvloop

from tests.bench_servers.mock_server import Behaviour
from vllm_mxext.bench.metrics import percentile
from vllm_mxext.bench.report import format_table
from vllm_mxext.bench.serve import definitions
from vllm_mxext.bench.serve.address import Address
from vllm_mxext.bench.serve.plan import RequestPlan
from vllm_mxext.bench.serve.plan_reading import plan_from_mapping
from vllm_mxext.bench.serve.request import Reply, ask, request_body
from vllm_mxext.bench.serve.result import RequestRecord, RunResult
from vllm_mxext.bench.serve.runner import Runner
from vllm_mxext.bench.serve.statistics import stage_figures
from vllm_mxext.bench.serve.wire import Wire

_PATH = "/v1/chat/completions"


@dataclass(frozen=True, slots=True)
class Scenario:
    """A load and a server.

    Attributes:
        name: for the table.
        behaviour: of the server.
        sections: of the plan.
        count: requests.
    """

    name: str
    behaviour: Behaviour
    sections: dict[str, Any]
    count: int


SCENARIOS = (
    Scenario("1 at a time", Behaviour(0.02, 0.004), {"test_params": {"max_tokens": 50}}, 20),
    Scenario(
        "8 at a time, jitter",
        Behaviour(0.05, 0.01, jitter_s=0.005),
        {"test_params": {"max_tokens": 50, "concurrent_requests": 8}},
        64,
    ),
    Scenario(
        "32 at a time, 4 tokens per chunk",
        Behaviour(0.1, 0.04, tokens_per_chunk=4),
        {"test_params": {"max_tokens": 100, "concurrent_requests": 32}},
        96,
    ),
    Scenario(
        "Poisson, 20 requests/s",
        Behaviour(0.03, 0.005),
        {"test_params": {"max_tokens": 30}, "load": {"request_rate": 20.0}},
        80,
    ),
)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--overhead", action="store_true", help="cost of an event instead")
    if parser.parse_args().overhead:
        table = overhead()
    else:
        header = ("load", "figure", "true median", "error median", "error P99", "error max")
        rows = [row for scenario in SCENARIOS for row in calibrate(scenario)]
        table = format_table(header, rows)
    sys.stdout.write(table + "\n")


def calibrate(scenario: Scenario) -> Iterator[tuple[object, ...]]:
    """Yields one row per figure, times in milliseconds: measured less true, by the server's records."""
    with mock_process(scenario.behaviour) as url:
        prompts = [f"request {number}" for number in range(scenario.count)]
        sections = {"server": {"url": url, "model": "m"}, "prompts": prompts, **scenario.sections}
        runner, loop = Runner(plan_from_mapping(sections)), uvloop.new_event_loop()
        result = loop.run_until_complete(runner.run())
        loop.close()
        served = httpx.get(f"{url}/mock/records", trust_env=False).json()
    by_text = {one["body"]["messages"][0]["content"]: one for one in served}
    # Requests of a run are sent in the order of their prompts.
    pairs = [(record, by_text[f"request {number}"]) for number, record in enumerate(result.records)]
    origin = runner.origin_s
    late = [
        at + origin - true
        for record, one in pairs
        for at, true in zip(record.chunk_times_s, one["texts_s"], strict=True)
    ]
    yield (scenario.name, "event's time (ms)", "", *_spread(sorted(seconds * 1000 for seconds in late)))
    way = sorted((one["received_s"] - record.sent_s - origin) * 1000 for record, one in pairs)
    yield (scenario.name, "sent to received (ms)", "", *_spread(way))
    for name, measured, truth in _FIGURES:
        values = [(measured(record), truth(one)) for record, one in pairs]
        errors = sorted((seen - true) * 1000 for one, two in values for seen, true in zip(one, two, strict=True))
        true_values = sorted(true * 1000 for _, two in values for true in two)
        yield (scenario.name, f"{name} (ms)", percentile(true_values, 50), *_spread(errors))
    yield _throughput(scenario, result, served)


@contextmanager
def mock_process(behaviour: Behaviour) -> Iterator[str]:
    """Runs the mock server as a process and yields its address."""
    command = [sys.executable, "-m", "tests.bench_servers.mock_server", "--behaviour", json.dumps(asdict(behaviour))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.kill()


def overhead(streams: int = 64, tokens: int = 100) -> str:
    """Returns a table: processor time per event of our client and of httpx, events coming one by one."""
    rows = []
    with mock_process(Behaviour(gap_s=0.02, is_precise=False)) as url:
        body = request_body(RequestPlan(), "m", "hi", tokens)
        for name, client, makes_loop in _clients():
            loop = makes_loop()
            begun_s = time.process_time()
            num_events = loop.run_until_complete(client(url, body, streams))
            spent_s = time.process_time() - begun_s
            loop.close()
            rows.append((name, num_events, spent_s / num_events * 1e6, num_events / spent_s))
    return format_table((f"client, {streams} streams", "events", "microseconds/event", "events/s of one core"), rows)


def _clients() -> list[tuple[str, Callable[[str, bytes, int], Any], Callable[[], asyncio.AbstractEventLoop]]]:
    loop = uvloop.new_event_loop
    return [
        ("ours, uvloop", _ours, loop),
        ("ours, asyncio", _ours, asyncio.new_event_loop),
        ("httpx, uvloop", _httpx, loop),
        ("httpx, asyncio", _httpx, asyncio.new_event_loop),
    ]


async def _ours(url: str, body: bytes, streams: int) -> int:
    wire, replies = Wire(Address.parse(url)), [Reply() for _ in range(streams)]
    await asyncio.gather(*(ask(wire, RequestPlan(), body, reply) for reply in replies))
    wire.close()
    return sum(len(reply.chunk_times_s) for reply in replies)


async def _httpx(url: str, body: bytes, streams: int) -> int:
    limits = httpx.Limits(max_connections=None)

    async def one(client: httpx.AsyncClient) -> int:
        count = 0
        async with client.stream("POST", url + _PATH, content=body) as response:
            async for line in response.aiter_lines():
                if line.startswith("data:") and not line.endswith("[DONE]"):
                    event = orjson.loads(line[5:])
                    count += bool(event["choices"] and event["choices"][0]["delta"].get("content"))
        return count

    async with httpx.AsyncClient(limits=limits, timeout=None, trust_env=False) as client:
        return sum(await asyncio.gather(*(one(client) for _ in range(streams))))


def _gaps(times: Sequence[float]) -> list[float]:
    return [after - before for before, after in pairwise(times)]


def _sending_ttft(record: RequestRecord) -> list[float]:
    return [record.chunk_times_s[0] - record.sent_s]


_FIGURES: tuple[tuple[str, Callable[[RequestRecord], list[float]], Callable[[dict[str, Any]], list[float]]], ...] = (
    ("TTFT", _sending_ttft, lambda one: [one["texts_s"][0] - one["received_s"]]),
    (
        "TPOT",
        lambda record: [definitions.tpot_s(record) or 0.0],
        lambda one: [(one["ended_s"] - one["texts_s"][0]) / (one["num_tokens"] - 1)],
    ),
    (
        "E2E",
        lambda record: [record.ended_s - record.sent_s],
        lambda one: [one["ended_s"] - one["received_s"]],
    ),
    ("chunk gap", definitions.chunk_gaps_s, lambda one: _gaps(one["texts_s"])),
)


def _throughput(scenario: Scenario, result: RunResult, served: list[dict[str, Any]]) -> tuple[object, ...]:
    seconds = max(one["ended_s"] for one in served) - min(one["received_s"] for one in served)
    true = sum(one["num_tokens"] for one in served) / seconds
    error = stage_figures(result, 0).output_tokens_per_s - true
    return (scenario.name, "output tokens/s", true, error, error, error)


def _spread(errors: list[float]) -> tuple[float, float, float]:
    sizes = sorted(abs(error) for error in errors)
    return percentile(errors, 50), percentile(sizes, 99), sizes[-1]


if __name__ == "__main__":
    main()
