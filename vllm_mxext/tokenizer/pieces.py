"""What single tokens contribute to the text: `TokenPieces`, derived from a tokenizer's decoder."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer as BackendTokenizer

_RAW_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclass(frozen=True, slots=True)
class PieceRules:
    """How a decoder turns tokens into text when every token contributes independently of its neighbours.

    Attributes:
        is_byte_level: tokens are bytes written in GPT-2's printable alphabet.
        replacements: (old, new) substitutions within a token, in order.
        has_byte_fallback: tokens `<0xNN>` are single bytes.
        num_stripped_spaces: spaces removed at most from the beginning of the whole text.
        dropped_in_first: string removed from the very first token (the Metaspace decoder's marker), or empty.
    """

    is_byte_level: bool = False
    replacements: tuple[tuple[str, str], ...] = ()
    has_byte_fallback: bool = False
    num_stripped_spaces: int = 0
    dropped_in_first: str = ""


def piece_rules(tokenizer: BackendTokenizer) -> PieceRules | None:
    """Recognises the decoders of byte-level BPE and of sentencepiece-style tokenizers; None for any other."""
    if tokenizer.decoder is None:
        return None
    state = json.loads(tokenizer.decoder.__getstate__())
    steps: list[dict[str, Any]] = state["decoders"] if state["type"] == "Sequence" else [state]
    kinds = [step["type"] for step in steps if step["type"] != "Fuse"]
    if kinds == ["ByteLevel"]:
        return PieceRules(is_byte_level=True)
    if kinds == ["Metaspace"]:
        marker = str(steps[0]["replacement"])
        dropped = "" if steps[0].get("prepend_scheme") == "never" else marker
        return PieceRules(replacements=((marker, " "),), dropped_in_first=dropped)
    return _sentencepiece_rules(steps)


def _sentencepiece_rules(steps: list[dict[str, Any]]) -> PieceRules | None:
    """Rules of the sequence Replace*, ByteFallback?, Fuse, Strip? that Llama-2, Mistral and Gemma use."""
    replacements: list[tuple[str, str]] = []
    kinds = [step["type"] for step in steps]
    while kinds and kinds[0] == "Replace":
        pattern = steps[len(replacements)]["pattern"].get("String")
        if pattern is None:
            return None
        replacements.append((str(pattern), str(steps[len(replacements)]["content"])))
        kinds.pop(0)
    has_byte_fallback = kinds[:1] == ["ByteFallback"]
    if has_byte_fallback:
        kinds.pop(0)
    if kinds not in (["Fuse"], ["Fuse", "Strip"]) or not (replacements or has_byte_fallback):
        return None
    num_stripped = 0
    if kinds[-1] == "Strip":
        strip = steps[-1]
        if strip["content"] != " " or strip["stop"] != 0:
            return None
        num_stripped = int(strip["start"])
    return PieceRules(
        replacements=tuple(replacements), has_byte_fallback=has_byte_fallback, num_stripped_spaces=num_stripped
    )


class TokenPieces:
    """The bytes of every token, computed when first asked for; safe to share between threads.

    Args:
        tokenizer: the backend tokenizer.
        rules: how its decoder works.
    """

    def __init__(self, tokenizer: BackendTokenizer, rules: PieceRules) -> None:
        self.rules = rules
        self._tokenizer = tokenizer
        self._byte_of_char = _byte_level_alphabet() if rules.is_byte_level else {}
        self._pieces: dict[int, bytes] = {}
        self._raw_bytes: dict[int, bool] = {}

    def piece(self, token_id: int) -> bytes:
        """The token's bytes anywhere but at the beginning of the text; empty for an id without a token."""
        piece = self._pieces.get(token_id)
        if piece is None:
            piece = self._pieces[token_id] = self._compute(self._token(token_id))
        return piece

    def first_piece(self, token_id: int) -> bytes:
        """The token's bytes when it is the very first one of the text, before spaces are stripped."""
        if not self.rules.dropped_in_first:
            return self.piece(token_id)
        return self._compute(self._token(token_id).replace(self.rules.dropped_in_first, ""))

    def is_raw_byte(self, token_id: int) -> bool:
        """Whether the token is one byte of a character (byte fallback)."""
        raw = self._raw_bytes.get(token_id)
        if raw is None:
            is_raw = self.rules.has_byte_fallback and _RAW_BYTE.fullmatch(self._token(token_id)) is not None
            raw = self._raw_bytes[token_id] = is_raw
        return raw

    def _token(self, token_id: int) -> str:
        token: str | None = self._tokenizer.id_to_token(token_id)
        return token or ""

    def _compute(self, token: str) -> bytes:
        if self.rules.is_byte_level:
            values = [self._byte_of_char.get(char, -1) for char in token]
            return token.encode() if -1 in values else bytes(values)
        if self.rules.has_byte_fallback:
            match = _RAW_BYTE.fullmatch(token)
            if match:
                return bytes([int(match.group(1), 16)])
        for old, new in self.rules.replacements:
            token = token.replace(old, new)
        return token.encode()


def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins for bytes (openai/gpt-2 `encoder.py`, `bytes_to_unicode`)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + index): byte for index, byte in enumerate(others)}
