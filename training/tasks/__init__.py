"""Lists the tasks of the built-in model: seeded generators, what each one claims, and its share of the training."""

from __future__ import annotations

from dataclasses import dataclass

from training.tasks import arithmetic, chat, conversation, facts, longform, sequences, structured
from training.tasks.base import Generator

PHASE_STARTS = (0, 500, 900)
"""Steps of the base training at which the weights of the tasks change.

The model first meets everything, with sums and equations answered at once. Then the tasks that take longest get more
room, and at last sums and equations are answered with their working, which is what the finished model does.
"""


@dataclass(frozen=True, slots=True)
class Task:
    """One task.

    Attributes:
        generate: Draws an item.
        claim: What the model card says the model can do.
        weights: Relative number of training items in each phase.
        evaluated: Whether held-out items count; false for what is only memorised or belongs to an early phase.
        weight: The weight of the phase this copy of the task is for.
    """

    generate: Generator
    claim: str
    weights: tuple[float, float, float]
    evaluated: bool = True
    weight: float = 0.0


def _claimed(generate: Generator, claim: str, *weights: float) -> Task:
    first, second, third = weights if len(weights) == 3 else weights * 3
    return Task(generate, claim, (first, second, third))


def _silent(generate: Generator, *weights: float) -> Task:
    first, second, third = weights if len(weights) == 3 else weights * 3
    return Task(generate, "", (first, second, third), evaluated=False)


TASKS: dict[str, Task] = {
    "direct_sums": _silent(arithmetic.add_subtract, 24, 18, 0),
    "sums": _claimed(arithmetic.sums, "add and subtract below 100 (unseen pairs of numbers)", 0, 0, 36),
    "multiply_divide": _claimed(arithmetic.multiply_divide, "tables up to 12 x 12 and back (unseen wordings)", 6, 9, 9),
    "number_words": _claimed(arithmetic.number_words, "numbers below 100 to words and back (unseen wordings)", 5),
    "word_arithmetic": _claimed(arithmetic.word_arithmetic, "sums in words up to twenty (unseen pairs)", 6),
    "direct_equations": _silent(arithmetic.equations, 18, 24, 0),
    "equations": _claimed(arithmetic.worked_equations, "solve ax + b = c (unseen equations)", 0, 0, 24),
    "copy": _claimed(sequences.copy, "repeat up to 8 words or numbers (unseen texts)", 8, 11, 11),
    "sort": _claimed(sequences.sort, "sort up to 6 numbers below 50 (unseen lists)", 12),
    "count": _claimed(sequences.count, "count from a to b, below 110 (unseen pairs)", 1.5, 1.2, 1.8),
    "alphabet": _claimed(sequences.alphabet, "the alphabet and its neighbours (unseen wordings)", 2, 2, 3),
    "facts_en": _claimed(facts.facts_en, "77 small facts in English (unseen wordings)", 6),
    "facts_zh": _claimed(facts.facts_zh, "47 small facts in Chinese (unseen wordings)", 5),
    "small_talk": _claimed(chat.small_talk, "greetings and questions about the model (unseen wordings)", 4),
    "remember_name": _claimed(chat.remember_name, "recall a name from an earlier turn (unseen names)", 3),
    "open_question": _claimed(chat.open_question, "say plainly that it cannot answer (unseen questions)", 2, 1, 1),
    "long_text": _claimed(longform.long_text, "16 memorised texts (unseen wordings)", 2),
    "tool_call": _claimed(
        structured.tool_call, "call the right tool with the right argument (unseen arguments)", 4, 2.8, 2.8
    ),
    "tool_result": _claimed(
        structured.tool_result, "answer from a tool result, or without a tool (unseen arguments)", 1.2
    ),
    "json_object": _claimed(structured.json_object, "write facts of a sentence as JSON (unseen people)", 5),
    "plain_facts": _silent(facts.plain_facts, 2),
    "plain_text": _silent(longform.plain_text, 1),
    "direct_conversation": _silent(conversation.conversation, 2, 1, 0),
    "conversation": _silent(conversation.worked_conversation, 0, 0, 1),
    "small_sums": _silent(arithmetic.small_sums, 0, 18, 0),
    "direct_documented": _silent(chat.direct_documented, 0, 1.5, 0),
    "documented": _silent(chat.documented, 0, 0, 1.5),
}
"""Every task of the base model, by name."""


def _phase(number: int) -> dict[str, Task]:
    tasks = {}
    for name, task in TASKS.items():
        tasks[name] = Task(task.generate, task.claim, task.weights, task.evaluated, task.weights[number])
    return tasks


_PHASES = tuple(_phase(number) for number in range(len(PHASE_STARTS)))


def mixture(step: int) -> dict[str, Task]:
    """Return the tasks with their weights at a step of the base training."""
    return _PHASES[sum(step >= start for start in PHASE_STARTS) - 1]
