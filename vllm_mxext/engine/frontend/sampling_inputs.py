"""What of the sampling parameters needs the tokenizer or the vocabulary: checks of ids, texts as tokens, truncation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from vllm_mxext.engine.frontend.dry_breakers import DryBreakers
from vllm_mxext.engine.frontend.thinking_rules import ThinkingRules
from vllm_mxext.errors import InvalidRequestError
from vllm_mxext.native.protocol import TokenRules
from vllm_mxext.parsing.reasoning import ReasoningFormat
from vllm_mxext.sampling_params import SamplingParams
from vllm_mxext.tokenizer.interface import Tokenizer

MAX_BAD_WORDS = 1024


class SamplingInputs:
    """Prepares sampling parameters for a core that knows token ids only; may be used by several threads.

    Args:
        tokenizer: the model's tokenizer.
        vocab_size: ids that the model can write.
        max_model_len: tokens of prompt plus output at most.
        reasoning: how the model marks its reasoning; None if that is not known.
    """

    def __init__(
        self, tokenizer: Tokenizer, vocab_size: int, max_model_len: int, reasoning: ReasoningFormat | None = None
    ) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._max_model_len = max_model_len
        self._dry_breakers = DryBreakers(tokenizer, vocab_size)
        self._thinking = ThinkingRules(tokenizer, vocab_size, reasoning)

    def truncate(self, token_ids: list[int], params: SamplingParams) -> list[int]:
        """Returns what the parameters leave of a prompt.

        Raises:
            InvalidRequestError: more is to be kept than the model can read.
        """
        limit = params.truncate_prompt_tokens
        if limit is None:
            return token_ids
        if limit > self._max_model_len:
            raise InvalidRequestError(
                f"truncate_prompt_tokens must be at most {self._max_model_len}, the model's context; got {limit}.",
                param="truncate_prompt_tokens",
            )
        if limit == -1:
            limit = max(1, self._max_model_len - (params.max_tokens or 1))
        return token_ids[-limit:] if params.truncation_side == "left" else token_ids[:limit]

    def rules(self, params: SamplingParams, prompt_token_ids: Sequence[int]) -> TokenRules | None:
        """Checks the token ids of the parameters and returns their texts as tokens, if there are any.

        Raises:
            InvalidRequestError: an id is outside the vocabulary, a text is no token, or reasoning is to be limited that
                nobody can tell from the answer.
        """
        self._check_ids("logit_bias", params.logit_bias or ())
        self._check_ids("allowed_token_ids", params.allowed_token_ids or ())
        self._check_ids("logprob_token_ids", params.logprob_token_ids)
        bad_words = self._bad_words(params)
        dry_breakers = self._dry_breakers.sequences(params)
        thinking = self._thinking.rule(params, prompt_token_ids)
        return TokenRules(bad_words, dry_breakers, thinking) if bad_words or dry_breakers or thinking else None

    def _bad_words(self, params: SamplingParams) -> list[list[int]]:
        """Every word as it reads at the beginning of a text and, with a space before it, within one."""
        if len(params.bad_words) > MAX_BAD_WORDS:
            raise InvalidRequestError(
                f"bad_words must have at most {MAX_BAD_WORDS} entries, got {len(params.bad_words)}.", param="bad_words"
            )
        sequences: dict[tuple[int, ...], None] = {}
        for word in params.bad_words:
            for text in (word.lstrip(), f" {word.lstrip()}"):
                token_ids = tuple(self._tokenizer.encode(text, add_special_tokens=False))
                if not token_ids:
                    raise InvalidRequestError(f"bad_words holds {word!r}, which is no token.", param="bad_words")
                self._check_ids("bad_words", token_ids)
                sequences[token_ids] = None
        return [list(token_ids) for token_ids in sequences]

    def _check_ids(self, field: str, token_ids: Iterable[int]) -> None:
        for token_id in token_ids:
            if not 0 <= token_id < self._vocab_size:
                raise InvalidRequestError(
                    f"{field} has token id {token_id}, which is outside the vocabulary of {self._vocab_size} tokens.",
                    param=field,
                )
