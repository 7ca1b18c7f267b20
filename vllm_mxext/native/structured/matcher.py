"""`GrammarMatcher`: how far one output has come in its grammar, and which tokens may come next."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from llguidance import LLMatcher

from vllm_mxext.errors import GenerationError
from vllm_mxext.native.structured.vocabulary import Vocabulary, parser_limits

Words = npt.NDArray[np.int32]
"""`[..., num_words]` masks: bit `i % 32` of word `i // 32` says whether token `i` may come next."""


class GrammarMatcher:
    """One output's place in its grammar; a function of the tokens accepted.

    Args:
        matcher: llguidance's matcher.
        vocabulary: what it was made with.
        stop_token_ids: further special tokens that may end the output where the grammar can end.
    """

    def __init__(self, matcher: LLMatcher, vocabulary: Vocabulary, stop_token_ids: Sequence[int] = ()) -> None:
        self._matcher = matcher
        self._vocabulary = vocabulary
        specials = set(vocabulary.special_tokens.values())
        self._ends = _words_of((*vocabulary.end_token_ids,), vocabulary)
        self._extra_ends = _words_of([one for one in stop_token_ids if one in specials], vocabulary)
        self._has_extra_ends = bool(self._extra_ends.any())
        self._end_ids = frozenset(vocabulary.end_token_ids)

    @classmethod
    def compile(cls, grammar: str, vocabulary: Vocabulary) -> GrammarMatcher:
        """Builds the automaton of a grammar; nothing has been accepted.

        Raises:
            GenerationError: llguidance refuses the grammar; the text is its reason.
        """
        made = cls(LLMatcher(vocabulary.tokenizer, grammar, log_level=0, limits=parser_limits()), vocabulary)
        made._check()
        return made

    def copy(self, stop_token_ids: Sequence[int] = ()) -> GrammarMatcher:
        """Returns an independent matcher at the same place."""
        return GrammarMatcher(self._matcher.deep_copy(), self._vocabulary, stop_token_ids)

    @property
    def is_complete(self) -> bool:
        """Whether the output is whole and nothing but an end may follow."""
        return self._matcher.is_stopped()

    @property
    def is_accepting(self) -> bool:
        """Whether the output could end here."""
        return self._matcher.is_accepting()

    def is_end(self, token_id: int) -> bool:
        """Whether a token ends outputs."""
        return token_id in self._end_ids

    def accept(self, token_ids: Sequence[int]) -> None:
        """Takes tokens; those that end an output are passed over.

        Raises:
            GenerationError: a token does not fit, or a limit was reached; the matcher is of no use any more.
        """
        for token_id in token_ids:
            if token_id in self._end_ids or (self._has_extra_ends and _has(self._extra_ends, token_id)):
                continue
            if self._matcher.is_stopped() and not self._matcher.is_error():
                raise GenerationError(f"token {token_id} follows the end of the output")
            self._matcher.consume_token(token_id)
        self._check()

    def forced_tokens(self) -> list[int]:
        """Tokens that come next because the grammar leaves no other text; not accepted yet, without ends."""
        if self._matcher.is_stopped():
            return []
        forced = self._matcher.compute_ff_tokens()
        self._check()
        for index, token_id in enumerate(forced):
            if token_id in self._end_ids or token_id >= self._vocabulary.size:
                return forced[:index]
        return forced

    def mask(self) -> Words:
        """Returns `[num_words]`, what may come next; empty if the output is whole and there is no way to end it.

        Raises:
            GenerationError: a limit was reached.
        """
        words: Words = self.masks_for(())[0]
        return words

    def masks_for(self, draft_token_ids: Sequence[int]) -> Words:
        """Returns `[d + 1, num_words]`: what may come next, and what after each of the first `d` drafts.

        `d` is less than the number of drafts if one of them does not fit, or ends the output: that one and those behind
        it need no mask. The matcher stays where it is.

        Raises:
            GenerationError: a limit was reached.
        """
        masks = np.zeros((len(draft_token_ids) + 1, self._vocabulary.num_words), dtype=np.int32)
        num_taken = 0
        for index, token_id in enumerate((*draft_token_ids, -1)):
            self._fill(masks[index])
            if token_id < 0 or self._matcher.is_stopped() or token_id in self._end_ids:
                break
            if not _has(masks[index], token_id) or not self._matcher.try_consume_tokens([token_id]):
                break
            num_taken += 1
        if num_taken:
            self._matcher.rollback(num_taken)
        self._check()
        return masks[: num_taken + 1]

    def _fill(self, words: Words) -> None:
        if not self._matcher.is_stopped():
            self._matcher.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)
            self._check()
        can_end = self._matcher.is_accepting()
        words &= ~self._ends
        if can_end:
            words |= self._ends | self._extra_ends

    def _check(self) -> None:
        if self._matcher.is_error():
            raise GenerationError(reason_of(self._matcher.get_error()))


def reason_of(error: str) -> str:
    """Shortens an error of llguidance to its reason, on one line."""
    lines = [line.strip() for line in error.splitlines()]
    kept = [line for line in lines if line and not line[0].isdigit() and not set(line) <= {"^", "-", " ", "|"}]
    first = lines[0] if lines and lines[0] not in kept else ""
    reason = " ".join([part for part in (first, *kept) if part])
    return re.sub(r"^at \d+\(\d+\): (?=invalid regex)", "", reason)[:400].rstrip(".")  # the place is in our own text


def _words_of(token_ids: Sequence[int], vocabulary: Vocabulary) -> Words:
    words = np.zeros(vocabulary.num_words * 32, dtype=np.uint8)
    words[list(token_ids)] = 1
    return np.packbits(words, bitorder="little").view(np.int32)


def _has(words: Words, token_id: int) -> bool:
    return bool((int(words[token_id >> 5]) >> (token_id & 31)) & 1)
