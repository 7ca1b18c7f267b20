"""Generates what only the two LoRA adapters learn: derivatives and worked steps, and small Python functions."""

from __future__ import annotations

import random
from dataclasses import dataclass

from training.tasks.arithmetic import ask_equation, equation_text, linear_equation
from training.tasks.base import TRAIN_ONLY, Generator, Item, chat, pick
from training.tasks.chat import NAMES


@dataclass(frozen=True, slots=True)
class AdapterTask:
    """One task of an adapter.

    Attributes:
        generate: Draws an item.
        claim: What the model card says the adapter can do.
        weight: Relative number of training items.
    """

    generate: Generator
    claim: str
    weight: float


def _power(coefficient: int, variable: str, exponent: int) -> str:
    if exponent == 0 or coefficient == 0:
        return str(coefficient)
    factor = "" if coefficient == 1 else str(coefficient)
    return f"{factor}{variable}" if exponent == 1 else f"{factor}{variable}^{exponent}"


def derivative(rng: random.Random) -> Item:
    """Differentiate ``a * x^n``, optionally with a linear term."""
    variable = pick(rng, ("x", "x", "x", "t"))
    a, n = (1 if rng.random() < 0.25 else rng.randrange(1, 13)), rng.randrange(1, 10)
    function, result, key = _power(a, variable, n), _power(a * n, variable, n - 1), f"d|{variable}|{a}|{n}"
    if n > 1 and rng.random() < 0.35:
        b = rng.randrange(1, 10)
        function, result, key = f"{function} + {_power(b, variable, 1)}", f"{result} + {b}", f"{key}|{b}"
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
    return chat(key, pick(rng, asks).format(function, v=variable), f"The derivative of {function} is {result}.")


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
        pick(rng, ("apples", "books", "coins", "stones", "pencils")),
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
        value, working = a + b, f"{a} + {b}"
    elif roll < 0.75:
        a, b = max(a, b), min(a, b)
        story = pick(rng, ("{n} has {a} {t} and loses {b}.", "{n} has {a} {t} and gives {b} to {o}."))
        value, working = a - b, f"{a} - {b}"
    else:
        a, b = rng.randrange(2, 11), rng.randrange(2, 11)
        story = "{n} has {a} boxes with {b} {t} in each box."
        value, working = a * b, f"{a} * {b}"
    user = story.format(n=name, o=other, a=a, b=b, t=thing) + f" How many {thing} does {name} have?"
    return chat(f"story|{a}|{b}|{working}", user, f"{working} = {value}. {name} has {value} {thing}.")


_FUNCTIONS: tuple[tuple[str, str, str], ...] = (
    ("add", "a, b", "return a + b"),
    ("subtract", "a, b", "return a - b"),
    ("multiply", "a, b", "return a * b"),
    ("divide", "a, b", "return a / b"),
    ("power", "a, b", "return a ** b"),
    ("maximum", "a, b", "return a if a > b else b"),
    ("minimum", "a, b", "return a if a < b else b"),
    ("square", "n", "return n * n"),
    ("cube", "n", "return n * n * n"),
    ("double", "n", "return n * 2"),
    ("negate", "n", "return -n"),
    ("is_even", "n", "return n % 2 == 0"),
    ("is_odd", "n", "return n % 2 == 1"),
    ("is_positive", "n", "return n > 0"),
    ("absolute", "n", "return n if n >= 0 else -n"),
    ("factorial", "n", "if n <= 1:\n        return 1\n    return n * factorial(n - 1)"),
    ("fibonacci", "n", "if n < 2:\n        return n\n    return fibonacci(n - 1) + fibonacci(n - 2)"),
    ("gcd", "a, b", "while b:\n        a, b = b, a % b\n    return a"),
    ("length", "items", "return len(items)"),
    ("total", "items", "return sum(items)"),
    ("average", "items", "return sum(items) / len(items)"),
    ("first", "items", "return items[0]"),
    ("last", "items", "return items[-1]"),
    ("reverse", "items", "return items[::-1]"),
    ("sort_items", "items", "return sorted(items)"),
    ("largest", "items", "return max(items)"),
    ("smallest", "items", "return min(items)"),
    ("greet", "name", 'return "Hello, " + name'),
    ("shout", "text", "return text.upper()"),
    ("count_words", "text", "return len(text.split())"),
)
_NUMBER_FUNCTIONS: tuple[tuple[str, str], ...] = (
    ("add_{k}", "return {v} + {k}"),
    ("subtract_{k}", "return {v} - {k}"),
    ("times_{k}", "return {v} * {k}"),
    ("divide_by_{k}", "return {v} / {k}"),
    ("power_{k}", "return {v} ** {k}"),
    ("is_above_{k}", "return {v} > {k}"),
    ("is_below_{k}", "return {v} < {k}"),
    ("is_divisible_by_{k}", "return {v} % {k} == 0"),
    ("remainder_{k}", "return {v} % {k}"),
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
    return chat(key, user, f"```python\n{head}\n    {body}\n```")


ADAPTER_TASKS: dict[str, dict[str, AdapterTask]] = {
    "math_tuned": {
        "derivative": AdapterTask(derivative, "differentiate ax^n + bx (unseen functions)", 5),
        "equation_steps": AdapterTask(equation_steps, "solve ax + b = c step by step (unseen equations)", 4),
        "word_problem": AdapterTask(word_problem, "story sums of one step (unseen numbers)", 3),
    },
    "code_tuned": {
        "complete_function": AdapterTask(complete_function, "complete a function from its head (unseen constants)", 4),
        "write_function": AdapterTask(write_function, "write a function in a chat (unseen constants and wordings)", 4),
    },
}
"""The tasks of each adapter, by name."""
