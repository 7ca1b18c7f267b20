"""The fake engine's tokenizer: one token per UTF-8 byte, and a few special tokens."""

from __future__ import annotations

import codecs
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from vllm_mxext.config.frontend import ContentFormatName
from vllm_mxext.errors import InvalidRequestError
from vllm_mxext.tokenizer.content_format import ContentFormat, prepare_messages

CHAT_TEMPLATE = (
    "{% if tools %}{{ tools }}{% endif %}"
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}"
    "{% if not loop.last or not continue_final_message %}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

_PLAIN_TEXT = ContentFormat(takes_parts=False, tests_strings=True, knows_developer=False)


class FakeTokenizer:
    """Ids 0 to 255 are bytes; above are special tokens."""

    FIRST_SPECIAL = 256
    BOS = 256
    EOS = 257
    SPECIALS = ("<s>", "</s>", "<|system|>", "<|user|>", "<|assistant|>")
    SIZE = FIRST_SPECIAL + len(SPECIALS)

    @property
    def vocab_size(self) -> int:
        """Number of ids."""
        return self.SIZE

    @property
    def bos_token_id(self) -> int | None:
        """Beginning-of-text id."""
        return self.BOS

    @property
    def eos_token_id(self) -> int | None:
        """End-of-text id."""
        return self.EOS

    @property
    def special_token_ids(self) -> frozenset[int]:
        """Ids above the bytes."""
        return frozenset(range(self.FIRST_SPECIAL, self.SIZE))

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Returns the bytes of `text`, special tokens written out in it as one id each."""
        token_ids = [self.BOS] if add_special_tokens else []
        for piece in re.split("(" + "|".join(map(re.escape, self.SPECIALS)) + ")", text):
            if piece in self.SPECIALS:
                token_ids.append(self.FIRST_SPECIAL + self.SPECIALS.index(piece))
            else:
                token_ids.extend(piece.encode())
        return token_ids

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Returns the text of `token_ids`.

        Raises:
            InvalidRequestError: an id is outside the vocabulary.
        """
        for token_id in token_ids:
            if not 0 <= token_id < self.SIZE:
                raise InvalidRequestError(f"Token id {token_id} is outside the vocabulary.", param="tokens")
        pieces = (
            self.token_bytes(token_id)
            for token_id in token_ids
            if token_id < self.FIRST_SPECIAL or not skip_special_tokens
        )
        return b"".join(pieces).decode(errors="replace")

    def decode_certain(self, token_ids: Sequence[int], *, is_last: bool) -> str:
        """Returns the text of all whole characters; an unfinished one only at the end, as U+FFFD."""
        data = bytes(token_id for token_id in token_ids if token_id < self.FIRST_SPECIAL)
        return codecs.getincrementaldecoder("utf-8")("replace").decode(data, is_last)

    def token_text(self, token_id: int) -> str:
        """The text of one token alone."""
        return self.token_bytes(token_id).decode(errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        """The exact bytes of one token."""
        if token_id < self.FIRST_SPECIAL:
            return bytes([token_id])
        return self.SPECIALS[token_id - self.FIRST_SPECIAL].encode()

    def detokenizer(
        self,
        prompt_token_ids: Sequence[int],
        *,
        skip_special_tokens: bool = True,
        spaces_between_special_tokens: bool = True,
    ) -> FakeDetokenizer:
        """Starts incremental detokenization."""
        del prompt_token_ids, skip_special_tokens, spaces_between_special_tokens
        return FakeDetokenizer()

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
        """Renders a conversation.

        Raises:
            InvalidRequestError: the template refused it.
            UnsupportedFeatureError: a content part is not text.
        """

        def refuse(message: str) -> None:
            raise jinja2.TemplateError(message)

        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        variables = {
            **(template_kwargs or {}),
            "messages": prepare_messages(messages, _PLAIN_TEXT.overridden(content_format or "auto")),
            "add_generation_prompt": add_generation_prompt,
            "continue_final_message": continue_final_message,
            "raise_exception": refuse,
        }
        try:
            return environment.from_string(chat_template or CHAT_TEMPLATE).render(variables)
        except jinja2.TemplateError as error:
            raise InvalidRequestError(f"The chat template refused the messages: {error}", param="messages") from error

    def chat_template(self, *, has_tools: bool = False) -> str | None:
        """Returns the template that conversations are rendered with."""
        del has_tools
        return CHAT_TEMPLATE


class FakeDetokenizer:
    """Text of output tokens, bytes of unfinished characters held back."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_ids: Sequence[int]) -> str:
        """Takes new tokens and returns the text that is now certain."""
        return self._decoder.decode(bytes(token for token in token_ids if token < FakeTokenizer.FIRST_SPECIAL))

    def flush(self) -> str:
        """Returns what was held back."""
        return self._decoder.decode(b"", True)
