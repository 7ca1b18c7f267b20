"""The vocabulary as llguidance sees it: the bytes of every token, special tokens, and how text is tokenized."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from llguidance import LLParserLimits, LLTokenizer, TokenizerWrapper

from vllm_mxext.config.model_spec import ModelSpec
from vllm_mxext.tokenizer.interface import Tokenizer

_CHUNK = 128


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What matchers are made with.

    Attributes:
        tokenizer: llguidance's form of the tokenizer.
        special_tokens: text -> id of the tokens that are not text.
        size: ids, those without a token included: the width of a mask.
        end_token_ids: ids that end an output; empty if the model has none.
    """

    tokenizer: LLTokenizer
    special_tokens: dict[str, int]
    size: int
    end_token_ids: tuple[int, ...]

    @property
    def num_words(self) -> int:
        """32-bit words of a mask."""
        return -(-self.size // 32)


def make_vocabulary(tokenizer: Tokenizer, size: int, end_token_ids: Sequence[int]) -> Vocabulary:
    """Converts a tokenizer; takes about half a second for 150,000 tokens.

    Args:
        tokenizer: the model's tokenizer.
        size: width of the model's logits.
        end_token_ids: ids that end an output.
    """
    special_ids = sorted(token_id for token_id in tokenizer.special_token_ids if token_id < size)
    known = min(size, tokenizer.vocab_size)
    tokens: list[bytes] = []
    for first in range(0, known, _CHUNK):
        tokens += [tokenizer.token_bytes(token_id) for token_id in range(first, min(first + _CHUNK, known))]
        time.sleep(0)  # lets the engine's thread go on
    special_tokens = {tokens[token_id].decode(errors="replace"): token_id for token_id in special_ids}
    ends = tuple(token_id for token_id in dict.fromkeys(end_token_ids) if 0 <= token_id < size)
    # Ids without a token stay empty, and one more stands for the end of text of models that have none.
    tokens += [b""] * (size + (not ends) - len(tokens))
    wrapped = TokenizerWrapper(_Words(tokenizer, tokens, {*special_ids, *ends}, ends or (size,)))
    return Vocabulary(LLTokenizer(wrapped, eos_token=list(ends or (size,))), special_tokens, size, ends)


def end_token_ids(spec: ModelSpec, tokenizer: Tokenizer) -> list[int]:
    """Returns the ids that end an output: those of the model and that of the tokenizer, each once."""
    ids = dict.fromkeys(spec.eos_token_ids)
    if tokenizer.eos_token_id is not None:
        ids[tokenizer.eos_token_id] = None
    return [token_id for token_id in ids if 0 <= token_id < spec.vocab_size]


def parser_limits() -> LLParserLimits:
    """Limits of every automaton: what a step may cost, and how large it may become."""
    return LLParserLimits(
        max_lexer_states=50_000,
        step_lexer_fuel=100_000,
        step_max_items=20_000,
        max_items_in_row=20_000,
        max_grammar_size=200_000,
        verbose_errors=False,
    )


class _Words:
    """What `TokenizerWrapper` asks of a tokenizer."""

    def __init__(
        self, tokenizer: Tokenizer, tokens: list[bytes], special_ids: set[int], end_token_ids: Sequence[int]
    ) -> None:
        self._tokenizer = tokenizer
        self.tokens = tokens
        self.special_token_ids = sorted(special_ids)
        self.eos_token_id = end_token_ids[0]
        self.bos_token_id = None

    def __call__(self, text: str | bytes) -> list[int]:
        plain = text.decode(errors="replace") if isinstance(text, bytes) else text
        return self._tokenizer.encode(plain, add_special_tokens=False)
