"""Generates sums, products, number words and linear equations."""

from __future__ import annotations

import random

from training.tasks.base import Item, chat, document, loosen, pick, split_list

_ONES = split_list(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
)
_TENS = split_list("twenty thirty forty fifty sixty seventy eighty ninety")

_ASK_VALUE = (
    "What is {}?",
    "What is {}?",
    "What is {}?",
    "{}",
    "{} =",
    "{} = ?",
    "Calculate {}.",
    "Compute {}.",
    "How much is {}?",
    "What's {}?",
    "Can you calculate {}?",
    "Tell me the result of {}.",
    "计算 {}",
    "{} 等于多少？",
    "{}等于几？",
)

_ASK_EQUATION = (
    "Solve this equation: {}",
    "Solve this equation: {}",
    "Solve: {}",
    "Solve {}",
    "Solve {}.",
    "Solve the equation {}.",
    "Solve {} for {v}.",
    "Find {v}: {}",
    "If {}, what is {v}?",
    "What is {v} if {}?",
    "{}",
    "解方程：{}",
    "解这个方程：{}",
    "求解：{}",
)


def number_in_words(number: int) -> str:
    """Write a number from 0 to 99 in English words."""
    if number < 20:
        return _ONES[number]
    tens, ones = divmod(number, 10)
    word = _TENS[tens - 2]
    return word if ones == 0 else f"{word}-{_ONES[ones]}"


def sums(rng: random.Random) -> Item:
    """Add or subtract two numbers below 100: first the tens of the second number, then its ones."""
    top = 20 if rng.random() < 0.15 else 100
    a, b = rng.randrange(top), rng.randrange(top)
    is_sum = rng.random() < 0.55
    if not is_sum and a < b:
        a, b = b, a
    sign, word = ("+", "plus") if is_sum else ("-", "minus")
    key = f"{'add' if is_sum else 'subtract'}|{a}|{b}"
    expression, answer = f"{a} {sign} {b}", sum_steps(a, sign, b)
    roll = rng.random()
    if roll < 0.1:
        return (
            document(key, f"{expression} =", answer.removeprefix(f"{expression} ="))
            if _is_one_step(b)
            else chat(key, expression, answer)
        )
    if roll < 0.2:
        expression = f"{a} {word} {b}"
    elif roll < 0.25:
        expression = expression.replace(" ", "")
    return chat(key, loosen(rng, pick(rng, _ASK_VALUE).format(expression)), answer)


def _is_one_step(b: int) -> bool:
    return b < 10 or b % 10 == 0


def sum_steps(a: int, sign: str, b: int) -> str:
    """Write a sum or difference in one step, or in two when ``b`` has tens and ones."""
    factor = 1 if sign == "+" else -1
    if _is_one_step(b):
        return f"{a} {sign} {b} = {a + factor * b}"
    tens, ones = b - b % 10, b % 10
    middle = a + factor * tens
    return f"{a} {sign} {tens} = {middle}, {middle} {sign} {ones} = {middle + factor * ones}"


def multiply_divide(rng: random.Random) -> Item:
    """Multiply numbers up to 12, or divide back; facts to memorise, so the wording is what is held out."""
    a, b = rng.randrange(1, 13), rng.randrange(1, 13)
    if rng.random() < 0.6:
        sign = pick(rng, ("*", "*", "x", "×", "times"))
        asked, answer = f"{a} {sign} {b}", f"{a} * {b} = {a * b}"
    else:
        sign = pick(rng, ("/", "/", "÷", "divided by"))
        asked, answer = f"{a * b} {sign} {b}", f"{a * b} / {b} = {a}"
    user = loosen(rng, pick(rng, _ASK_VALUE).format(asked))
    return chat(f"multiply|{user}", user, answer)


def number_words(rng: random.Random) -> Item:
    """Turn a number below 100 into words or back; the wording is what is held out."""
    number = rng.randrange(100)
    words = number_in_words(number)
    if rng.random() < 0.5:
        asks = (
            "Write {} in words.",
            "How do you write {} in words?",
            "Spell the number {}.",
            "{} in words",
            "What is {} in words?",
            "Say {} in English.",
            "Write the number {} as a word.",
            "How do you spell {}?",
        )
        user, answer = pick(rng, asks).format(number), words
    else:
        asks = (
            "Write {} in digits.",
            "Write {} as a number.",
            "{} in digits",
            "What is {} in digits?",
            "Which number is {}?",
            "Convert {} to digits.",
            "How do you write {} in digits?",
            "Turn {} into a number.",
        )
        user, answer = pick(rng, asks).format(words), str(number)
    user = loosen(rng, user)
    return chat(f"words|{user}", user, answer)


def word_arithmetic(rng: random.Random) -> Item:
    """Add or subtract numbers up to 20, written in words: computed in digits, then said in words."""
    a, b = rng.randrange(21), rng.randrange(21)
    if rng.random() < 0.5:
        sign, word, value = "+", "plus", a + b
    else:
        a, b = max(a, b), min(a, b)
        sign, word, value = "-", "minus", a - b
    asked = f"{number_in_words(a)} {word} {number_in_words(b)}"
    asks = ("What is {}?", "What is {}?", "How much is {}?", "What's {}?", "Calculate {}.", "{}", "Tell me {}.")
    answer = f"{sum_steps(a, sign, b)}, so {asked} is {number_in_words(value)}."
    return chat(f"say {asked}", loosen(rng, pick(rng, asks).format(asked)), answer)


def linear_equation(rng: random.Random, largest: int = 10) -> tuple[str, int, int, int]:
    """Draw ``a * v + b = c`` with a whole solution.

    Returns:
        The name of the unknown, ``a``, ``b`` (not 0, may be negative) and the solution.
    """
    variable = pick(rng, ("x", "x", "x", "x", "y", "n"))
    a = rng.randrange(1, 10)
    b = rng.choice((-1, 1)) * rng.randrange(1, 21)
    return variable, a, b, rng.randrange(1, largest + 1)


def equation_text(variable: str, a: int, b: int, solution: int) -> str:
    """Write the equation in digits."""
    term = variable if a == 1 else f"{a}{variable}"
    return f"{term} {'+' if b > 0 else '-'} {abs(b)} = {a * solution + b}"


def ask_equation(rng: random.Random, variable: str, text: str) -> str:
    """Word the request to solve an equation."""
    return pick(rng, _ASK_EQUATION).format(text, v=variable)


def equations(rng: random.Random) -> Item:
    """Solve ``ax + b = c``; the answer shows what is computed on both sides."""
    variable, a, b, solution = linear_equation(rng)
    text = equation_text(variable, a, b, solution)
    key = f"equation|{variable}|{a}|{b}|{solution}"
    return chat(key, ask_equation(rng, variable, text), solve(variable, a, b, solution))


def solve(variable: str, a: int, b: int, solution: int) -> str:
    """Write how the equation is solved."""
    product = a * solution
    term = variable if a == 1 else f"{a}{variable}"
    answer = f"{term} = {product + b} {'-' if b > 0 else '+'} {abs(b)} = {product}"
    return answer if a == 1 else f"{answer}, {variable} = {product} / {a} = {solution}"
