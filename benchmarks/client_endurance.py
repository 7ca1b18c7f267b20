"""Thousands of calls through the client while the server is killed and started again; every call must end.

    python benchmarks/client_endurance.py --requests 10000 --restarts 5

The server of the built-in model answers chats and completions, streamed and not, from 64 callers at once; it is killed
with SIGKILL at even distances and started again on its port. A call ends with the answer that the server gives in
peace, or with a typed error; anything else, or a call that hangs, is a failure, and the exit code 1. Memory is that of
this process: after a warm-up, which fills connections, rings and figures, and then after every thousand calls; the
growth is the slope of a line through those. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

from vllm_mxext.bench.report import format_table, json_line
from vllm_mxext.bench.server_process import OUR_SERVER, reserved_port
from vllm_mxext.client.async_client import AsyncVllmClient
from vllm_mxext.client.call import Timeouts
from vllm_mxext.client.errors import ClientError, StreamInterruptedError

NUM_CALLERS = 64
MODEL = "mx-tiny"
HANG_S = 120.0
CALLS_PER_SAMPLE = 1000


@dataclass
class Tally:
    """What became of the calls."""

    outcomes: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    memory_mib: list[float] = field(default_factory=list)
    num_calls: int = 0

    def note_end(self) -> None:
        """Counts a call, and measures memory after every thousand."""
        self.num_calls += 1
        if self.num_calls % CALLS_PER_SAMPLE == 0:
            self.memory_mib.append(memory_mib())

    @property
    def growth_kib(self) -> float | None:
        """KiB per thousand calls; None if there are too few to tell."""
        if len(self.memory_mib) < 3:
            return None
        return 1024 * statistics.linear_regression(range(len(self.memory_mib)), self.memory_mib).slope


def memory_mib() -> float:
    """Returns the resident memory of this process."""
    gc.collect()
    return float(psutil.Process().memory_info().rss / 2**20)


def prompt(number: int) -> str:
    """Returns one of a hundred prompts."""
    return f"{number % 10} + {number // 10 % 10} ="


async def ask(client: AsyncVllmClient, number: int) -> str:
    """Asks in one of four ways and returns the text."""
    options = {"model": MODEL, "max_tokens": 8, "temperature": 0}
    completions: Any = client.completions if number % 4 < 2 else client.chat.completions
    is_stream = number % 2 == 1
    if number % 4 < 2:
        answer = await completions.create(prompt=prompt(number), stream=is_stream, **options)
        if not is_stream:
            return str(answer["choices"][0]["text"])
        return "".join([event["choices"][0]["text"] async for event in answer if event["choices"]])
    messages = [{"role": "user", "content": prompt(number)}]
    answer = await completions.create(messages=messages, stream=is_stream, **options)
    if not is_stream:
        return str(answer["choices"][0]["message"]["content"])
    return "".join([event["choices"][0]["delta"].get("content") or "" async for event in answer if event["choices"]])


async def caller(client: AsyncVllmClient, numbers: list[int], expected: dict[int, str], tally: Tally) -> None:
    """Asks one question after another."""
    while numbers:
        number = numbers.pop()
        try:
            text = await asyncio.wait_for(ask(client, number), HANG_S)
        except StreamInterruptedError as error:
            tally.outcomes["StreamInterrupted"] += 1
            if not expected[number % 100 * 4 + number % 4].startswith(error.text):
                tally.wrong.append(f"{number}: partial text {error.text!r}")
        except ClientError as error:
            tally.outcomes[type(error).__name__] += 1
            await asyncio.sleep(min(1.0, max(0.05, getattr(error, "retry_after_s", 0.0))))
        except Exception as error:
            tally.wrong.append(f"{number}: {type(error).__name__}: {error}")
        else:
            tally.outcomes["answer"] += 1
            if text != expected[number % 100 * 4 + number % 4]:
                tally.wrong.append(f"{number}: {text!r}")
        tally.note_end()


async def call_all(client: AsyncVllmClient, numbers: list[int], expected: dict[int, str], tally: Tally) -> None:
    """Asks all questions, from many callers at once."""
    await asyncio.gather(*(caller(client, numbers, expected, tally) for _ in range(NUM_CALLERS)))


class Server:
    """The server on one port, whichever process it is."""

    def __init__(self, log: Path) -> None:
        self._reservation = ExitStack()  # as long as the process lives
        self.port = self._reservation.enter_context(reserved_port())
        self.url = f"http://127.0.0.1:{self.port}"
        self._log = log.open("ab")
        self.start()

    def start(self) -> None:
        """Starts a process."""
        command = [*OUR_SERVER, "--host", "127.0.0.1", "--port", str(self.port)]
        self._process = subprocess.Popen(command, stdout=self._log, stderr=subprocess.STDOUT)

    async def wait(self) -> None:
        """Returns when it answers."""
        async with httpx.AsyncClient(trust_env=False) as client:
            while True:
                try:
                    if (await client.get(f"{self.url}/v1/health/ready")).is_success:
                        return
                except httpx.TransportError:
                    pass
                await asyncio.sleep(0.05)

    def end(self, number: signal.Signals) -> None:
        """Ends the process."""
        self._process.send_signal(number)
        self._process.wait()


async def measure(num_warm: int, num_requests: int, num_restarts: int, log: Path) -> tuple[Tally, dict[str, Any]]:
    """Runs everything; returns what became of the calls, and figures."""
    server = Server(log)
    await server.wait()
    tally = Tally()
    timeouts = Timeouts(connect=2.0, first_token=20.0, idle=20.0, total=60.0)
    async with AsyncVllmClient(server.url, timeout=timeouts) as client:
        expected = {number % 100 * 4 + number % 4: await ask(client, number) for number in range(400)}
        await call_all(client, list(range(num_warm)), expected, Tally())
        tally.memory_mib.append(memory_mib())
        began_s = time.monotonic()
        numbers = list(range(num_requests))
        calls = asyncio.create_task(call_all(client, numbers, expected, tally))
        for restart in range(1, num_restarts + 1):
            while len(numbers) > num_requests * (1 - restart / (num_restarts + 1)):  # noqa: ASYNC110 - callers do not tell
                await asyncio.sleep(0.02)
            await asyncio.to_thread(server.end, signal.SIGKILL)
            await asyncio.sleep(1.0)
            server.start()
            await server.wait()
        await calls
        seconds = time.monotonic() - began_s
        figures = client.pipeline.metrics.snapshot()
    await asyncio.to_thread(server.end, signal.SIGTERM)
    left = len(asyncio.all_tasks()) - 1
    return tally, {
        "seconds": round(seconds, 1),
        "memory_mib": [round(one, 2) for one in tally.memory_mib],
        "growth_kib_per_1000_calls": None if tally.growth_kib is None else round(tally.growth_kib, 1),
        "tasks_left": left,
        "retries": figures.get("retries", 0),
    }


def main() -> int:
    """Prints what became of the calls."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--warm-up", type=int, default=4_000)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--restarts", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tally, figures = asyncio.run(
            measure(arguments.warm_up, arguments.requests, arguments.restarts, Path(folder, "log"))
        )
    print(format_table(("outcome", "calls"), sorted(tally.outcomes.items())))
    print(format_table(("figure", "value"), list(figures.items())))
    print(*tally.wrong[:20], sep="\n")
    config = {
        "warm_up": arguments.warm_up,
        "requests": arguments.requests,
        "restarts": arguments.restarts,
        "callers": NUM_CALLERS,
    }
    print(
        json_line("client_endurance", config, {**figures, "outcomes": dict(tally.outcomes), "wrong": len(tally.wrong)})
    )
    is_whole = sum(tally.outcomes.values()) == arguments.requests
    return 0 if is_whole and not tally.wrong and not figures["tasks_left"] else 1


if __name__ == "__main__":
    sys.exit(main())
