"""`HfTokenizer`: a tokenizer from the files of a Hugging Face checkpoint, with the results of transformers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import Tokenizer as BackendTokenizer

from vllm_mxext.config.frontend import ContentFormatName
from vllm_mxext.errors import InvalidRequestError
from vllm_mxext.logger import init_logger
from vllm_mxext.tokenizer.chat_template import ChatTemplates
from vllm_mxext.tokenizer.detokenizer import ByteLevelDetokenizer, SentencePieceDetokenizer, WindowDetokenizer
from vllm_mxext.tokenizer.interface import IncrementalDetokenizer
from vllm_mxext.tokenizer.pieces import TokenPieces, piece_rules

logger = init_logger(__name__)

_CLEAN_UPS = (
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
)


class HfTokenizer:
    """A `tokenizers` tokenizer with the special tokens and chat templates of its folder (implements `Tokenizer`).

    Args:
        backend: tokenizer without truncation and padding, to which nothing is added any more.
        special_tokens: name (`bos_token`, `eos_token`, ...) -> text, as chat templates see them.
        chat_templates: the model's templates.
        clean_up_spaces: remove spaces before punctuation in `decode` (`clean_up_tokenization_spaces`).
    """

    def __init__(
        self,
        backend: BackendTokenizer,
        *,
        special_tokens: Mapping[str, str],
        chat_templates: ChatTemplates,
        clean_up_spaces: bool = False,
    ) -> None:
        self._backend = backend
        self._chat_templates = chat_templates
        self._clean_up_spaces = clean_up_spaces
        self._vocab_size: int = backend.get_vocab_size(with_added_tokens=True)
        self._bos_token_id = self._named_id(special_tokens.get("bos_token"))
        self._eos_token_id = self._named_id(special_tokens.get("eos_token"))
        added = backend.get_added_tokens_decoder()
        self._added_ids = frozenset(added)
        self._special_ids = frozenset(token_id for token_id, token in added.items() if token.special)
        self._bos_token = special_tokens.get("bos_token") or ""
        first_ids = self.encode("")[:1]
        self._adds_bos = bool(self._bos_token) and first_ids == [self._bos_token_id]
        self._has_warned = False
        rules = piece_rules(backend)
        self._pieces = TokenPieces(backend, rules) if rules else None

    @property
    def vocab_size(self) -> int:
        """Number of ids, added tokens included."""
        return self._vocab_size

    @property
    def bos_token_id(self) -> int | None:
        """Beginning-of-text id."""
        return self._bos_token_id

    @property
    def eos_token_id(self) -> int | None:
        """End-of-text id of the tokenizer (a model may stop at more ids)."""
        return self._eos_token_id

    @property
    def special_token_ids(self) -> frozenset[int]:
        """Ids left out of text by `skip_special_tokens`."""
        return self._special_ids

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Tokenizes `text`; special tokens written out in the text are recognised.

        Raises:
            InvalidRequestError: `text` has half of a surrogate pair, which no UTF-8 text contains.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidRequestError(
                f"The text has an unpaired surrogate (U+{ord(text[error.start]):04X}) at character {error.start}; "
                "send valid Unicode."
            ) from None
        # Only the batch calls of the library let other Python threads run meanwhile.
        ids: list[int] = self._backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids
        return ids

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Returns the text of `token_ids`.

        Raises:
            InvalidRequestError: an id is outside the vocabulary.
        """
        for token_id in token_ids:
            if not 0 <= token_id < 2**32 or self._backend.id_to_token(token_id) is None:
                raise InvalidRequestError(
                    f"Token id {token_id} is outside the vocabulary of {self._vocab_size} tokens."
                )
        text: str = self._backend.decode_batch([list(token_ids)], skip_special_tokens=skip_special_tokens)[0]
        if self._clean_up_spaces:
            for old, new in _CLEAN_UPS:
                text = text.replace(old, new)
        return text

    def token_text(self, token_id: int) -> str:
        """The text of one token alone, with U+FFFD for partial characters; empty for an id without a token."""
        return self.token_bytes(token_id).decode(errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        """The exact bytes of one token; empty for an id without a token."""
        if self._pieces is not None:
            return self._pieces.piece(token_id)
        text: str = self._backend.decode([token_id], skip_special_tokens=False)
        return text.encode()

    def detokenizer(
        self,
        prompt_token_ids: Sequence[int],
        *,
        skip_special_tokens: bool = True,
        spaces_between_special_tokens: bool = True,
    ) -> IncrementalDetokenizer:
        """Starts incremental detokenization after a prompt.

        `spaces_between_special_tokens=False` removes spaces only where the tokenizer's decoder writes any (WordPiece).
        """
        skipped = self._special_ids if skip_special_tokens else frozenset()
        if self._pieces is None:
            unspaced = frozenset() if spaces_between_special_tokens else self._added_ids
            return WindowDetokenizer(self._backend, prompt_token_ids, skipped, unspaced)
        if self._pieces.rules.is_byte_level:
            return ByteLevelDetokenizer(self._pieces, prompt_token_ids, skipped)
        return SentencePieceDetokenizer(self._pieces, prompt_token_ids, skipped)

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

        Args:
            messages: at least one.
            add_generation_prompt: end with the beginning of an assistant message.
            continue_final_message: leave the last message open so that the model continues it.
            chat_template: a template, or the name of one of the model's; it must come from somebody the server trusts.
            content_format: form of content that the template gets; None is what the server was started with.
            template_kwargs: further variables, such as `tools`; those the template does not use are left out.

        Raises:
            InvalidRequestError: the template refused the conversation; the text says where.
            UnsupportedFeatureError: the model has no chat template and none was given.
        """
        text = self._chat_templates.render(
            messages,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            chat_template=chat_template,
            content_format=content_format,
            template_kwargs=template_kwargs,
        )
        if self._adds_bos and not self._has_warned and not text.startswith(self._bos_token):
            self._has_warned = True
            logger.warning(
                "The chat template does not begin with %s, which the tokenizer puts before plain text; the model may "
                "answer worse. As in transformers, nothing is added: correct the template with --chat-template.",
                self._bos_token,
            )
        return text

    def chat_template(self, *, has_tools: bool = False) -> str | None:
        """Returns the template that conversations are rendered with unless a request brings one; None without any."""
        return self._chat_templates.source(has_tools=has_tools)

    def _named_id(self, token: str | None) -> int | None:
        if token is None:
            return None
        token_id: int | None = self._backend.token_to_id(token)
        return token_id
