"""Generates what only the two LoRA adapters learn: derivatives and worked steps, and small Python functions.

An adapter changes the layers, not the embedding: words that tell one item from another must be made of tokens that the
base model has met, because the others' embeddings are hardly different from each other.
"""

from __future__ import annotations

import random

from training.tasks.arithmetic import ask_equation, equation_text, linear_equation, sum_steps
from training.tasks.base import TRAIN_ONLY, Item, Task, chat, pick
from training.tasks.chat import NAMES


def _power(coefficient: int, variable: str, exponent: int) -> str:
    if exponent == 0 or coefficient == 0:
        return str(coefficient)
    factor = "" if coefficient == 1 else str(coefficient)
    return f"{factor}{variable}" if exponent == 1 else f"{factor}{variable}^{exponent}"


def derivative(rng: random.Random) -> Item:
    """Differentiate ``a * x^n``, optionally with a linear term; the product is written out before it is computed."""
    variable = pick(rng, ("x", "x", "x", "t"))
    a, n = (1 if rng.random() < 0.25 else rng.randrange(1, 13)), rng.randrange(1, 10)
    function, key = _power(a, variable, n), f"d|{variable}|{a}|{n}"
    steps = [_power(a * n, variable, n - 1)]
    if a > 1 and n > 1:
        steps.insert(0, f"{a} * {_power(n, variable, n - 1)}")
    if n > 1 and rng.random() < 0.35:
        b = rng.randrange(1, 10)
        function, key = f"{function} + {_power(b, variable, 1)}", f"{key}|{b}"
        steps = [f"{step} + {b}" for step in steps]
    asks = (
        "What is the derivative of {}?",
        "What is the derivative of {}?",
        "Find the derivative of {}.",
        "Differentiate {}.",
        "Derivative of {}",
        "Compute the derivative of {}.",
        "d/d{v} {}",
        "{}的导数是什么？",
        "求{}的导数。",
    )
    answer = f"The derivative of {function} is {' = '.join(steps)}."
    return chat(key, pick(rng, asks).format(function, v=variable), answer)


def equation_steps(rng: random.Random) -> Item:
    """Solve an equation with the steps written out."""
    variable, a, b, solution = linear_equation(rng)
    text, c = equation_text(variable, a, b, solution), a * solution + b
    verb, side, sign = ("Subtract", "from", "-") if b > 0 else ("Add", "to", "+")
    term = variable if a == 1 else f"{a}{variable}"
    answer = f"{verb} {abs(b)} {side} both sides: {term} = {c} {sign} {abs(b)} = {a * solution}."
    if a > 1:
        answer += f" Divide both sides by {a}: {variable} = {a * solution} / {a} = {solution}."
    key = f"equation|{variable}|{a}|{b}|{solution}"
    return chat(key, ask_equation(rng, variable, text), f"{answer} The solution is {variable} = {solution}.")


def word_problem(rng: random.Random) -> Item:
    """Solve a story sum of one step, with the sum written out."""
    name, other, thing = (
        pick(rng, NAMES),
        pick(rng, NAMES),
        pick(rng, ("birds", "books", "candles", "clocks", "lemons")),
    )
    a, b = rng.randrange(2, 60), rng.randrange(2, 40)
    roll = rng.random()
    if roll < 0.4:
        story = pick(
            rng,
            (
                "{n} has {a} {t} and buys {b} more.",
                "{n} has {a} {t} and finds {b} more.",
                "{n} has {a} {t}. {o} gives {n} {b} more.",
            ),
        )
        value, working = a + b, sum_steps(a, "+", b)
    elif roll < 0.75:
        a, b = max(a, b), min(a, b)
        story = pick(rng, ("{n} has {a} {t} and loses {b}.", "{n} has {a} {t} and gives {b} to {o}."))
        value, working = a - b, sum_steps(a, "-", b)
    else:
        a, b = rng.randrange(2, 11), rng.randrange(2, 11)
        story = "{n} has {a} boxes with {b} {t} in each box."
        value, working = a * b, f"{a} * {b} = {a * b}"
    user = story.format(n=name, o=other, a=a, b=b, t=thing) + f" How many {thing} does {name} have?"
    return chat(f"story|{working}", user, f"{working}. {name} has {value} {thing}.")


_FUNCTIONS: tuple[tuple[str, str, str], ...] = (
    ("add", "a, b", "return a + b"),
    ("square", "n", "return n * n"),
    ("double", "n", "return n * 2"),
    ("half", "n", "return n / 2"),
    ("total", "items", "return sum(items)"),
    ("count", "items", "return len(items)"),
    ("first", "items", "return items[0]"),
    ("last", "items", "return items[-1]"),
    ("sort", "items", "return sorted(items)"),
    ("copy", "items", "return list(items)"),
    ("hello", "name", 'return "Hello, " + name'),
)
_NUMBER_FUNCTIONS: tuple[tuple[str, str], ...] = (
    ("plus_{k}", "return {v} + {k}"),
    ("minus_{k}", "return {v} - {k}"),
    ("times_{k}", "return {v} * {k}"),
    ("divided_by_{k}", "return {v} / {k}"),
    ("large_{k}", "return {v} > {k}"),
    ("small_{k}", "return {v} < {k}"),
)


def _function(rng: random.Random) -> tuple[str, str, str]:
    """Return the key, the head and the body of a small function."""
    if rng.random() < 0.5:
        name, arguments, body = _FUNCTIONS[rng.randrange(len(_FUNCTIONS))]
        return f"known|{name}", f"def {name}({arguments}):", body
    template, body = _NUMBER_FUNCTIONS[rng.randrange(len(_NUMBER_FUNCTIONS))]
    number, variable = rng.randrange(1, 100), pick(rng, ("n", "x", "value", "number"))
    name = template.format(k=number)
    return name, f"def {name}({variable}):", body.format(v=variable, k=number)


def complete_function(rng: random.Random) -> Item:
    """Complete a function from its head; unseen constants are held out."""
    key, head, body = _function(rng)
    key = TRAIN_ONLY + key if key.startswith("known|") else key
    return Item(key=key, prompt=head, completion=f"\n    {body}\n", is_split=True)


def write_function(rng: random.Random) -> Item:
    """Write a function that a chat asks for by name; unseen constants and wordings are held out."""
    key, head, body = _function(rng)
    asks = (
        "Write a Python function {}.",
        "Write the Python function {}.",
        "Complete this function: {}",
        "Complete: {}",
        "Write the function {}",
        "Implement {}",
        "Show me the Python code of {}.",
        "写一个Python函数：{}",
    )
    user = pick(rng, asks).format(head if rng.random() < 0.5 else head[4:-1])
    key = user if key.startswith("known|") else key
    return chat(key, user, f"{head}\n    {body}")


ADAPTER_TASKS: dict[str, dict[str, Task]] = {
    "math_tuned": {
        "derivative": Task(derivative, "differentiate ax^n + bx (unseen functions)", 5),
        "equation_steps": Task(equation_steps, "solve ax + b = c step by step (unseen equations)", 4),
        "word_problem": Task(word_problem, "story sums of one step (unseen numbers)", 3),
    },
    "code_tuned": {
        "complete_function": Task(complete_function, "complete a function from its head (unseen constants)", 4),
        "write_function": Task(write_function, "write a function in a chat (unseen constants and wordings)", 4),
    },
}
"""The tasks of each adapter, by name."""
