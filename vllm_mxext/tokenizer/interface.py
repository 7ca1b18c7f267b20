"""What the rest of the project needs of a tokenizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from vllm_mxext.config.frontend import ContentFormatName


class IncrementalDetokenizer(Protocol):
    """Turns one request's output tokens into text, a few at a time."""

    def push(self, token_ids: Sequence[int]) -> str:
        """Takes new tokens and returns the text that is now certain.

        Bytes of an unfinished UTF-8 character are held back, so the concatenation of all results is the text of all
        tokens whatever the cuts.
        """
        ...

    def flush(self) -> str:
        """Returns what was held back, with U+FFFD for bytes that never became a character; call once, at the end."""
        ...


class Tokenizer(Protocol):
    """Text to token ids and back; safe to use from several threads."""

    @property
    def vocab_size(self) -> int:
        """Number of ids, added tokens included."""
        ...

    @property
    def bos_token_id(self) -> int | None:
        """Beginning-of-text id."""
        ...

    @property
    def eos_token_id(self) -> int | None:
        """End-of-text id of the tokenizer (a model may stop at more ids)."""
        ...

    @property
    def special_token_ids(self) -> frozenset[int]:
        """Ids left out of text by `skip_special_tokens`."""
        ...

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Tokenizes `text`; special tokens written out in the text are recognised."""
        ...

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Returns the text of `token_ids`.

        Raises:
            InvalidRequestError: an id is outside the vocabulary.
        """
        ...

    def token_text(self, token_id: int) -> str:
        """The text of one token alone, with U+FFFD for partial characters; for logprobs."""
        ...

    def token_bytes(self, token_id: int) -> bytes:
        """The exact bytes of one token; for logprobs."""
        ...

    def detokenizer(
        self,
        prompt_token_ids: Sequence[int],
        *,
        skip_special_tokens: bool = True,
        spaces_between_special_tokens: bool = True,
    ) -> IncrementalDetokenizer:
        """Starts incremental detokenization after a prompt."""
        ...

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        chat_template: str | None = None,
        content_format: ContentFormatName | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        """Renders a conversation to the prompt text (BOS included where the template writes it).

        Raises:
            InvalidRequestError: the template refused the conversation; the text says where.
            UnsupportedFeatureError: the model has no chat template and none was given.
        """
        ...

    def chat_template(self, *, has_tools: bool = False) -> str | None:
        """Returns the template that conversations are rendered with unless a request brings one; None without any."""
        ...
