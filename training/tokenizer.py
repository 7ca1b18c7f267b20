"""Trains the byte-level BPE tokenizer and renders chats through the shipped chat template."""

from __future__ import annotations

import json
import random
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2
from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from training.tasks import TASKS
from training.tasks.adapters import ADAPTER_TASKS
from training.tasks.base import Item, draw, with_system_prompt

VOCAB_SIZE = 2048
END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
_SPECIAL = (END_OF_TEXT, TURN_START, TURN_END)
_TAGS = ("<tools>", "</tools>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")

# The splitting rule of Qwen 2, so that every digit is its own token and other tools know how to split the same way.
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SAMPLES_PER_TASK = 2500


@lru_cache(maxsize=4)
def load_template(path: Path) -> jinja2.Template:
    """Compile a chat template the way transformers does."""
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, autoescape=False)
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    return environment.from_string(path.read_text(encoding="utf-8"))


def render(item: Item, template: jinja2.Template, *, for_answer: bool = False) -> str:
    """Write an item as the text the model sees.

    Args:
        item: A chat or a plain document.
        template: The chat template.
        for_answer: Leave the expected answer out and end where the model has to go on.
    """
    if not item.is_chat:
        return item.prompt if for_answer else item.prompt + item.completion + END_OF_TEXT
    messages = list(item.messages[:-1] if for_answer else item.messages)
    text: str = template.render(messages=messages, tools=list(item.tools) or None, add_generation_prompt=for_answer)
    return text if for_answer else text.removesuffix("\n")


def train_tokenizer(template: jinja2.Template, seed: int) -> Tokenizer:
    """Train the tokenizer on a sample of every task of the base model and of the adapters."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=VOCAB_SIZE - len(_TAGS),
        min_frequency=3,
        special_tokens=list(_SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_sample_texts(template, seed), trainer)
    tokenizer.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in _TAGS])
    return tokenizer


def _sample_texts(template: jinja2.Template, seed: int) -> list[str]:
    rng = random.Random(f"tokenizer:{seed}")
    texts = []
    for task in (task for tasks in (TASKS, *ADAPTER_TASKS.values()) for task in tasks.values()):
        for _ in range(_SAMPLES_PER_TASK):
            text = render(with_system_prompt(draw(task.generate, rng, held_out=False), rng, 0.05), template)
            for token in (*_SPECIAL, *_TAGS):
                text = text.replace(token, " \n")
            texts.append(text)
    return texts


def tokenizer_config() -> dict[str, Any]:
    """Return ``tokenizer_config.json``."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None,
        "eos_token": TURN_END,
        "pad_token": END_OF_TEXT,
        "add_bos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 2048,
    }
