"""Joins several examples into one longer chat, so that earlier turns and distance do not disturb an answer."""

from __future__ import annotations

import random

from training.tasks.arithmetic import equations, multiply_divide, number_words, sums, word_arithmetic
from training.tasks.base import TRAIN_ONLY, Generator, Item, Message, is_held_out
from training.tasks.chat import open_question, remember_name, small_talk
from training.tasks.facts import facts_en, facts_zh
from training.tasks.longform import long_text
from training.tasks.sequences import copy, count, sort
from training.tasks.structured import json_object

_PARTS: tuple[Generator, ...] = (
    sums,
    sums,
    equations,
    multiply_divide,
    number_words,
    word_arithmetic,
    small_talk,
    facts_en,
    facts_zh,
    copy,
    sort,
    count,
    json_object,
    long_text,
    open_question,
)


def conversation(rng: random.Random) -> Item:
    """Chat about two to five unrelated things in a row, every answer as if it came first."""
    messages: list[Message] = []
    if rng.random() < 0.2:
        messages += _training_part(rng, remember_name).messages
    for _ in range(rng.randrange(2, 6)):
        messages += _training_part(rng, _PARTS[rng.randrange(len(_PARTS))]).messages
    return Item(key=TRAIN_ONLY + "conversation", messages=tuple(messages))


def _training_part(rng: random.Random, generator: Generator) -> Item:
    while True:
        item = generator(rng)
        if item.is_chat and not is_held_out(item.key):
            return item
