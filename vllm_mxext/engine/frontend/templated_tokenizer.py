"""`TemplatedTokenizer`: a tokenizer whose own chat template is replaced by a configured one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vllm_mxext.tokenizer.interface import IncrementalDetokenizer, Tokenizer
from vllm_mxext.tokenizer.loading import load_tokenizer


class TemplatedTokenizer:
    """Renders conversations with the operator's template (`--chat-template`) and is the wrapped tokenizer otherwise.

    Args:
        tokenizer: the model's tokenizer.
        chat_template: template text used unless a call brings its own.
    """

    def __init__(self, tokenizer: Tokenizer, chat_template: str) -> None:
        self._tokenizer = tokenizer
        self._chat_template = chat_template

    @property
    def vocab_size(self) -> int:
        """Number of ids, added tokens included."""
        return self._tokenizer.vocab_size

    @property
    def bos_token_id(self) -> int | None:
        """Beginning-of-text id."""
        return self._tokenizer.bos_token_id

    @property
    def eos_token_id(self) -> int | None:
        """End-of-text id of the tokenizer."""
        return self._tokenizer.eos_token_id

    @property
    def special_token_ids(self) -> frozenset[int]:
        """Ids left out of text by `skip_special_tokens`."""
        return self._tokenizer.special_token_ids

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Tokenizes `text`."""
        return self._tokenizer.encode(text, add_special_tokens=add_special_tokens)

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Returns the text of `token_ids`.

        Raises:
            InvalidRequestError: an id is outside the vocabulary.
        """
        return self._tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens)

    def token_text(self, token_id: int) -> str:
        """The text of one token alone."""
        return self._tokenizer.token_text(token_id)

    def token_bytes(self, token_id: int) -> bytes:
        """The exact bytes of one token."""
        return self._tokenizer.token_bytes(token_id)

    def detokenizer(
        self,
        prompt_token_ids: Sequence[int],
        *,
        skip_special_tokens: bool = True,
        spaces_between_special_tokens: bool = True,
    ) -> IncrementalDetokenizer:
        """Starts incremental detokenization after a prompt."""
        return self._tokenizer.detokenizer(
            prompt_token_ids,
            skip_special_tokens=skip_special_tokens,
            spaces_between_special_tokens=spaces_between_special_tokens,
        )

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        chat_template: str | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        """Renders a conversation with the configured template, unless another one is given.

        Raises:
            InvalidRequestError: the template refused the conversation; the text says where.
        """
        return self._tokenizer.apply_chat_template(
            messages,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            chat_template=chat_template or self._chat_template,
            template_kwargs=template_kwargs,
        )


def load_frontend_tokenizer(path: Path, chat_template: str | None) -> Tokenizer:
    """Loads a model's tokenizer, with another default chat template if one is configured.

    Raises:
        ConfigError: a file is missing or malformed.
    """
    tokenizer = load_tokenizer(path)
    return tokenizer if chat_template is None else TemplatedTokenizer(tokenizer, chat_template)
