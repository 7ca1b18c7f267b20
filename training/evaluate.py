"""Measures the shipped model and adapters on held-out items: ``python -m training.evaluate``."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from training.card import write_cards
from training.tasks import TASKS
from training.tasks.adapters import ADAPTER_TASKS
from training.tasks.base import Generator, Item, held_out_items
from training.tokenizer import END_OF_TEXT, TURN_END, load_template, render
from vllm_mxext.builtin import adapter_path, model_path

SEED = 2


class Judge:
    """Answers held-out items greedily with transformers and compares word for word."""

    def __init__(self, folder: Path, batch_size: int) -> None:
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self.tokenizer.padding_side = "left"
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
        self.template = load_template(folder / "chat_template.jinja")
        self.batch_size = batch_size

    def accuracy(self, generator: Generator, count: int) -> tuple[float, int]:
        """Return the share of right answers and the number of items."""
        items = held_out_items(generator, count, SEED)
        right = sum(answer == self.expected(item) for item, answer in zip(items, self.answers(items), strict=True))
        return right / len(items), len(items)

    def expected(self, item: Item) -> str:
        """Return the answer that counts as right."""
        text = render(item, self.template).removeprefix(render(item, self.template, for_answer=True))
        return text.removesuffix(TURN_END).removesuffix(END_OF_TEXT)

    def prompt(self, item: Item) -> str:
        """Return the text the model is asked to continue, through transformers' own use of the chat template."""
        if not item.is_chat:
            return item.prompt
        text: str = self.tokenizer.apply_chat_template(
            list(item.messages[:-1]), tools=list(item.tools) or None, add_generation_prompt=True, tokenize=False
        )
        return text

    @torch.inference_mode()
    def answers(self, items: Sequence[Item]) -> list[str]:
        """Continue every item greedily; items of one length go together."""
        order = sorted(range(len(items)), key=lambda i: len(self.expected(items[i])))
        found = [""] * len(items)
        for start in range(0, len(order), self.batch_size):
            chosen = order[start : start + self.batch_size]
            for i, answer in zip(chosen, self._continue([items[i] for i in chosen]), strict=True):
                found[i] = answer
        return found

    def _continue(self, items: Sequence[Item]) -> list[str]:
        inputs = self.tokenizer([self.prompt(item) for item in items], return_tensors="pt", padding=True)
        longest = max(len(self.tokenizer(self.expected(item)).input_ids) for item in items)
        output = self.model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            max_new_tokens=longest + 4,
            do_sample=False,
        )
        texts: list[str] = self.tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :])
        return [text.split(TURN_END)[0].split(END_OF_TEXT)[0] for text in texts]


def measure_base(judge: Judge, count: int) -> dict[str, dict[str, Any]]:
    """Measure every task of the base model and print a line for each."""
    result: dict[str, dict[str, Any]] = {}
    for name, task in TASKS.items():
        if task.claim:
            accuracy, items = judge.accuracy(task.measured, count)
            result[name] = {"claim": task.claim, "items": items, "accuracy": accuracy}
            print(f"{name:20s} {items:5d} items  {accuracy:7.1%}", flush=True)
    return result


def measure_adapter(judge: Judge, name: str, count: int) -> dict[str, dict[str, Any]]:
    """Measure the tasks of an adapter without and with it, and print a line for each."""
    tasks = ADAPTER_TASKS[name]
    before = {task: judge.accuracy(entry.generate, count)[0] for task, entry in tasks.items()}
    plain = judge.model
    judge.model = PeftModel.from_pretrained(plain, str(adapter_path(name))).eval()
    result: dict[str, dict[str, Any]] = {}
    for task, entry in tasks.items():
        accuracy, items = judge.accuracy(entry.generate, count)
        result[task] = {"claim": entry.claim, "items": items, "base": before[task], "adapter": accuracy}
        print(f"{name}/{task:20s} {items:5d} items  base {before[task]:7.1%}  adapter {accuracy:7.1%}", flush=True)
    judge.model = judge.model.unload()
    return result


def main() -> None:
    """Measure, print a table, and as the last line one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=200, help="held-out items per task, at most")
    parser.add_argument("--batch-size", type=int, default=50, help="items answered at once")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--no-adapters", action="store_true", help="measure the base model only")
    parser.add_argument("--write-cards", action="store_true", help="put the results into the model cards")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    started = time.monotonic()
    judge = Judge(model_path(), arguments.batch_size)
    result: dict[str, Any] = {"base": measure_base(judge, arguments.items), "adapters": {}}
    if not arguments.no_adapters:
        for name in ADAPTER_TASKS:
            result["adapters"][name] = measure_adapter(judge, name, arguments.items)
    result |= {
        "model_bytes": (model_path() / "model.safetensors").stat().st_size,
        "seed": SEED,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "seconds": round(time.monotonic() - started, 1),
    }
    if arguments.write_cards:
        write_cards(result)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
