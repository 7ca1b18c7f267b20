"""Measures the adapters that ship through the HTTP API of a server that loads and unloads them while it runs.

    python -m training.served_accuracy --items 200 --result RESULT.json --page docs/lora_accuracy.md

Held-out items are asked of the base model, then of each adapter by both of its names while it is loaded alone, then of
both adapters and the base model at once, and of the base model after all is unloaded. Besides accuracy, it is checked
that the base model says the same each time, that both names of an adapter mean the same, and that an adapter beside
others says what it says alone. The last line is one JSON object; the exit code is 1 if a check fails.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from training.tasks.adapters import ADAPTER_TASKS
from training.tasks.base import Item, held_out_items
from vllm_mxext.bench.report import json_line
from vllm_mxext.bench.server_process import OUR_SERVER, ServerProcess
from vllm_mxext.builtin import adapter_path

SEED = 2
"""The seed of `training.evaluate`, so that the items are the same."""

_CONCURRENCY = 16
_MAX_TOKENS = 128
_NOT_FOUND = 404

Answers = list[str]


@dataclass
class Interview:
    """One run: the client, the items of every task, and what was found to be wrong."""

    client: httpx.AsyncClient
    model: str
    items: Mapping[str, Mapping[str, Sequence[Item]]]
    problems: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._places = asyncio.Semaphore(_CONCURRENCY)

    async def ask(self, model: str, items: Iterable[Item]) -> Answers:
        """Returns greedy answers to chats, and continuations of plain texts."""
        return list(await asyncio.gather(*(self._ask_one(model, item) for item in items)))

    async def ask_base(self) -> dict[str, Answers]:
        """Returns the base model's answers to the items of each adapter."""
        return {adapter: await self.ask(self.model, _joined(tasks)) for adapter, tasks in self.items.items()}

    async def load(self, adapter: str) -> None:
        """Serves an adapter from then on."""
        body = {"lora_name": adapter, "lora_path": str(adapter_path(adapter))}
        (await self.client.post("/v1/load_lora_adapter", json=body)).raise_for_status()

    async def unload(self, adapter: str) -> None:
        """Takes an adapter away and checks that nobody knows its names any more."""
        (await self.client.post("/v1/unload_lora_adapter", json={"lora_name": adapter})).raise_for_status()
        for name in (adapter, f"{self.model}:{adapter}"):
            status = (await self.client.post("/v1/completions", json={"model": name, "prompt": "x"})).status_code
            if status != _NOT_FOUND:
                self.problems.append(f"{name} answers {status} after it was unloaded")

    def compare(self, what: str, answers: object, known: object) -> None:
        """Notes a problem if answers are not those that are known."""
        if answers != known:
            self.problems.append(what)

    async def _ask_one(self, model: str, item: Item) -> str:
        body: dict[str, Any] = {"model": model, "temperature": 0, "max_tokens": _MAX_TOKENS}
        async with self._places:
            if not item.is_chat:
                answer = await self._post("/v1/completions", {**body, "prompt": item.prompt})
                return str(answer["text"])
            answer = await self._post("/v1/chat/completions", {**body, "messages": item.messages[:-1]})
        return str(answer["message"]["content"])

    async def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        response = await self.client.post(path, json=body)
        response.raise_for_status()
        choice: dict[str, Any] = response.json()["choices"][0]
        return choice


def _joined(tasks: Mapping[str, Sequence[Item]]) -> list[Item]:
    return [item for items in tasks.values() for item in items]


async def measure(url: str, num_items: int) -> dict[str, Any]:
    """Asks a server everything and returns accuracy per adapter and task, and what was wrong."""
    items = {
        adapter: {name: held_out_items(task.generate, num_items, SEED) for name, task in tasks.items()}
        for adapter, tasks in ADAPTER_TASKS.items()
    }
    async with httpx.AsyncClient(base_url=url, timeout=300.0, trust_env=False) as client:
        model = (await client.get("/v1/models")).json()["data"][0]["id"]
        interview = Interview(client, model, items)
        base = await interview.ask_base()
        adapted: dict[str, Answers] = {}
        for adapter, tasks in items.items():
            await interview.load(adapter)
            adapted[adapter] = await interview.ask(f"{model}:{adapter}", _joined(tasks))
            short = await interview.ask(adapter, _joined(tasks))
            interview.compare(f"{model}:{adapter} and {adapter} answer differently", short, adapted[adapter])
            await interview.unload(adapter)
        for adapter in items:
            await interview.load(adapter)
        beside, *together = await asyncio.gather(
            interview.ask_base(), *(interview.ask(adapter, _joined(tasks)) for adapter, tasks in items.items())
        )
        interview.compare("the base model answers differently beside adapters", beside, base)
        interview.compare("adapters answer differently beside each other", together, list(adapted.values()))
        for adapter in items:
            await interview.unload(adapter)
        interview.compare(
            "the base model answers differently after the adapters have gone", await interview.ask_base(), base
        )
    return {"adapters": _scores(items, base, adapted), "problems": interview.problems}


def _scores(
    items: Mapping[str, Mapping[str, Sequence[Item]]], base: Mapping[str, Answers], adapted: Mapping[str, Answers]
) -> dict[str, dict[str, dict[str, Any]]]:
    scores: dict[str, dict[str, dict[str, Any]]] = {}
    for adapter, tasks in items.items():
        scores[adapter] = {}
        start = 0
        for name, asked in tasks.items():
            right = [item.messages[-1]["content"] if item.is_chat else item.completion for item in asked]
            end = start + len(asked)
            scores[adapter][name] = {
                "claim": ADAPTER_TASKS[adapter][name].claim,
                "items": len(asked),
                "base": _share(base[adapter][start:end], right),
                "adapter": _share(adapted[adapter][start:end], right),
            }
            start = end
    return scores


def _share(answers: Sequence[str], right: Sequence[str]) -> float:
    return sum(answer == expected for answer, expected in zip(answers, right, strict=True)) / len(right)


def table(adapters: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """Returns the accuracies as a table in Markdown."""
    rows = [
        f"| `{adapter}` | {score['claim']} | {score['items']} | {score['base']:.1%} | {score['adapter']:.1%} |"
        for adapter, scores in adapters.items()
        for score in scores.values()
    ]
    head = ["| adapter | task | items | base model | with adapter |", "|---|---|---|---|---|"]
    return "\n".join([*head, *rows])


def page(adapters: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """Returns the page of the documentation."""
    return f"""# What the built-in adapters bring

Right answers, word for word, to questions that neither the built-in model nor its adapters were trained on. All were
asked over HTTP, greedily, of one server that loaded and unloaded the adapters while it ran:

{table(adapters)}

In the same run the base model answered the same words before, beside and after the adapters; `mx-tiny:math_tuned` and
`math_tuned` meant the same; both adapters and the base model, asked at once, said what each says alone; and the names
were 404 after unloading.

```bash
python -m training.served_accuracy --items 200
```
"""


def main() -> int:
    """Measures, prints a table, and as the last line one JSON object; returns the exit code."""
    parser = argparse.ArgumentParser(description="Accuracy of the adapters that ship, over HTTP.")
    parser.add_argument("--items", type=int, default=200, help="held-out items per task, at most")
    parser.add_argument("--result", type=Path, help="write the JSON object here")
    parser.add_argument("--page", type=Path, help="write the page of the documentation here")
    arguments = parser.parse_args()
    environ = {**os.environ, "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "true", "VLLM_MXEXT_LOG_LEVEL": "WARNING"}
    with (
        tempfile.TemporaryDirectory() as folder,
        ServerProcess(OUR_SERVER, Path(folder) / "log", environ=environ) as server,
    ):
        server.wait_for()
        results = asyncio.run(measure(server.url, arguments.items))
    line = json_line("served_accuracy", {"items": arguments.items, "seed": SEED}, results)
    if arguments.result is not None:
        arguments.result.write_text(line + "\n", encoding="utf-8")
    if arguments.page is not None:
        arguments.page.write_text(page(results["adapters"]), encoding="utf-8")
    print(table(results["adapters"]))
    print("\n".join(results["problems"]))
    print(line)
    return 1 if results["problems"] else 0


if __name__ == "__main__":
    sys.exit(main())
