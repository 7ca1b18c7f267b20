"""Which token sequences can end a repetition for DRY: every way in which a breaker's text may be spread over tokens."""

from __future__ import annotations

import bisect
import threading
from functools import lru_cache

from vllm_mxext.errors import InvalidRequestError
from vllm_mxext.sampling_params import SamplingParams
from vllm_mxext.tokenizer.interface import Tokenizer

MAX_BREAKERS = 64
MAX_BREAKER_BYTES = 40
MAX_TAIL_TOKENS = 20
_MAX_CACHED_BREAKERS = 256


class DryBreakers:
    """Finds sequences as llama.cpp does: tokens that hold the breaker, or that end in its beginning and the rest.

    Looks at the whole vocabulary once per breaker; results are kept. May be used by several threads.

    Args:
        tokenizer: the model's tokenizer.
        vocab_size: ids that the model can write.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self._tokenizer = tokenizer
        self._num_tokens = min(vocab_size, tokenizer.vocab_size)
        self._lock = threading.Lock()
        self._words: list[bytes] = []
        self._reversed: list[tuple[bytes, int]] = []
        """Every word backwards with its token, sorted: words with the same end stand together."""
        self._find = lru_cache(_MAX_CACHED_BREAKERS)(self._search)

    def sequences(self, params: SamplingParams) -> list[list[int]]:
        """Returns the sequences of a request's breakers; none if it does not use DRY.

        Raises:
            InvalidRequestError: there are too many breakers, or one is empty or too long.
        """
        if not params.dry_multiplier or not params.dry_penalty_last_n:
            return []
        breakers = params.dry_sequence_breakers
        if len(breakers) > MAX_BREAKERS or any(not 0 < len(text.encode()) <= MAX_BREAKER_BYTES for text in breakers):
            raise InvalidRequestError(
                f"dry_sequence_breakers must be at most {MAX_BREAKERS} texts of 1 to {MAX_BREAKER_BYTES} bytes.",
                param="dry_sequence_breakers",
            )
        with self._lock:
            found = dict.fromkeys(sequence for text in breakers for sequence in self._find(text))
        return [list(sequence) for sequence in found]

    def _search(self, text: str) -> list[tuple[int, ...]]:
        if not self._words:
            self._words = [self._tokenizer.token_bytes(token_id) for token_id in range(self._num_tokens)]
            self._reversed = sorted((word[::-1], token_id) for token_id, word in enumerate(self._words))
        breaker = text.encode()
        found = [(token_id,) for token_id, word in enumerate(self._words) if breaker in word]
        sequences: list[tuple[int, ...]] = list(found)
        for split in range(1, len(text)):
            head = text[:split].encode()
            tail = self._tokenizer.encode(text[split:], add_special_tokens=False)[:MAX_TAIL_TOKENS]
            sequences += [
                (token_id, *tail) for token_id in self._ending_in(head) if breaker not in self._words[token_id]
            ]
        return sequences

    def _ending_in(self, end: bytes) -> list[int]:
        """Returns the tokens whose words end in `end`."""
        backwards = end[::-1]
        first = last = bisect.bisect_left(self._reversed, (backwards,))
        while last < len(self._reversed) and self._reversed[last][0].startswith(backwards):
            last += 1
        return sorted(token_id for _, token_id in self._reversed[first:last])
