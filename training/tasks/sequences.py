"""Generates copying, sorting, counting and the alphabet."""

from __future__ import annotations

import random
import string

from training.tasks.base import LEADS, Item, chat, document, loosen, pick, split_list

WORDS = split_list(
    "apple river stone cloud green table window music garden paper silver winter summer orange bread water light "
    "mountain forest bridge candle flower yellow purple kitchen pencil rabbit tiger horse monkey basket castle "
    "dragon island jacket kettle lemon market needle ocean pepper quiet rocket saddle tunnel umbrella violin wagon "
    "red blue black white house tree book moon sun star road ship train bird fish cat dog snow rain wind fire sand "
    "hand door chair glass clock coin drum echo feather glove honey iron jewel king leaf mirror nest oak pearl queen "
    "ring salt tea vase wheel zebra happy small large warm cold fast slow new old kind brave"
)
_CHINESE_WORDS = split_list(
    "苹果 河流 石头 白云 绿色 桌子 窗户 音乐 花园 纸张 冬天 夏天 面包 清水 月亮 太阳 星星 火车 小鸟 大海"
)
_ONSETS = split_list("b d f g k l m n p r s t v z br tr st sh ch")
_VOWELS = split_list("a e i o u ai or an el")

_ASK_COPY = (
    "Repeat after me: {}",
    "Repeat: {}",
    "Copy: {}",
    "Copy this: {}",
    "Copy this text: {}",
    "Echo: {}",
    "Say: {}",
    "Say this again: {}",
    "Repeat the following words: {}",
    "Write exactly this: {}",
    "重复：{}",
)
_ASK_SORT = (
    "Sort these numbers: {}",
    "Sort: {}",
    "Sort the numbers {}",
    "Sort from small to large: {}",
    "Put these numbers in order: {}",
    "Sort {} in ascending order.",
    "Order these numbers: {}",
    "Please sort {}",
    "把这些数字排序：{}",
)


def made_up_word(rng: random.Random) -> str:
    """Make a word of two or three random syllables, so that copying is not tied to known words."""
    return "".join(pick(rng, _ONSETS) + pick(rng, _VOWELS) for _ in range(rng.choice((2, 2, 3))))


def copy(rng: random.Random) -> Item:
    """Repeat one to eight words or numbers."""
    count, roll = rng.randrange(1, 9), rng.random()
    separator = " " if rng.random() < 0.75 else ", "
    if roll < 0.08:
        text = "，".join(pick(rng, _CHINESE_WORDS) for _ in range(count))
    else:
        kinds = "kmn" if roll < 0.5 else pick(rng, "kmn")
        text = separator.join(_copy_word(rng, rng.choice(kinds)) for _ in range(count))
    if rng.random() < 0.1:
        text = text[0].upper() + text[1:] + "."
    return chat(f"copy|{text}", pick(rng, _ASK_COPY).format(text), text)


def _copy_word(rng: random.Random, kind: str) -> str:
    if kind == "k":
        return pick(rng, WORDS)  # a known word
    return made_up_word(rng) if kind == "m" else str(rng.randrange(100))


def sort(rng: random.Random) -> Item:
    """Sort two to six numbers below 50."""
    return _sort(rng, 6)


def short_sort(rng: random.Random) -> Item:
    """Sort two to five numbers below 50."""
    return _sort(rng, 5)


def _sort(rng: random.Random, longest: int) -> Item:
    top = 10 if rng.random() < 0.2 else 50
    numbers = [rng.randrange(top) for _ in range(rng.randrange(2, longest + 1))]
    asked = ", ".join(map(str, numbers))
    shown = asked if rng.random() < 0.8 else " ".join(map(str, numbers))
    return chat(f"sort|{asked}", pick(rng, _ASK_SORT).format(shown), ", ".join(map(str, sorted(numbers))))


def count(rng: random.Random) -> Item:
    """Count from one number to another, up to 50 steps and below 100."""
    first = 1 if rng.random() < 0.4 else rng.randrange(60)
    last = first + rng.randrange(2, 50 if rng.random() < 0.5 else 15)
    if rng.random() < 0.1:
        first, last = 1, 50
    answer = ", ".join(str(number) for number in range(first, last + 1))
    key = f"count|{first}|{last}"
    if rng.random() < 0.1:
        return document(key, f"Counting from {first} to {last}:", f" {answer}.")
    asks = (
        "Count from {} to {}",
        "Count from {} to {}.",
        "Count from {} to {}.",
        "Please count from {} to {}.",
        "Can you count from {} to {}?",
        "List the numbers from {} to {}.",
        "从{}数到{}",
    )
    return chat(key, pick(rng, asks).format(first, last), answer)


def alphabet(rng: random.Random) -> Item:
    """Say the alphabet, a letter's neighbour or its position; the wording is what is held out."""
    letters, roll = string.ascii_uppercase, rng.random()
    asks: tuple[str, ...]
    if roll < 0.3:
        asks = ("Say the alphabet.", "Write the alphabet.", "List the letters of the alphabet.", "Recite the alphabet.")
        user = pick(rng, asks)
        answer = " ".join(letters)
    elif roll < 0.65:
        index = rng.randrange(25)
        asks = ("Which letter comes after {}?", "What letter follows {}?", "What comes after {} in the alphabet?")
        user, answer = pick(rng, asks).format(letters[index]), f"{letters[index + 1]} comes after {letters[index]}."
    else:
        index = rng.randrange(1, 26)
        asks = ("Which letter comes before {}?", "What letter is before {}?", "What comes before {} in the alphabet?")
        user, answer = pick(rng, asks).format(letters[index]), f"{letters[index - 1]} comes before {letters[index]}."
    user = loosen(rng, pick(rng, LEADS) + user)
    return chat(f"alphabet|{user}", user, answer)
