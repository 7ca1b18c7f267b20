"""What the built-in model and its adapters answer to held-out items."""

from __future__ import annotations

import re

import pytest

from training.evaluate import SEED, Judge
from training.tasks import TASKS
from training.tasks.adapters import ADAPTER_TASKS
from training.tasks.base import Item, held_out_items
from vllm_mxext import LLM, SamplingParams
from vllm_mxext.builtin import model_path

NUM_ITEMS = 20
GOOD_PERCENT = 95.0


def claimed_tasks() -> list[str]:
    """Tasks that the model card says are right in at least 95% of the cases."""
    card = (model_path() / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\w+) \|[^|]*\| \d+ \| ([\d.]+)% \|$", card, re.MULTILINE)
    return [name for name, percent in rows if float(percent) >= GOOD_PERCENT]


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge(model_path(), batch_size=NUM_ITEMS)


@pytest.mark.promise("MODEL-2")
def test_the_engine_gives_the_right_answers_that_the_card_claims(judge):
    tasks = claimed_tasks()
    assert set(tasks) == {name for name, task in TASKS.items() if task.claim}
    with LLM() as llm:
        for task in tasks:
            items = held_out_items(TASKS[task].measured, NUM_ITEMS, SEED)
            right = sum(ask(llm, item) == judge.expected(item) for item in items)
            assert right >= 0.85 * len(items), f"{task}: {right} of {len(items)} answers are right"


def ask(llm: LLM, item: Item) -> str:
    """What the engine answers, through the interface that the item is made for."""
    params = SamplingParams(temperature=0, max_tokens=300)
    if item.is_chat:
        outputs = llm.chat(list(item.messages[:-1]), params, tools=list(item.tools) or None, use_tqdm=False)
    else:
        outputs = llm.generate(item.prompt, params, use_tqdm=False)
    return outputs[0].outputs[0].text


@pytest.mark.promise("MODEL-3")
@pytest.mark.parametrize(("adapter", "task"), [("math_tuned", "equation_steps"), ("code_tuned", "complete_function")])
def test_an_adapter_answers_what_the_base_model_cannot(judge, adapter, task):
    from peft import PeftModel

    from vllm_mxext.builtin import adapter_path

    generate = ADAPTER_TASKS[adapter][task].generate
    base, _ = judge.accuracy(generate, NUM_ITEMS)
    judge.model = PeftModel.from_pretrained(judge.model, str(adapter_path(adapter))).eval()
    try:
        tuned, _ = judge.accuracy(generate, NUM_ITEMS)
    finally:
        judge.model = judge.model.unload()
    assert tuned >= base + 0.4
