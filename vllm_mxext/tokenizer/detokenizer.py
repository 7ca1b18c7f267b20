"""Incremental detokenization: output tokens to text, with unfinished characters held back.

Let P be the prompt, O the output and D the tokenizer's `decode`. For every cut of O, the results of `push` and the one
of `flush` concatenate to:

* byte-level BPE: the text O adds to P, that is D(P + O) without the finished characters of D(P). With a P that ends at
  a character boundary this is D(O).
* sentencepiece-style tokenizers: D(P + O) without D(P), so that the leading space of a word survives after a prompt
  and is dropped at the beginning of the text. Only where a run of byte tokens is not valid UTF-8 as a whole do they
  differ: D writes U+FFFD for every byte of such a run, here its complete characters are kept.
* any other decoder: D(P + O) without D(P) as far as a window of a few tokens tells.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from itertools import islice

from tokenizers import Tokenizer as BackendTokenizer

from vllm_mxext.tokenizer.pieces import TokenPieces

_MAX_UNFINISHED_BYTES = 3
_WINDOW = 6
_MAX_HELD_TOKENS = 4
_NO_IDS: frozenset[int] = frozenset()


class ByteLevelDetokenizer:
    """For byte-level BPE: every token is a fixed byte string.

    Args:
        pieces: bytes of tokens.
        prompt_token_ids: tokens before the output; only a last unfinished character matters.
        skipped_ids: ids that contribute nothing.
    """

    def __init__(
        self, pieces: TokenPieces, prompt_token_ids: Sequence[int], skipped_ids: frozenset[int] = _NO_IDS
    ) -> None:
        self._pieces = pieces
        self._skipped_ids = skipped_ids
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        tail = b""
        for token_id in reversed(prompt_token_ids):
            if len(tail) >= _MAX_UNFINISHED_BYTES:
                break
            if token_id not in skipped_ids:
                tail = pieces.piece(token_id) + tail
        self._decoder.decode(tail)

    def push(self, token_ids: Sequence[int]) -> str:
        """Takes new tokens and returns the text that is now certain."""
        piece, skipped = self._pieces.piece, self._skipped_ids
        return self._decoder.decode(b"".join([piece(token_id) for token_id in token_ids if token_id not in skipped]))

    def flush(self) -> str:
        """Returns U+FFFD for the bytes of an unfinished character, if any."""
        return self._decoder.decode(b"", final=True)


class SentencePieceDetokenizer:
    """For sentencepiece-style tokenizers: tokens are texts, or single bytes of characters outside the vocabulary.

    Args:
        pieces: bytes of tokens.
        prompt_token_ids: tokens before the output; they decide about a leading space and an unfinished character.
        skipped_ids: ids that contribute nothing.
    """

    def __init__(
        self, pieces: TokenPieces, prompt_token_ids: Sequence[int], skipped_ids: frozenset[int] = _NO_IDS
    ) -> None:
        self._pieces = pieces
        self._skipped_ids = skipped_ids
        self._unfinished = b""
        self._is_first = True
        self._num_strippable = pieces.rules.num_stripped_spaces
        for token_id in prompt_token_ids:
            if not self._is_first and not self._num_strippable:
                break
            if token_id not in skipped_ids:
                self._take_leading(self._next_piece(token_id).decode(errors="replace"))
        self._take_prompt_tail(prompt_token_ids)

    def push(self, token_ids: Sequence[int]) -> str:
        """Takes new tokens and returns the text that is now certain."""
        text = []
        for token_id in token_ids:
            if token_id in self._skipped_ids:
                continue
            piece = self._next_piece(token_id)
            if self._pieces.is_raw_byte(token_id):
                self._unfinished += piece
                text.append(self._take_finished())
            else:
                text.append(self._replace_unfinished())
                text.append(piece.decode())
        return self._take_leading("".join(text))

    def flush(self) -> str:
        """Returns U+FFFD for every byte of an unfinished character, if any."""
        return self._take_leading(self._replace_unfinished())

    def _next_piece(self, token_id: int) -> bytes:
        if self._is_first:
            self._is_first = False
            return self._pieces.first_piece(token_id)
        return self._pieces.piece(token_id)

    def _take_prompt_tail(self, prompt_token_ids: Sequence[int]) -> None:
        tail = b""
        for token_id in reversed(prompt_token_ids):
            if token_id in self._skipped_ids:
                continue
            if len(tail) >= _MAX_UNFINISHED_BYTES or not self._pieces.is_raw_byte(token_id):
                break
            tail = self._pieces.piece(token_id) + tail
        for byte in tail:
            self._unfinished += bytes([byte])
            self._take_finished()

    def _take_leading(self, text: str) -> str:
        """Strips spaces from the beginning of the whole text."""
        if not self._num_strippable or not text:
            return text
        num_spaces = min(len(text) - len(text.lstrip(" ")), self._num_strippable)
        self._num_strippable = self._num_strippable - num_spaces if num_spaces == len(text) else 0
        return text[num_spaces:]

    def _take_finished(self) -> str:
        """Takes characters off the unfinished bytes; each byte that cannot be part of one becomes U+FFFD."""
        try:
            text, self._unfinished = self._unfinished.decode(), b""
        except UnicodeDecodeError as error:
            text = self._unfinished[: error.start].decode()
            self._unfinished = self._unfinished[error.start :]
            if error.reason != "unexpected end of data":
                num_bad = error.end - error.start
                self._unfinished = self._unfinished[num_bad:]
                text += "\ufffd" * num_bad + self._take_finished()
        return text

    def _replace_unfinished(self) -> str:
        text, self._unfinished = "\ufffd" * len(self._unfinished), b""
        return text


class WindowDetokenizer:
    """For any decoder: decodes a window of the last tokens twice and returns the difference.

    Text is held back while it ends with U+FFFD, which may be an unfinished character, but never over more than four
    tokens, the length of the longest character.

    Args:
        tokenizer: the backend tokenizer.
        prompt_token_ids: tokens before the output.
        skipped_ids: ids that contribute nothing.
        unspaced_ids: ids between which the decoder must not put spaces.
    """

    def __init__(
        self,
        tokenizer: BackendTokenizer,
        prompt_token_ids: Sequence[int],
        skipped_ids: frozenset[int] = _NO_IDS,
        unspaced_ids: frozenset[int] = _NO_IDS,
    ) -> None:
        self._tokenizer = tokenizer
        self._skipped_ids = skipped_ids
        self._unspaced_ids = unspaced_ids
        shown = (token_id for token_id in reversed(prompt_token_ids) if token_id not in skipped_ids)
        self._shown = list(islice(shown, _WINDOW))[::-1]
        self._held: list[int] = []

    def push(self, token_ids: Sequence[int]) -> str:
        """Takes new tokens and returns the text that is now certain."""
        return "".join([self._push_one(token_id) for token_id in token_ids if token_id not in self._skipped_ids])

    def flush(self) -> str:
        """Returns the text of the tokens held back."""
        return self._release() if self._held else ""

    def _push_one(self, token_id: int) -> str:
        self._held.append(token_id)
        if len(self._held) < _MAX_HELD_TOKENS and self._decode(self._held).endswith("\ufffd"):
            return ""
        return self._release()

    def _release(self) -> str:
        before, both = self._decode(self._shown), self._decode(self._shown + self._held)
        text = both[len(before) :]
        if self._shown and self._shown[-1] in self._unspaced_ids and self._held[0] in self._unspaced_ids:
            text = text.removeprefix(" ")
        self._shown, self._held = (self._shown + self._held)[-_WINDOW:], []
        return text

    def _decode(self, token_ids: list[int]) -> str:
        text: str = self._tokenizer.decode(token_ids, skip_special_tokens=False)
        return text
