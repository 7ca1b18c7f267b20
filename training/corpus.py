"""Turns items into token ids with a loss on the answers, and packs them into masked training batches."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jinja2
import torch
from tokenizers import Tokenizer
from torch import Tensor

from training.tasks.base import Item, Task, draw, with_system_prompt
from training.tokenizer import END_OF_TEXT, TURN_END, TURN_START, render

WANTED_MULTIPLE = 128
"""The number of learned tokens is rounded up, with weight 0, so that few different matrix shapes occur."""


@dataclass(frozen=True, slots=True)
class Example:
    """Token ids of one item and where its answers are.

    Attributes:
        ids: The whole text.
        wanted: Indices of the tokens whose next token belongs to an answer.
    """

    ids: list[int]
    wanted: list[int]


@dataclass(frozen=True, slots=True)
class Batch:
    """Packed examples.

    Attributes:
        ids: ``[rows, length]`` int64, padded with the end-of-text token.
        mask: ``[rows, 1, length, length]`` bfloat16, 0 where a token may look and a large negative number elsewhere.
        wanted: Flat indices of the tokens whose next token is learned, ``[count]`` int64.
        targets: Those next tokens, ``[count]`` int64.
        weights: Their share of the loss, ``[count]`` float32, summing to 1.
        owners: Number of the example that each wanted token belongs to, ``[count]`` int64; the number of examples for
            the tokens that only round up.
    """

    ids: Tensor
    mask: Tensor
    wanted: Tensor
    targets: Tensor
    weights: Tensor
    owners: Tensor


class Encoder:
    """Tokenizes items through the real chat template."""

    def __init__(self, tokenizer: Tokenizer, template: jinja2.Template) -> None:
        self.tokenizer, self.template = tokenizer, template
        self.pad_id = self.token_id(END_OF_TEXT)
        self._turn_start, self._turn_end = self.token_id(TURN_START), self.token_id(TURN_END)
        self._assistant: list[int] = tokenizer.encode("assistant\n").ids

    def token_id(self, token: str) -> int:
        """Return the id of a token that must exist."""
        found: int | None = self.tokenizer.token_to_id(token)
        assert found is not None, token
        return found

    def encode(self, items: Sequence[Item]) -> list[Example]:
        """Tokenize items; every assistant turn of a chat and all of a plain document is learned."""
        texts = [render(item, self.template) for item in items]
        encoded = [encoding.ids for encoding in self.tokenizer.encode_batch(texts)]
        for number, item in enumerate(items):
            if item.is_split:
                parts = (item.prompt, texts[number].removeprefix(item.prompt))
                encoded[number] = [token for part in parts for token in self.tokenizer.encode(part).ids]
        return [
            Example(ids, self._answer_positions(ids) if item.is_chat else list(range(len(ids) - 1)))
            for item, ids in zip(items, encoded, strict=True)
        ]

    def encode_for_test(self, items: Sequence[Item]) -> list[Example]:
        """Tokenize items; only the expected answer (the last turn, the completion) is wanted."""
        prompts = [render(item, self.template, for_answer=True) for item in items]
        starts = [len(encoding.ids) for encoding in self.tokenizer.encode_batch(prompts)]
        return [
            Example(example.ids, [i for i in example.wanted if i >= start - 1])
            for example, start in zip(self.encode(items), starts, strict=True)
        ]

    def _answer_positions(self, ids: list[int]) -> list[int]:
        header = [self._turn_start, *self._assistant]
        positions: list[int] = []
        for start in (i for i, token in enumerate(ids) if token == self._turn_start):
            first = start + len(header) - 1
            if ids[start : first + 1] == header:
                positions.extend(range(first, ids.index(self._turn_end, first)))
        return positions


def draw_items(tasks: Mapping[str, Task], rng: random.Random, count: int) -> list[Item]:
    """Draw training items from the weighted mixture."""
    chosen = rng.choices(list(tasks.values()), [task.weight for task in tasks.values()], k=count)
    return [with_system_prompt(draw(task.generate, rng, held_out=False), rng) for task in chosen]


def pack(examples: Sequence[Example], rows: int, length: int, pad_id: int) -> Batch:
    """Lay examples side by side into rows, the longest first, without letting them see each other.

    Positions are relative (rotary), so an example inside a row is computed as if it stood alone. Examples that do not
    fit any more are left out.
    """
    free, ids = [length] * rows, torch.full((rows, length), pad_id)
    segment = torch.full((rows, length), -1)
    wanted, targets, weights, owners = [], [], [], []
    for number, example in sorted(enumerate(examples), key=lambda pair: -len(pair[1].ids)):
        size = len(example.ids)
        row = next((row for row in range(rows) if free[row] >= size), None)
        if row is None:
            continue
        start = length - free[row]
        free[row] -= size
        ids[row, start : start + size] = torch.tensor(example.ids)
        segment[row, start : start + size] = number
        wanted += [row * length + start + i for i in example.wanted]
        targets += [example.ids[i + 1] for i in example.wanted]
        weights += [len(example.wanted) ** -0.5] * len(example.wanted)
        owners += [number] * len(example.wanted)
    missing = -len(wanted) % WANTED_MULTIPLE
    wanted, targets, weights = wanted + [0] * missing, targets + [pad_id] * missing, weights + [0.0] * missing
    owners += [len(examples)] * missing
    allowed = (segment[:, :, None] == segment[:, None, :]).tril()
    mask = torch.zeros(allowed.shape, dtype=torch.bfloat16).masked_fill(~allowed, -1e9)
    shares = torch.tensor(weights)
    return Batch(
        ids, mask[:, None], torch.tensor(wanted), torch.tensor(targets), shares / shares.sum(), torch.tensor(owners)
    )


def training_batch(tasks: Mapping[str, Task], encoder: Encoder, rng: random.Random, *, rows: int, length: int) -> Batch:
    """Draw and pack one batch of about ``rows * length`` tokens."""
    examples: list[Example] = []
    total = 0
    while total < rows * length:
        for example in encoder.encode(draw_items(tasks, rng, 16)):
            if len(example.ids) <= length:
                examples.append(example)
                total += len(example.ids)
    return pack(examples, rows, length, encoder.pad_id)
