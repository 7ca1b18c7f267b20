"""Loads, replaces and unloads adapters hundreds of times under traffic; every answer must be of weights then served.

    python benchmarks/adapter_soak.py --cycles 500

A cycle replaces the adapter `live` in place (by turns from other folders, and from its own folder with files written
over), then loads `guest` and unloads it while streams are open on it; now and then `live` is away for a moment. With
--kills the engine process is killed in some cycles, and no files are written over, because the next one has to read
them again. Meanwhile clients ask the base model, `live`, `guest`, and two adapters that stay, of which there are more
than slots; some leave after the first byte.

The answers are known from a server that had each adapter alone. An answer is stale if it is none of those that the
name could mean between the request and the first byte of the answer; 404 is right only where the name could be away.

At the end everything is unloaded, and lists, figures, tasks, open files and resident memory are looked at. Then large
adapters of a wide model come and go, and memory after each is compared (`--big-cycles 0` leaves that out). The last
line is one JSON object; the exit code is 1 if anything is wrong.
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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from adapter_memory import measure_memory
from adapter_timeline import Timeline
from adapter_variants import (
    BASE,
    UPDATES_VARIABLE,
    Answer,
    Answers,
    Question,
    answers_alone,
    choices_of,
    joined_events,
    make_variants,
    questions,
    write_over,
)
from soak import WATCHED_SERVER, open_files, resident_mb, settled, task_counts

from vllm_mxext.bench.report import format_table, json_line
from vllm_mxext.bench.server_process import ServerProcess

FLAGS = (
    *("--max-loras", "2", "--max-cpu-loras", "6", "--max-num-seqs", "16"),
    *("--max-model-len", "1024", "--num-gpu-blocks-override", "512"),
)
"""More adapters than slots, and a KV cache whose blocks are all soon in use: its memory grows as they are written."""
STAYING = {"math": "math_tuned-32", "code": "code_tuned-16"}
LIVE, GUEST = "live", "guest"
CYCLES_UNTIL_AWAY = 10
CYCLES_UNTIL_KILL = 5
NUM_GUEST_STREAMS = 2
ABANDONED = 10
"""One of so many requests is left by its client."""

NUM_CHOICES = 3
SEVERAL = {"n": NUM_CHOICES, "temperature": 1, "top_k": 1}
"""Asks for several choices that are all the greedy one; with temperature 0 there can be only one."""

MAX_GROWTH = 0.05
"""Resident memory may grow by this share from the end of the first fifth to the end."""


@dataclass
class AdapterSoak:
    """One run: what is asked, what was answered, and what was wrong."""

    client: httpx.AsyncClient
    model: str
    variants: Mapping[str, Path]
    asked: Sequence[Question]
    answers: Answers
    live_folder: Path
    kill: Callable[[], None] | None
    randomness: random.Random
    timeline: Timeline = field(default_factory=Timeline)
    outcomes: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    is_over: bool = False

    # --- adapters ---

    async def load(self, name: str, variant: str, path: Path, **fields: Any) -> None:
        """Serves a variant under a name."""
        self.timeline.ask(name, variant)
        await self._update("load", {"lora_name": name, "lora_path": str(path), **fields})
        self.timeline.confirm(name)

    async def unload(self, name: str) -> None:
        """Takes a name away."""
        self.timeline.ask(name, None)
        await self._update("unload", {"lora_name": name})
        self.timeline.confirm(name)

    async def _update(self, what: str, body: dict[str, Any]) -> None:
        response = await self.client.post(f"/v1/{what}_lora_adapter", json=body)
        self.outcomes[f"{what}: {response.status_code}"] += 1
        if response.is_error:
            self.problems.append(f"{what} {body} got {response.status_code}: {response.text[:200]}")

    async def cycle(self, number: int) -> None:
        """Replaces `live`, and brings and takes `guest`."""
        live, guest = self.randomness.sample(sorted(self.variants), 2)
        if number % CYCLES_UNTIL_AWAY == 0:
            await self.unload(LIVE)
        path = self.variants[live]
        if number % 2 and not self.kill:
            path = self.live_folder
            write_over(self.variants[live], path, renames=number % 4 == 1)
        if self.kill and number % CYCLES_UNTIL_KILL == 0:
            self.kill()
            self.outcomes["kills"] += 1
        await self.load(LIVE, live, path, load_inplace=True, pinned=True)
        await self.load(GUEST, guest, self.variants[guest])
        opened = [asyncio.Event() for _ in range(NUM_GUEST_STREAMS)]
        streams = [asyncio.create_task(self.ask(GUEST, len(self.asked) - 1, 1, True, event)) for event in opened]
        await asyncio.gather(*(event.wait() for event in opened))
        self.outcomes["streams open at unloading"] += sum(not stream.done() for stream in streams)
        await self.unload(GUEST)
        await asyncio.gather(*streams)

    # --- traffic ---

    async def work(self) -> None:
        """Asks one thing after the other until it is over."""
        choose = self.randomness.choice
        names = (BASE, LIVE, LIVE, f"{self.model}:{LIVE}", f"base_model:{LIVE}", GUEST, *STAYING)
        while not self.is_over:
            index = self.randomness.randrange(len(self.asked))
            if choose(range(ABANDONED)) == 0:
                await self.abandon(choose(names), index)
            else:
                await self.ask(choose(names), index, choose((1, 1, NUM_CHOICES)), choose((True, False)))

    async def abandon(self, name: str, index: int) -> None:
        """Leaves a stream after its first byte."""
        question = self.asked[index]
        body = question.body(self.model if name == BASE else name, stream=True)
        async with self.client.stream("POST", question.path, json=body):
            self.outcomes["streams left"] += 1

    async def ask(
        self, name: str, index: int, num_choices: int, is_streamed: bool, opened: asyncio.Event | None = None
    ) -> None:
        """Asks a question and judges the answer.

        Args:
            name: what is asked; `BASE` is the model.
            index: of the question.
            num_choices: 1, or `NUM_CHOICES`.
            is_streamed: the answer comes in events.
            opened: set when the first byte has come.
        """
        question, opened = self.asked[index], opened or asyncio.Event()
        body = question.body(self.model if name == BASE else name, stream=is_streamed)
        body |= SEVERAL if num_choices > 1 else {}
        start_s = time.monotonic()
        first_s, status = start_s, 0
        given: list[Answer] = []
        try:
            async with self.client.stream("POST", question.path, json=body) as response:
                first_s, status = time.monotonic(), response.status_code
                opened.set()
                given = await _read(response, is_streamed)
        except (httpx.HTTPError, ValueError) as error:
            self.problems.append(f"{name}, question {index}: {type(error).__name__}: {str(error)[:300]}")
        else:
            self._judge(name, index, status, given, (start_s, first_s), num_choices)
        finally:
            opened.set()

    def _judge(
        self, name: str, index: int, status: int, given: list[Answer], times: tuple[float, float], num_choices: int
    ) -> None:
        own_name = name.rpartition(":")[2]
        meant = {BASE} if name == BASE else self.timeline.meant(own_name, *times)
        right = [self.answers[variant][index] for variant in meant if variant is not None]
        if status == 404 and None in meant:
            self.outcomes[f"{own_name}: away"] += 1
        elif status == 200 and any(given == [answer] * num_choices for answer in right):
            self.outcomes[f"{own_name}: right"] += 1
        else:
            said = {variant for variant, known in self.answers.items() if known[index] in given}
            self.problems.append(
                f"{name}, question {index}: {status}, said {sorted(said) or given}, could be {sorted(map(str, meant))}"
            )


async def _read(response: httpx.Response, is_streamed: bool) -> list[Answer]:
    """Returns the choices of an answer; none of a refusal.

    Raises:
        ValueError: the server failed, or the stream did not end as it should.
    """
    if response.status_code == 404:
        return []
    if response.is_error:
        raise ValueError(f"{response.status_code}: {(await response.aread())!r}")
    if not is_streamed:
        return choices_of(json.loads(await response.aread()))
    lines = [line.removeprefix("data: ") async for line in response.aiter_lines() if line.startswith("data: ")]
    events = [json.loads(line) for line in lines if line != "[DONE]"]
    if not lines or lines[-1] != "[DONE]" or any("error" in event for event in events):
        raise ValueError(f"the stream ended with {lines[-1:]}")
    return joined_events(events)


async def run(
    server: ServerProcess, watch_file: Path, folder: Path, variants: Mapping[str, Path], arguments: argparse.Namespace
) -> dict[str, Any]:
    """Sends the traffic, changes adapters meanwhile, and returns what was seen."""
    asked = questions()
    answers = answers_alone(variants, asked, folder / "alone.log")
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    async with httpx.AsyncClient(base_url=server.url, timeout=300.0, limits=limits, trust_env=False) as client:
        model = (await client.get("/v1/models")).json()["data"][0]["id"]
        kill = (lambda: kill_core(server)) if arguments.kills else None
        soak = AdapterSoak(
            client, model, variants, asked, answers, folder / "live", kill, random.Random(arguments.seed)
        )
        before: dict[str, Any] = {"tasks": task_counts(server, watch_file), "files": open_files(server)}
        for name, variant in STAYING.items():
            await soak.load(name, variant, variants[variant])
        await soak.load(LIVE, "math_tuned-64", variants["math_tuned-64"], pinned=True)
        samples, start_s = [(0, *resident_mb(server))], time.monotonic()
        workers = [asyncio.create_task(soak.work()) for _ in range(arguments.concurrency)]
        for number in range(1, arguments.cycles + 1):
            await soak.cycle(number)
            if number % max(1, arguments.cycles // 20) == 0:
                samples.append((number, *resident_mb(server)))
                print(f"{number} cycles, {time.monotonic() - start_s:.0f} s, MB {samples[-1][1:]}", flush=True)
        soak.is_over = True
        await asyncio.gather(*workers)
        elapsed_s = time.monotonic() - start_s
        soak.problems += await _look_at_rest(client)
        for name in (*STAYING, LIVE):
            await soak.unload(name)
        after = await settled(client, server, watch_file, before["tasks"])
        soak.problems += await _look_for_remains(client)
    samples.append((arguments.cycles, *resident_mb(server)))
    return {
        "elapsed_s": round(elapsed_s, 1),
        "outcomes": dict(soak.outcomes),
        "problems": soak.problems,
        "resident_mb": samples,
        "before": before,
        "after": after,
    }


async def _look_at_rest(client: httpx.AsyncClient) -> list[str]:
    """Returns what is wrong with lists and figures while nobody asks, but adapters are loaded."""
    listing = (await client.get("/v1/lora_adapters")).json()
    names = {entry["name"]: entry for entry in listing["data"]}
    problems = [] if sorted(names) == sorted((*STAYING, LIVE)) else [f"the list has {sorted(names)}"]
    in_slots = sum(entry["tier"] == "slot" for entry in names.values())
    lines = (await client.get("/metrics")).text.splitlines()
    if listing["slots_in_use"] != in_slots or _figure(lines, "vllm:lora_adapters", 'tier="slot"') != in_slots:
        problems.append(f"slots in use are {listing['slots_in_use']}, {in_slots} and another number in the figures")
    for name, entry in names.items():
        if entry["requests_running"] or entry["requests_waiting"]:
            problems.append(f"{name} has requests at rest: {entry}")
        if not _figure(lines, "vllm:lora_requests_total", f'lora_name="{name}"'):
            problems.append(f"no requests are counted for {name}")
    models = {entry["id"] for entry in (await client.get("/v1/models")).json()["data"]}
    return problems if names.keys() <= models else [*problems, f"the models are {sorted(models)}"]


async def _look_for_remains(client: httpx.AsyncClient) -> list[str]:
    """Returns what is left of adapters after all of them have been unloaded."""
    listing = (await client.get("/v1/lora_adapters")).json()
    problems = [f"{key} is {listing[key]}" for key in ("data", "slots_in_use") if listing[key]]
    lines = (await client.get("/metrics")).text.splitlines()
    problems += [f"a figure is left: {line}" for line in lines if "lora_name=" in line]
    problems += [
        f"{name} is not 0" for name in ("vllm:lora_adapters", "vllm:lora_adapter_bytes") if _figure(lines, name)
    ]
    info = next((line for line in lines if line.startswith("vllm:lora_requests_info{")), "")
    if 'running_lora_adapters=""' not in info or 'waiting_lora_adapters=""' not in info:
        problems.append(f"vllm:lora_requests_info is {info!r}")
    models = (await client.get("/v1/models")).json()["data"]
    return problems if len(models) == 1 else [*problems, f"the models are {[entry['id'] for entry in models]}"]


def _figure(lines: Sequence[str], name: str, label: str = "") -> float:
    """Returns the sum of a figure over the labels that hold a text."""
    found = [line for line in lines if line.startswith(f"{name}{{") and label in line]
    return sum(float(line.rpartition(" ")[2]) for line in found)


def kill_core(server: ServerProcess) -> None:
    """Kills the engine process, if there is one now."""
    for process in server.family()[1:]:
        process.kill()


def verdict(results: dict[str, Any]) -> list[str]:
    """Returns one sentence for each thing that is wrong."""
    problems: list[str] = list(results["problems"])
    problems += [f"{name} is {value} at rest" for name, value in results["after"]["gauges"].items() if value]
    left = Counter(results["after"]["tasks"])
    left.subtract(results["before"]["tasks"])
    problems += [f"{count} tasks of {name} are left" for name, count in left.items() if count > 0]
    if "kills" in results["outcomes"]:
        return problems  # a new engine process has written less of its cache
    if results["after"]["files"] > results["before"]["files"] + 4:
        problems.append(f"open files grew from {results['before']['files']} to {results['after']['files']}")
    samples = results["resident_mb"]
    first, last = samples[max(1, len(samples) // 5)], samples[-1]
    for process, (then, now) in zip(("front", "core"), zip(first[1:], last[1:], strict=True), strict=True):
        if now > (1 + MAX_GROWTH) * then:
            problems.append(f"the {process} process grew from {then} to {now} MB")
    return problems


def main() -> int:
    """Reads the arguments, runs and reports; returns the exit code."""
    parser = argparse.ArgumentParser(description="Adapters come, change and go under traffic; finds what is stale.")
    parser.add_argument("--cycles", type=int, default=500)
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--big-cycles", type=int, default=20, help="cycles with large adapters on a wide model")
    parser.add_argument("--kills", action="store_true", help="kill the engine process now and then; nobody may notice")
    parser.add_argument("flags", nargs=argparse.REMAINDER, help="after --: more flags of 'mxext serve'")
    arguments = parser.parse_args()
    flags = [*FLAGS, *(flag for flag in arguments.flags if flag != "--")]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        variants = make_variants(folder / "variants")
        watch_file, log = folder / "tasks.json", folder / "server.log"
        environ = {
            **os.environ,
            "WATCH_FILE": str(watch_file),
            "VLLM_MXEXT_LOG_LEVEL": "WARNING",
            UPDATES_VARIABLE: "1",
        }
        with ServerProcess([*WATCHED_SERVER, *flags], log, environ=environ) as server:
            server.wait_for()
            results = asyncio.run(run(server, watch_file, folder, variants, arguments))
            results["exit_code"] = server.stop()
            results["log"] = log.read_text(errors="replace")[-2000:]
        if arguments.big_cycles:
            results["big"] = measure_memory(folder, arguments.big_cycles)
            results["problems"] += results["big"].pop("problems")
    problems = verdict(results)
    print(format_table(("outcome", "times"), sorted(results["outcomes"].items())))
    print("\n".join([f"{results['elapsed_s']} s; {len(problems)} problems", *problems[:20]]))
    config = {name: value for name, value in vars(arguments).items() if name != "flags"} | {"flags": flags}
    print(json_line("adapter_soak", config, {**results, "problems": problems[:100]}))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
