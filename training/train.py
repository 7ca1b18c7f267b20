"""Runs the training loop: Muon and AdamW, a constant and then falling learning rate, checkpoints, progress."""

from __future__ import annotations

import copy
import logging
import random
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.optim import AdamW, Muon, Optimizer

from training.corpus import Encoder, pack, training_batch
from training.model import Llama
from training.tasks.base import Generator, Task, held_out_items

logger = logging.getLogger(__name__)

LONG_EVERY = 8
"""Every eighth batch has rows of twice the length, for the longer chats."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides the result of a training run besides the tasks.

    Attributes:
        seed: Of the weights and of every batch.
        shards: Parts of a batch that are computed side by side, each on one thread.
        rows: Packed rows of a shard.
        length: Tokens of a row.
        steps: Number of optimizer steps.
        warmup: Steps in which the learning rate rises to its highest value.
        hold: Step up to which it stays there; from then on it falls to zero on a straight line.
        muon_lr: Learning rate of the matrices (Muon, Jordan et al. 2024).
        adam_lr: Learning rate of the embedding and the norms (AdamW).
        adam_power: Power with which that learning rate falls; 3 for the base model, because an embedding that still
            moves disturbs every layer above it.
        weight_decay: Of the matrices.
    """

    seed: int = 20250
    shards: int = 4
    rows: int = 4
    length: int = 256
    steps: int = 8000
    warmup: int = 100
    hold: int = 2000
    muon_lr: float = 0.02
    adam_lr: float = 0.004
    adam_power: int = 3
    weight_decay: float = 0.02

    def lr_factor(self, step: int, power: int = 1) -> float:
        """Return the learning rate of a step relative to the highest one."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        remaining = (self.steps - step) / (self.steps - self.hold)
        return float(min(1.0, remaining) ** power)


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run keeps its checkpoint, and how often it saves and evaluates.

    Attributes:
        checkpoint: File that is written, and read when it exists.
        every: Steps between two evaluations.
        items: Held-out items per task of such an evaluation.
    """

    checkpoint: Path
    every: int = 300
    items: int = 32


class Shards:
    """Copies of the model that share its weights, so that threads compute gradients of different batches at once.

    One thread per shard meets the others twice a step. Threads inside the matrix products would meet thousands of
    times, which costs several times the work as soon as other processes use the cores.
    """

    def __init__(self, model: Llama, recipe: Recipe) -> None:
        self.recipe = recipe
        self.copies = [model] + [_sharing_copy(model) for _ in range(recipe.shards - 1)]
        trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        parameters = [p for _, p in trained]
        named_peers = [dict(peer.named_parameters()) for peer in self.copies[1:]]
        self._peers = {id(p): [peer[name] for peer in named_peers] for name, p in trained}
        matrices = [p for name, p in trained if p.ndim == 2 and "layers." in name and "lora_" not in name]
        chosen = {id(p) for p in matrices}
        others = [p for p in parameters if id(p) not in chosen]
        self.optimizers: list[Optimizer] = [
            AdamW(others, lr=recipe.adam_lr, betas=(0.9, 0.95), weight_decay=0.0),
            *(
                Muon(
                    matrices[part :: recipe.shards], lr=recipe.muon_lr, momentum=0.95, weight_decay=recipe.weight_decay
                )
                for part in range(recipe.shards)
                if matrices
            ),
        ]
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["initial_lr"] = group["lr"]
        self.pool = ThreadPoolExecutor(recipe.shards)

    def update(self, optimizer: Optimizer, step: int) -> None:
        """Add up the gradients of one optimizer's parameters and take its step."""
        factor = self.recipe.lr_factor(step, 1 if isinstance(optimizer, Muon) else self.recipe.adam_power)
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
            for parameter in group["params"]:
                for peer in self._peers[id(parameter)]:
                    parameter.grad.add_(peer.grad)
                    peer.grad = None
        optimizer.step()
        optimizer.zero_grad()


def _sharing_copy(model: Llama) -> Llama:
    peer = copy.deepcopy(model)
    for mine, theirs in zip(model.parameters(), peer.parameters(), strict=True):
        theirs.data = mine.data
    return peer


def train(model: Llama, tasks: Mapping[str, Task], encoder: Encoder, recipe: Recipe, progress: Progress) -> float:
    """Train the model in place, going on from the checkpoint if there is one.

    The batch of a step depends on the seed and the step only, so an interrupted run ends as an uninterrupted one.

    Returns:
        Seconds of training, those before an interruption included.
    """
    shards = Shards(model, recipe)
    first, spent = _resume(model, shards.optimizers, progress.checkpoint)
    started, losses = time.monotonic(), []
    for step in range(first, recipe.steps):
        losses.append(_step(shards, tasks, encoder, recipe, step))
        done = step + 1
        if done % progress.every == 0 or done == recipe.steps:
            seconds = spent + time.monotonic() - started
            _save(model, shards.optimizers, progress.checkpoint, done, seconds)
            logger.info("step %d loss %.4f seconds %.0f", done, sum(losses) / len(losses), seconds)
            losses.clear()
            accuracies = quick_accuracy(model, tasks, encoder, progress.items)
            logger.info("  %s", "  ".join(f"{name} {value:.2f}" for name, value in accuracies.items()))
    return spent + time.monotonic() - started


def _step(shards: Shards, tasks: Mapping[str, Task], encoder: Encoder, recipe: Recipe, step: int) -> float:
    longer = 2 if step % LONG_EVERY == LONG_EVERY - 1 else 1

    def backward(shard: int) -> float:
        rng = random.Random(f"batch:{recipe.seed}:{step}:{shard}")
        batch = training_batch(tasks, encoder, rng, rows=max(1, recipe.rows // longer), length=recipe.length * longer)
        logits = shards.copies[shard](batch.ids, batch.mask, batch.wanted)
        losses = F.cross_entropy(logits, batch.targets, reduction="none")
        loss = (losses * batch.weights).sum() / recipe.shards
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    loss = sum(shards.pool.map(backward, range(recipe.shards)))
    list(shards.pool.map(lambda optimizer: shards.update(optimizer, step), shards.optimizers))
    return loss


@torch.no_grad()
def quick_accuracy(
    model: Llama, tasks: Mapping[str, Task], encoder: Encoder, items: int, seed: int = 1
) -> dict[str, float]:
    """Measure per task the share of held-out answers that greedy decoding would give word for word.

    The answer is fed in: greedy decoding gives it exactly when every one of its tokens is the most likely next one.
    """
    result = {}
    for name, task in tasks.items():
        if not task.claim:
            continue
        right = _right_answers(model, task.measured, encoder, items, seed)
        if len(right):
            result[name] = float(right.float().mean())
    return result


def _right_answers(model: Llama, generator: Generator, encoder: Encoder, items: int, seed: int) -> Tensor:
    found = held_out_items(generator, items, seed)
    if not found:
        return torch.zeros(0)
    examples = encoder.encode_for_test(found)
    longest = max(256, *(len(example.ids) for example in examples))
    total = sum(len(example.ids) for example in examples)
    batch = pack(examples, total // longest * 2 + 2, longest, encoder.pad_id)
    hits = model(batch.ids, batch.mask, batch.wanted).argmax(-1) == batch.targets
    wrong = torch.zeros(len(examples) + 1).index_add_(0, batch.owners, (~hits).float())
    return wrong[:-1] == 0


def _save(model: Llama, optimizers: list[Optimizer], path: Path, step: int, seconds: float) -> None:
    state = {
        "step": step,
        "seconds": seconds,
        "model": model.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)


def _resume(model: Llama, optimizers: list[Optimizer], path: Path) -> tuple[int, float]:
    if not path.exists():
        return 0, 0.0
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    return int(state["step"]), float(state["seconds"])
