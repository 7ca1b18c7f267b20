"""Defines one training item, the random helpers of the generators, and the train/held-out split."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

HELD_OUT_PERCENT = 8
"""Share of the item keys that training never sees, in percent."""

TRAIN_ONLY = "train-only|"
"""Prefix of the keys of examples that are memorised as they stand, so that none of them can be held out."""

Message = dict[str, Any]
"""One chat message as the chat template reads it (``role``, ``content``, ``tool_calls``)."""

# Prompts of the project's own documentation: always trained on, so never counted as held out.
PINNED_KEYS = frozenset(
    {
        "add|12|30",
        "equation|x|2|5|4",
        "Hello, how are you?",
        "Hello",
        "Hello!",
        "What is the capital of France?",
        "Tell me a joke.",
        "Tell me a short story.",
        "Tell me about machine learning",
        "你好，你好吗？",
        "法国的首都是哪里？",
        "count|1|50",
        "d|x|1|2",
    }
)


@dataclass(frozen=True, slots=True)
class Item:
    """One example: a chat whose last message is the expected answer, or a plain document.

    Attributes:
        key: What the split hashes. Two items with one key are the same example, or one that gives the answer away.
        messages: The chat, the expected answer last; empty for a plain document.
        tools: OpenAI tool schemas shown to the model.
        prompt: Start of a plain document (what a user of ``/v1/completions`` would send).
        completion: Rest of the plain document, the expected answer.
        is_split: Whether prompt and completion are tokenized apart, as a server sees them; it matters where a token
            would reach across the border.
    """

    key: str
    messages: tuple[Message, ...] = ()
    tools: tuple[dict[str, Any], ...] = ()
    prompt: str = ""
    completion: str = ""
    is_split: bool = False

    @property
    def is_chat(self) -> bool:
        """Whether this is a chat, not a plain document."""
        return bool(self.messages)


Generator = Callable[[random.Random], Item]
"""Draws one item; everything random comes from the argument."""


@dataclass(frozen=True, slots=True)
class Task:
    """One thing that is trained.

    Attributes:
        generate: Draws an item.
        claim: What a model card says about it; empty for what is only memorised and therefore not measured.
        weight: Relative number of training items.
        claimed: Draws the items the claim is about, where more is trained than is claimed.
    """

    generate: Generator
    claim: str = ""
    weight: float = 1.0
    claimed: Generator | None = None

    @property
    def measured(self) -> Generator:
        """Draws the items that accuracy is measured on."""
        return self.claimed or self.generate


def is_held_out(key: str) -> bool:
    """Tell whether items with this key are kept for evaluation, by a hash that never changes."""
    if key in PINNED_KEYS or key.startswith(TRAIN_ONLY):
        return False
    digest = hashlib.sha256(key.encode("utf-8")).digest()
    return int.from_bytes(digest[:4], "big") % 100 < HELD_OUT_PERCENT


def draw(generator: Generator, rng: random.Random, *, held_out: bool) -> Item:
    """Draw items until one lies on the wanted side of the split."""
    while True:
        item = generator(rng)
        if is_held_out(item.key) == held_out:
            return item


def held_out_items(generator: Generator, count: int, seed: int) -> list[Item]:
    """Draw up to ``count`` held-out items with different prompts.

    Gives fewer when the generator does not have that many.
    """
    rng = random.Random(seed)
    found: dict[str, Item] = {}
    for _ in range(count * 600):
        item = generator(rng)
        if is_held_out(item.key):
            found.setdefault(repr((item.messages[:-1], item.prompt)), item)
        if len(found) == count:
            break
    return list(found.values())


def chat(key: str, user: str, answer: str) -> Item:
    """Make a chat of one user turn and its answer."""
    return Item(
        key=key,
        messages=({"role": "user", "content": user}, {"role": "assistant", "content": answer}),
    )


def document(key: str, prompt: str, completion: str) -> Item:
    """Make a plain document that a completion request would start with ``prompt``."""
    return Item(key=key, prompt=prompt, completion=completion)


def split_list(text: str, separator: str | None = None) -> tuple[str, ...]:
    """Split a list that is easier to read as one string."""
    return tuple(text.split(separator))


def pick(rng: random.Random, options: Sequence[str]) -> str:
    """Choose one string."""
    return options[int(rng.random() * len(options))]


LEADS = (
    "",
    "",
    "",
    "",
    "",
    "Hi! ",
    "Hello, ",
    "A question: ",
    "Quick question: ",
    "Now: ",
    "Next: ",
    "OK. ",
    "Hey, ",
    "So, ",
)
"""What people put in front of a request."""


def loosen(rng: random.Random, text: str) -> str:
    """Sometimes write a prompt as people type: no capital letter, no final mark, a polite word."""
    roll = rng.random()
    if roll < 0.06:
        return text[0].lower() + text[1:]
    if roll < 0.12 and text[-1] in ".?":
        return text[:-1]
    if roll < 0.16 and text[0].isascii():
        return "Please " + text[0].lower() + text[1:] if text[-1] == "." else "Please answer: " + text
    return text


SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are a helpful assistant",
    "You are a friendly assistant.",
    "Answer briefly.",
    "You are a helpful assistant. Answer briefly and politely.",
    "You are a small and helpful chat model.",
    "你是一个有用的助手。",
)


def with_system_prompt(item: Item, rng: random.Random, share: float = 0.2) -> Item:
    """Put a system message in front of a share of the chats; the answer stays the same."""
    if not item.is_chat or item.messages[0]["role"] == "system" or rng.random() >= share:
        return item
    system: Message = {"role": "system", "content": pick(rng, SYSTEM_PROMPTS)}
    return replace(item, messages=(system, *item.messages))
