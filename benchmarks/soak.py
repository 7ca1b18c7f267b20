"""Loads a server with thousands of requests of mixed kinds, many of which the client abandons, and looks for leaks.

    python benchmarks/soak.py --requests 5000

The server runs the built-in model with a small KV cache, so that preemption happens. Printed while it runs: resident
memory of the front and core processes. At the end: memory per phase, blocks in use, open requests, asyncio tasks and
file descriptors beside their values before the load. The last line is one JSON object; the exit code is 1 if something
is left over.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from vllm_mxext.bench.report import format_table, json_line
from vllm_mxext.bench.server_process import ServerProcess

WATCHED_SERVER = (sys.executable, str(Path(__file__).with_name("watched_server.py")))
FLAGS = (
    *("--max-num-seqs", "16", "--max-num-queued-reqs", "64"),
    *("--max-model-len", "512", "--num-gpu-blocks-override", "64"),
)
SETTLE_S = 60.0
MAX_GROWTH = 0.1
"""Resident memory may grow by this share from the end of the first fifth to the end."""

WORDS = "two plus three sort b a c copy this 12 + 30 = capital of France 北京 what is the next number 1 2 4 8".split()  # noqa: SIM905


@dataclass
class Soak:
    """One run: its client, its random numbers and what came of it."""

    client: httpx.AsyncClient
    model: str
    randomness: random.Random
    outcomes: Counter[str] = field(default_factory=Counter)

    def text(self, longest: int) -> str:
        """Returns random words."""
        return " ".join(self.randomness.choices(WORDS, k=self.randomness.randint(1, longest)))

    def sampling(self) -> dict[str, Any]:
        """Returns random sampling fields."""
        choose = self.randomness.choice
        return {
            "model": self.model,
            "max_tokens": self.randomness.randint(1, 96),
            "temperature": choose([0, 0.7, 1.3]),
            "seed": self.randomness.randint(0, 2**31),
            "top_p": choose([1.0, 0.9]),
            "ignore_eos": choose([True, False]),
            **choose([{}, {"top_k": 5}, {"min_p": 0.1}, {"repetition_penalty": 1.2}, {"stop": ["a", "1 2"]}]),
        }

    def chat(self, longest: int = 30) -> dict[str, Any]:
        """Returns the body of a chat request."""
        return {**self.sampling(), "messages": [{"role": "user", "content": self.text(longest)}]}

    async def whole_chat(self) -> str:
        """Asks for a chat answer in one piece."""
        return await self._post("/v1/chat/completions", self.chat())

    async def streamed_chat(self) -> str:
        """Reads a chat stream to its end."""
        return await self._stream("/v1/chat/completions", self.chat(), leave_after=None)

    async def abandoned_chat(self) -> str:
        """Leaves a chat stream after a few events."""
        return await self._stream("/v1/chat/completions", self.chat(), leave_after=self.randomness.randint(0, 20))

    async def abandoned_whole(self) -> str:
        """Closes the connection while the server computes an answer in one piece."""
        body = {**self.sampling(), "prompt": self.text(40), "ignore_eos": True, "max_tokens": 200}
        try:
            await asyncio.wait_for(self._post("/v1/completions", body), self.randomness.uniform(0.001, 0.3))
        except asyncio.TimeoutError:
            return "left"
        return "answered"

    async def several_prompts(self) -> str:
        """Asks for several prompts at once, with log probabilities."""
        prompts = [self.text(10) for _ in range(self.randomness.randint(1, 4))]
        return await self._post("/v1/completions", {**self.sampling(), "prompt": prompts, "logprobs": 3})

    async def several_samples(self) -> str:
        """Streams several samples of one prompt."""
        body = {**self.sampling(), "prompt": self.text(20), "n": 3, "temperature": 1.0}
        return await self._stream("/v1/completions", body, leave_after=None)

    async def long_prompt(self) -> str:
        """Sends a prompt of a few hundred tokens."""
        return await self._post("/v1/completions", {**self.sampling(), "prompt": self.text(80), "max_tokens": 8})

    async def wrong(self) -> str:
        """Sends a request that must be refused."""
        wrong: dict[str, Any] = self.randomness.choice(
            [{"temperature": 9}, {"max_tokens": 0}, {"model": "nobody"}, {"messages": []}, {"top_p": "x"}, {"n": 0}]
        )
        response = await self.client.post("/v1/chat/completions", json={**self.chat(), **wrong})
        return "refused" if 400 <= response.status_code < 500 else f"unexpected {response.status_code}"

    async def tokenize(self) -> str:
        """Asks for the tokens of a text."""
        return await self._post("/tokenize", {"model": self.model, "prompt": self.text(50)})

    async def _post(self, path: str, body: dict[str, Any]) -> str:
        response = await self.client.post(path, json=body)
        if response.status_code == 429:
            return "queue full"
        return "answered" if response.is_success else f"unexpected {response.status_code}: {response.text[:200]}"

    async def _stream(self, path: str, body: dict[str, Any], leave_after: int | None) -> str:
        num_events, last = 0, ""
        async with self.client.stream("POST", path, json={**body, "stream": True}) as response:
            if response.status_code == 429:
                return "queue full"
            if response.is_error:
                return f"unexpected {response.status_code}: {(await response.aread())[:200]!r}"
            if leave_after == 0:
                return "left"
            async for line in response.aiter_lines():
                if line.startswith("data:"):
                    last, num_events = line, num_events + 1
                if "error" in line[:16]:
                    return f"unexpected {line[:200]}"
                if num_events == leave_after:
                    return "left"
        return "answered" if last.endswith("[DONE]") else "unexpected end of stream"

    def kinds(self) -> tuple[Callable[[], Awaitable[str]], ...]:
        """Returns all kinds of requests, the common ones more than once."""
        common = (self.whole_chat, self.streamed_chat, self.streamed_chat, self.abandoned_chat, self.abandoned_chat)
        rare = (self.abandoned_whole, self.several_prompts, self.several_samples, self.long_prompt, self.wrong)
        return (*common, *rare, self.tokenize)


async def gauges(client: httpx.AsyncClient) -> dict[str, float]:
    """Returns the gauges that must be zero when nothing runs."""
    names = ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc")
    found = {}
    for line in (await client.get("/metrics")).text.splitlines():
        name = line.partition("{")[0]
        if name in names:
            found[name] = float(line.rpartition(" ")[2])
    return found


async def counter(client: httpx.AsyncClient, name: str) -> float:
    """Returns the sum of a counter over its labels."""
    lines = (await client.get("/metrics")).text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


def task_counts(server: ServerProcess, watch_file: Path) -> dict[str, int]:
    """Returns the asyncio tasks of the front process, by coroutine."""
    watch_file.unlink(missing_ok=True)
    os.kill(server.process.pid, signal.SIGUSR1)
    while not watch_file.exists():
        time.sleep(0.01)
    counts: dict[str, int] = json.loads(watch_file.read_text())
    return counts


def resident_mb(server: ServerProcess) -> list[float]:
    """Returns the resident memory of the front process and the core process."""
    return [round(process.memory_info().rss / 1e6, 1) for process in server.family()]


def open_files(server: ServerProcess) -> int:
    """Returns the open file descriptors of all processes."""
    return sum(process.num_fds() for process in server.family())


async def run(server: ServerProcess, watch_file: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Sends the load and returns what was seen."""
    limits = httpx.Limits(max_connections=arguments.concurrency, max_keepalive_connections=0)
    async with httpx.AsyncClient(base_url=server.url, timeout=120.0, limits=limits, trust_env=False) as client:
        model = (await client.get("/v1/models")).json()["data"][0]["id"]
        soak = Soak(client, model, random.Random(arguments.seed))
        await soak.whole_chat()
        before: dict[str, Any] = {"tasks": task_counts(server, watch_file), "files": open_files(server)}
        samples = [(0, *resident_mb(server))]
        start = time.monotonic()
        todo = iter(range(1, arguments.requests + 1))

        async def work() -> None:
            for number in todo:
                kind = soak.randomness.choice(soak.kinds())
                outcome = await kind()
                soak.outcomes[outcome if outcome.startswith("unexpected") else f"{kind.__name__}: {outcome}"] += 1
                if number % max(1, arguments.requests // 20) == 0:
                    samples.append((sum(soak.outcomes.values()), *resident_mb(server)))
                    print(
                        f"{samples[-1][0]} requests, {time.monotonic() - start:.0f} s, MB {samples[-1][1:]}", flush=True
                    )

        await asyncio.gather(*(work() for _ in range(arguments.concurrency)))
        elapsed_s = time.monotonic() - start
        preemptions = await counter(client, "vllm:num_preemptions_total")
        after = await settled(client, server, watch_file, before["tasks"])
    samples.append((arguments.requests, *resident_mb(server)))
    return {
        "elapsed_s": round(elapsed_s, 1),
        "outcomes": dict(soak.outcomes),
        "preemptions": preemptions,
        "resident_mb": samples,
        "before": before,
        "after": after,
    }


async def settled(
    client: httpx.AsyncClient, server: ServerProcess, watch_file: Path, tasks: dict[str, int]
) -> dict[str, Any]:
    """Returns the state at rest, as soon as nothing is left over or when time is up."""
    deadline = time.monotonic() + SETTLE_S
    while True:
        state: dict[str, Any] = {
            "gauges": await gauges(client),
            "tasks": task_counts(server, watch_file),
            "files": open_files(server),
        }
        is_clean = not any(state["gauges"].values()) and sum(state["tasks"].values()) <= sum(tasks.values())
        if is_clean or time.monotonic() > deadline:
            return state
        await asyncio.sleep(0.5)


def verdict(results: dict[str, Any]) -> list[str]:
    """Returns one sentence for each thing that is wrong."""
    problems = [f"{count} times {outcome}" for outcome, count in results["outcomes"].items() if "unexpected" in outcome]
    problems += [f"{name} is {value} at rest" for name, value in results["after"]["gauges"].items() if value]
    if not results["after"]["gauges"]:
        problems.append("the metrics have no gauges")
    left = Counter(results["after"]["tasks"])
    left.subtract(results["before"]["tasks"])
    problems += [f"{count} tasks of {name} are left" for name, count in left.items() if count > 0]
    if results["after"]["files"] > results["before"]["files"] + 4:
        problems.append(f"open files grew from {results['before']['files']} to {results['after']['files']}")
    samples = results["resident_mb"]
    first, last = samples[max(1, len(samples) // 5)], samples[-1]
    if sum(last[1:]) > (1 + MAX_GROWTH) * sum(first[1:]):
        problems.append(f"resident memory grew from {first[1:]} to {last[1:]} MB")
    return problems


def main() -> int:
    """Reads the arguments, runs and reports; returns the exit code."""
    parser = argparse.ArgumentParser(description="Thousands of mixed requests; finds what is left over.")
    parser.add_argument("--requests", type=int, default=5000)
    parser.add_argument("--concurrency", type=int, default=48)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("flags", nargs=argparse.REMAINDER, help="after --: more flags of 'mxext serve'")
    arguments = parser.parse_args()
    flags = [*FLAGS, *(flag for flag in arguments.flags if flag != "--")]
    with tempfile.TemporaryDirectory() as folder:
        watch_file = Path(folder) / "tasks.json"
        environ = {**os.environ, "WATCH_FILE": str(watch_file), "VLLM_MXEXT_LOG_LEVEL": "WARNING"}
        with ServerProcess([*WATCHED_SERVER, *flags], Path(folder) / "server.log", environ=environ) as server:
            server.wait_for()
            results = asyncio.run(run(server, watch_file, arguments))
            results["exit_code"] = server.stop()
            results["log"] = (Path(folder) / "server.log").read_text(errors="replace")[-2000:]
    problems = verdict(results)
    print(format_table(("outcome", "requests"), sorted(results["outcomes"].items())))
    print(
        f"{results['elapsed_s']} s, {results['preemptions']:.0f} preemptions; " + ("; ".join(problems) or "all clean")
    )
    config = {"requests": arguments.requests, "concurrency": arguments.concurrency, "seed": arguments.seed}
    print(json_line("soak", {**config, "flags": flags}, {**results, "problems": problems}))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
