"""The generators repeat themselves under one seed and keep held-out items out of training."""

import math
import random

import pytest

from training.corpus import draw_items
from training.tasks import TASKS
from training.tasks.adapters import ADAPTER_TASKS
from training.tasks.arithmetic import number_in_words
from training.tasks.base import PINNED_KEYS, draw, held_out_items, is_held_out

EVERY_TASK = {**TASKS, **{name: task for tasks in ADAPTER_TASKS.values() for name, task in tasks.items()}}


@pytest.mark.promise("MODEL-4")
@pytest.mark.parametrize("name", EVERY_TASK)
def test_a_generator_gives_the_same_items_for_the_same_seed(name):
    first, second = random.Random(5), random.Random(5)
    generate = EVERY_TASK[name].generate
    assert [generate(first) for _ in range(30)] == [generate(second) for _ in range(30)]


def test_no_training_item_is_held_out():
    rng = random.Random(7)
    assert not any(is_held_out(item.key) for item in draw_items(TASKS, rng, 600))


@pytest.mark.parametrize("name", EVERY_TASK)
def test_held_out_prompts_do_not_appear_in_training(name):
    generate, rng = EVERY_TASK[name].generate, random.Random(3)
    held_out = {repr(item.messages) + item.prompt for item in held_out_items(generate, 20, seed=2)}
    seen = {repr(item.messages) + item.prompt for item in (draw(generate, rng, held_out=False) for _ in range(200))}
    assert not held_out & seen


@pytest.mark.parametrize("name", [name for name, task in TASKS.items() if task.claim])
def test_a_claimed_task_has_two_hundred_held_out_prompts(name):
    assert len(held_out_items(TASKS[name].measured, 200, seed=2)) == 200


def test_documented_prompts_are_trained_on():
    assert not any(is_held_out(key) for key in PINNED_KEYS)


def test_equations_have_the_answered_solution():
    rng = random.Random(1)
    for _ in range(200):
        item = draw(TASKS["equations"].generate, rng, held_out=False)
        _, variable, a, b, solution = item.key.split("|")
        answer = item.messages[-1]["content"]
        assert f"{variable} = " in answer
        assert answer.endswith(f" = {solution}")
        left = f"{'' if a == '1' else a}{variable} {'-' if int(b) < 0 else '+'} {abs(int(b))}"
        assert f"{left} = {int(a) * int(solution) + int(b)}" in item.messages[0]["content"]


def test_every_step_of_a_worked_sum_is_right():
    rng = random.Random(2)
    for item in [TASKS["sums"].generate(rng) for _ in range(200)]:
        answer = item.messages[-1]["content"] if item.is_chat else item.prompt + item.completion
        for step in answer.split(", "):
            (first, sign, second), value = step.split(" = ")[0].split(" "), step.split(" = ")[1]
            assert int(value) == int(first) + (int(second) if sign == "+" else -int(second))


def test_sums_in_words_say_the_value_that_was_computed():
    rng = random.Random(4)
    for item in [TASKS["word_arithmetic"].generate(rng) for _ in range(200)]:
        steps, sentence = item.messages[-1]["content"].split(", so ")
        assert sentence.removesuffix(".").split(" is ")[1] == number_in_words(int(steps.rsplit(" = ")[-1]))


def test_derivatives_multiply_what_they_show():
    rng = random.Random(5)
    for item in [ADAPTER_TASKS["math_tuned"]["derivative"].generate(rng) for _ in range(200)]:
        function, _, steps = item.messages[-1]["content"].removeprefix("The derivative of ").partition(" is ")
        _, variable, a, n, *linear = item.key.split("|")
        assert function.startswith(("" if a == "1" else a) + variable)
        for step in steps.removesuffix(".").split(" = "):
            product = step.partition(variable)[0] if variable in step else step.partition(" + ")[0]
            assert math.prod(int(factor) for factor in (product or "1").split(" * ")) == int(a) * int(n)
            assert not linear or step.endswith(f" + {linear[0]}")
