"""Sends thousands of fuzzed requests beside steady streams, and checks that no stream is disturbed.

    python benchmarks/fuzz.py --requests 10000

The server runs the built-in model. Each of the steady streams repeats one greedy request, whose text is known from
before the load: another text, an error or a cut stream counts as a disturbance. At the end, as in soak.py: memory over
time, blocks in use, open requests, asyncio tasks and file descriptors. The last line is one JSON object; the exit code
is 1 if a stream was disturbed, a request brought a server error, or something is left over.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from fuzz_bodies import Fuzzer
from soak import WATCHED_SERVER, open_files, resident_mb, settled, task_counts, verdict

from vllm_mxext.bench.report import format_table, json_line
from vllm_mxext.bench.server_process import ServerProcess

FLAGS = ("--max-num-seqs", "16", "--max-num-queued-reqs", "64", "--max-model-len", "512")
EXPECTED = frozenset({200, 400, 404, 413, 429, 504})
"""Statuses that a fuzzed request may bring."""

RETURN_MEMORY = {"MALLOC_ARENA_MAX": "1", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_MMAP_THRESHOLD_": "65536"}
"""Makes glibc give freed memory back, so that resident memory is what the server holds, not what large bodies took."""

QUESTIONS = ("12 + 30 =", "What is the capital of France?", "sort d a c b", "copy this: 1 2 3 4")


@dataclass
class SteadyStreams:
    """Streams that repeat requests whose text is known.

    Attributes:
        num_answers: streams read to their end.
        disturbances: one sentence each.
        longest_silence_s: between two events of a stream.
    """

    client: httpx.AsyncClient
    model: str
    num_answers: int = 0
    disturbances: list[str] = field(default_factory=list)
    longest_silence_s: float = 0.0

    async def run(self, question: str, is_over: asyncio.Event) -> None:
        """Repeats one question until told to end."""
        wanted = await self.answer(question)
        while not is_over.is_set():
            try:
                found = await self.answer(question)
            except (httpx.HTTPError, RuntimeError) as error:
                self.disturbances.append(f"'{question}': {error!r}")
                continue
            self.num_answers += 1
            if found != wanted:
                self.disturbances.append(f"'{question}': {found!r} in place of {wanted!r}")

    async def answer(self, question: str) -> str:
        """Reads one stream to its end."""
        text, last_s = [], time.monotonic()
        async for event in self._events(question):
            self.longest_silence_s = max(self.longest_silence_s, time.monotonic() - last_s)
            last_s = time.monotonic()
            text += [choice["delta"].get("content") or "" for choice in event["choices"]]
        return "".join(text)

    async def _events(self, question: str) -> AsyncIterator[dict[str, Any]]:
        body = {"model": self.model, "max_tokens": 64, "temperature": 0, "stream": True, "ignore_eos": True}
        body["messages"] = [{"role": "user", "content": question}]
        async with self.client.stream("POST", "/v1/chat/completions", json=body) as response:
            if response.status_code != 200:
                raise RuntimeError(f"status {response.status_code}: {(await response.aread())[:200]!r}")
            async for line in response.aiter_lines():
                if line == "data: [DONE]":
                    return
                if line.startswith("data:"):
                    event: dict[str, Any] = json.loads(line.removeprefix("data:"))
                    if "error" in event:
                        raise RuntimeError(line[:200])
                    yield event
        raise RuntimeError("the stream ended without [DONE]")


async def send(client: httpx.AsyncClient, fuzzer: Fuzzer) -> str:
    """Sends one fuzzed request and says what came of it."""
    request = fuzzer.request()
    headers = {"Content-Type": "application/json"}
    try:
        response = await client.post(request.path, content=request.content, headers=headers)
    except httpx.HTTPError as error:
        return f"unexpected {error!r} for {request.path} {request.content[:300]!r}"
    if response.status_code in EXPECTED:
        return f"{request.kind}: {response.status_code}"
    return f"unexpected {response.status_code} for {request.path} {request.content[:300]!r}: {response.text[:200]}"


async def run(server: ServerProcess, watch_file: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Sends the load and returns what was seen."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    outcomes: Counter[str] = Counter()
    async with httpx.AsyncClient(base_url=server.url, timeout=3600.0, limits=limits, trust_env=False) as client:
        model = (await client.get("/v1/models")).json()["data"][0]["id"]
        steady = SteadyStreams(client, model)
        await steady.answer(QUESTIONS[0])
        # The first grammar starts the process that tries grammars, which stays.
        await client.post("/v1/completions", json={"prompt": "a", "max_tokens": 2, "guided_regex": "a+"})
        before: dict[str, Any] = {"tasks": task_counts(server, watch_file), "files": open_files(server)}
        is_over = asyncio.Event()
        questions = [QUESTIONS[i % len(QUESTIONS)] for i in range(arguments.streams)]
        streams = [asyncio.create_task(steady.run(question, is_over)) for question in questions]
        fuzzer = Fuzzer(random.Random(arguments.seed), model)
        samples = [(0, *resident_mb(server))]
        begun_s = time.monotonic()
        todo = iter(range(1, arguments.requests + 1))

        async def work() -> None:
            for number in todo:
                outcomes[await send(client, fuzzer)] += 1
                if number % max(1, arguments.requests // 20) == 0:
                    samples.append((number, *resident_mb(server)))
                    print(f"{number} requests, {time.monotonic() - begun_s:.0f} s, MB {samples[-1][1:]}", flush=True)

        await asyncio.gather(*(work() for _ in range(arguments.concurrency)))
        is_over.set()
        await asyncio.gather(*streams)
        elapsed_s = time.monotonic() - begun_s
        after = await settled(client, server, watch_file, before["tasks"])
    samples.append((arguments.requests, *resident_mb(server)))
    return {
        "elapsed_s": round(elapsed_s, 1),
        "outcomes": dict(outcomes),
        "steady_answers": steady.num_answers,
        "disturbances": steady.disturbances,
        "longest_silence_s": round(steady.longest_silence_s, 2),
        "resident_mb": samples,
        "before": before,
        "after": after,
    }


def main() -> int:
    """Reads the arguments, runs and reports; returns the exit code."""
    parser = argparse.ArgumentParser(description="Fuzzed requests beside steady streams.")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("flags", nargs=argparse.REMAINDER, help="after --: more flags of 'mxext serve'")
    arguments = parser.parse_args()
    flags = [*FLAGS, *(flag for flag in arguments.flags if flag != "--")]
    with tempfile.TemporaryDirectory() as folder:
        watch_file = Path(folder) / "tasks.json"
        environ = {**os.environ, **RETURN_MEMORY, "WATCH_FILE": str(watch_file), "VLLM_MXEXT_LOG_LEVEL": "WARNING"}
        with ServerProcess([*WATCHED_SERVER, *flags], Path(folder) / "server.log", environ=environ) as server:
            server.wait_for()
            results = asyncio.run(run(server, watch_file, arguments))
            results["exit_code"] = server.stop()
            results["log"] = (Path(folder) / "server.log").read_text(errors="replace")[-2000:]
    problems = [f"disturbed: {sentence}" for sentence in results["disturbances"][:10]] + verdict(results)
    if arguments.streams and not results["steady_answers"]:
        problems.append("no steady stream was read to its end beside the load")
    print(format_table(("outcome", "requests"), sorted(results["outcomes"].items())))
    print(
        f"{results['elapsed_s']} s, {results['steady_answers']} steady answers, longest silence "
        f"{results['longest_silence_s']} s; " + ("; ".join(problems) or "all clean")
    )
    config = {key: getattr(arguments, key) for key in ("requests", "streams", "concurrency", "seed")}
    print(json_line("fuzz", {**config, "flags": flags}, {**results, "problems": problems}))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
