"""Log probabilities in the two shapes of the OpenAI API."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vllm_mxext.outputs import Logprob, PositionLogprobs
from vllm_mxext.tokenizer.interface import Tokenizer

LOWEST_LOGPROB = -9999.0
"""Stands for minus infinity, which JSON does not have."""


class LogprobsFormatter:
    """Writes one request's log probabilities.

    Args:
        tokenizer: for the text and bytes of tokens.
        num_top: candidates to list per position; -1 = all.
        is_token_ids: write tokens as `token_id:123` instead of their text.
    """

    def __init__(self, tokenizer: Tokenizer, num_top: int, *, is_token_ids: bool) -> None:
        self._tokenizer = tokenizer
        self._num_top = num_top
        self._is_token_ids = is_token_ids

    def chat(self, token_ids: Sequence[int], positions: Sequence[PositionLogprobs]) -> dict[str, Any]:
        """Returns `choices[].logprobs` of a chat completion."""
        content = []
        for token_id, position in zip(token_ids, positions, strict=True):
            entry = self._chat_entry(token_id, position[token_id])
            entry["top_logprobs"] = [self._chat_entry(*candidate) for candidate in self._top(position)]
            content.append(entry)
        return {"content": content, "refusal": None}

    def completion(
        self, token_ids: Sequence[int], positions: Sequence[PositionLogprobs], offset: int
    ) -> dict[str, Any]:
        """Returns `choices[].logprobs` of a plain completion.

        Args:
            token_ids: the tokens.
            positions: their log probabilities.
            offset: characters of the choice's text before the first of these tokens.
        """
        tokens, logprobs, top, offsets = [], [], [], []
        for token_id, position in zip(token_ids, positions, strict=True):
            chosen = position[token_id]
            offsets.append(offset)
            offset += len(self._plain_text(token_id, chosen))
            tokens.append(self._text(token_id, chosen))
            logprobs.append(_finite(chosen.logprob))
            candidates = {self._text(token_id, chosen): _finite(chosen.logprob)}
            for other_id, other in self._top(position):
                candidates.setdefault(self._text(other_id, other), _finite(other.logprob))
            top.append(candidates)
        return {
            "text_offset": offsets,
            "token_logprobs": logprobs,
            "tokens": tokens,
            "top_logprobs": None if self._num_top == 0 else top,
        }

    def echo(self, token_ids: Sequence[int], positions: Sequence[PositionLogprobs | None], text: str) -> dict[str, Any]:
        """Returns what `completion()` would for the tokens of an echoed prompt; the first one has no probability.

        Args:
            token_ids: the prompt.
            positions: its log probabilities.
            text: the prompt as it is echoed; special tokens that it leaves out take no place in it.
        """
        told: dict[str, Any] = {"text_offset": [], "token_logprobs": [], "tokens": [], "top_logprobs": []}
        offset = 0
        for token_id, position in zip(token_ids, positions, strict=True):
            plain = self._tokenizer.token_text(token_id)
            if position is None:
                name = f"token_id:{token_id}" if self._is_token_ids else plain
                part: dict[str, Any] = {"tokens": [name], "token_logprobs": [None], "top_logprobs": [None]}
            else:
                part = self.completion((token_id,), (position,), offset)
            for field in ("tokens", "token_logprobs", "top_logprobs"):
                told[field] += part[field] or []
            told["text_offset"].append(offset)
            if text.startswith(plain, offset) or token_id not in self._tokenizer.special_token_ids:
                offset += len(plain)
        return told | ({"top_logprobs": None} if self._num_top == 0 else {})

    def prompt(self, positions: Sequence[PositionLogprobs | None]) -> list[dict[str, Any] | None]:
        """Returns `prompt_logprobs` in vLLM's form: per token, id -> log probability, rank and text."""
        return [None if position is None else _vllm_form(position) for position in positions]

    def text_length(self, token_ids: Sequence[int], positions: Sequence[PositionLogprobs]) -> int:
        """Returns the characters these tokens add to `text_offset`."""
        return sum(
            len(self._plain_text(token_id, position[token_id]))
            for token_id, position in zip(token_ids, positions, strict=True)
        )

    def _top(self, position: PositionLogprobs) -> list[tuple[int, Logprob]]:
        ranked = sorted(position.items(), key=lambda item: item[1].rank)
        return ranked if self._num_top < 0 else ranked[: self._num_top]

    def _chat_entry(self, token_id: int, value: Logprob) -> dict[str, Any]:
        return {
            "token": self._text(token_id, value),
            "logprob": _finite(value.logprob),
            "bytes": list(self._tokenizer.token_bytes(token_id)),
        }

    def _text(self, token_id: int, value: Logprob) -> str:
        return f"token_id:{token_id}" if self._is_token_ids else self._plain_text(token_id, value)

    def _plain_text(self, token_id: int, value: Logprob) -> str:
        return self._tokenizer.token_text(token_id) if value.decoded_token is None else value.decoded_token


def _finite(logprob: float) -> float:
    return max(logprob, LOWEST_LOGPROB)


def _vllm_form(position: PositionLogprobs) -> dict[str, Any]:
    return {
        str(token_id): {"logprob": _finite(value.logprob), "rank": value.rank, "decoded_token": value.decoded_token}
        for token_id, value in position.items()
    }
