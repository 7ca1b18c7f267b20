"""Generates questions about memorised facts and the plain sentences that state them."""

from __future__ import annotations

import random

from training.tasks.base import LEADS, TRAIN_ONLY, Item, chat, document, loosen, pick
from training.tasks.fact_tables import CAPITALS, CAPITALS_ZH, FACTS, FACTS_ZH

_ASK_CAPITAL = (
    "What is the capital of {}?",
    "What is the capital of {}?",
    "What's the capital of {}?",
    "What is the capital city of {}?",
    "Which city is the capital of {}?",
    "Tell me the capital of {}.",
    "Name the capital of {}.",
    "Do you know the capital of {}?",
    "The capital of {}?",
    "Can you tell me the capital of {}?",
    "I need the capital of {}.",
    "Give me the capital of {}.",
)
_ASK_CAPITAL_ZH = (
    "{}的首都是哪里？",
    "{}的首都是哪里？",
    "{}的首都是什么？",
    "{}的首都是哪个城市？",
    "{}的首都在哪里？",
    "{}的首都叫什么？",
    "哪个城市是{}的首都？",
    "请说出{}的首都。",
    "告诉我{}的首都。",
    "你知道{}的首都吗？",
)
_LEADS_ZH = ("", "", "", "请问，", "你好，", "请告诉我，", "问题：", "再问一下，", "我想知道，")


def facts_en(rng: random.Random) -> Item:
    """Ask for an English fact; the wording is what is held out."""
    if rng.random() < 0.5:
        country = pick(rng, tuple(CAPITALS))
        question, answer = pick(rng, _ASK_CAPITAL).format(country), capital_sentence(country)
    else:
        questions, answer = FACTS[rng.randrange(len(FACTS))]
        question = pick(rng, questions)
    if rng.random() < 0.15:
        return document(f"{TRAIN_ONLY}{answer}", *_cut(rng, answer))
    user = loosen(rng, pick(rng, LEADS) + question)
    return chat(user, user, answer)


def capital_sentence(country: str) -> str:
    """State the capital of a country."""
    return f"The capital of {country} is {CAPITALS[country]}."


def facts_zh(rng: random.Random) -> Item:
    """Ask for a Chinese fact; the wording is what is held out."""
    if rng.random() < 0.6:
        country = pick(rng, tuple(CAPITALS_ZH))
        question, answer = pick(rng, _ASK_CAPITAL_ZH).format(country), f"{country}的首都是{CAPITALS_ZH[country]}。"
    else:
        questions, answer = FACTS_ZH[rng.randrange(len(FACTS_ZH))]
        question = pick(rng, questions)
    if rng.random() < 0.15:
        middle = rng.randrange(1, len(answer) - 1)
        return document(f"{TRAIN_ONLY}{answer}", answer[:middle], answer[middle:])
    user = pick(rng, _LEADS_ZH) + question
    if rng.random() < 0.08 and user[-1] in "？。":
        user = user[:-1]
    return chat(user, user, answer)


def _cut(rng: random.Random, sentence: str) -> tuple[str, str]:
    words = sentence.split(" ")
    middle = rng.randrange(1, len(words))
    return " ".join(words[:middle]), " " + " ".join(words[middle:])


def plain_facts(rng: random.Random) -> Item:
    """State one to three facts as running text, as a completion request would continue them."""
    sentences = [_any_sentence(rng) for _ in range(rng.choice((1, 1, 2, 3)))]
    prompt, completion = _cut(rng, sentences[0])
    return document(f"{TRAIN_ONLY}{sentences}", prompt, " ".join([completion, *sentences[1:]]))


def _any_sentence(rng: random.Random) -> str:
    if rng.random() < 0.5:
        return capital_sentence(pick(rng, tuple(CAPITALS)))
    return FACTS[rng.randrange(len(FACTS))][1]
