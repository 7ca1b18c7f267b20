"""Lists the tasks of the built-in model: seeded generators, what each one claims, and its share of the training."""

from __future__ import annotations

from training.tasks import arithmetic, chat, conversation, facts, longform, sequences, structured
from training.tasks.base import Task

TASKS: dict[str, Task] = {
    "sums": Task(arithmetic.sums, "add and subtract below 100 (unseen pairs of numbers)", 34),
    "multiply_divide": Task(arithmetic.multiply_divide, "tables up to 12 x 12 and back (unseen wordings)", 14),
    "number_words": Task(arithmetic.number_words, "numbers below 100 to words and back (unseen wordings)", 8),
    "word_arithmetic": Task(arithmetic.word_arithmetic, "sums in words up to twenty (unseen pairs)", 8),
    "equations": Task(arithmetic.equations, "solve ax + b = c (unseen equations)", 22),
    "copy": Task(sequences.copy, "repeat up to 8 words or numbers (unseen texts)", 12),
    "sort": Task(sequences.sort, "sort up to 5 numbers below 50 (unseen lists)", 16, sequences.short_sort),
    "count": Task(sequences.count, "count from a to b, below 110 (unseen pairs)", 4),
    "alphabet": Task(sequences.alphabet, "the alphabet and its neighbours (unseen wordings)", 6),
    "facts_en": Task(facts.facts_en, "77 small facts in English (unseen wordings)", 6),
    "facts_zh": Task(facts.facts_zh, "47 small facts in Chinese (unseen wordings)", 5),
    "small_talk": Task(chat.small_talk, "greetings and questions about the model (unseen wordings)", 6),
    "remember_name": Task(chat.remember_name, "recall a name from an earlier turn (unseen names)", 3),
    "open_question": Task(chat.open_question, "say plainly that it cannot answer (unseen questions)", 1.5),
    "long_text": Task(longform.long_text, "16 memorised texts (unseen wordings)", 2),
    "tool_call": Task(structured.tool_call, "call the right tool with the right argument (unseen arguments)", 5),
    "tool_result": Task(structured.tool_result, "answer from a tool result, or without a tool (unseen arguments)", 2),
    "json_object": Task(structured.json_object, "write facts of a sentence as JSON (unseen people)", 5),
    "plain_facts": Task(facts.plain_facts, weight=2),
    "plain_text": Task(longform.plain_text, weight=1),
    "conversation": Task(conversation.conversation, weight=1.2),
    "documented": Task(chat.documented, weight=1.5),
}
"""Every task of the base model, by name."""
